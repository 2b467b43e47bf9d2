"""`load` on folders and Hub repositories of published models: converted once, then loaded from the converted copy."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

import dalle_core
from dalle_core import ModelError, catalogue, memory
from tests import hub as local
from tests.published import MinDalleFiles

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    return MinDalleFiles(tmp_path_factory.mktemp("min-dalle"), width=64, ffn=96, layers=1)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP as the Hub's repositories hold it."""
    folder = tmp_path_factory.mktemp("clip")
    vocab = {chr(c): c - 32 for c in range(33, 127)} | {f"{chr(c)}</w>": c + 100 for c in range(33, 127)}
    vocab |= {"<|startoftext|>": 300, "<|endoftext|>": 301}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [("<|startoftext|>", 300), ("<|endoftext|>", 301)]
    tokenizer.post_processor = processors.TemplateProcessing("<|startoftext|> $A <|endoftext|>", special_tokens=marks)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=marks[0][0], eos_token=marks[1][0], pad_token=marks[1][0], unk_token=marks[1][0]
    ).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 16}
    text = small | {
        "vocab_size": 302,
        "max_position_embeddings": 77,
        "eos_token_id": 301,
        "pad_token_id": 301,
        "bos_token_id": 300,
    }
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    ).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    return tmp_path / "home"


def test_a_folder_draws_ranks_saves_and_loads_again(peer, clip_folder, home, tmp_path, monkeypatch):
    lines = []
    pipe = dalle_core.load(peer.folder, clip=str(clip_folder), tell=lines.append)
    assert any("Converting" in line for line in lines)
    assert pipe.image_size == 256 and pipe.defaults["guidance_scale"] == 16.0 and pipe.clip_tokenizer is not None
    keep = torch.ones(16, 16, dtype=torch.bool)
    keep[-1, -2:] = False  # two tokens to draw
    arguments = {"num_candidates": 2, "seed": 1, "image_tokens": torch.arange(256).view(16, 16), "keep": keep}
    first = pipe("The red fox, ünder 狐", **arguments)
    assert first.candidates[0].image.size == (256, 256) and first.candidates[0].score >= first.candidates[1].score

    # The converted copy is used: the published files are not read again.
    monkeypatch.setattr(catalogue.min_dalle, "convert", lambda files: pytest.fail("converted twice"))
    second = dalle_core.load(peer.folder, clip=str(clip_folder))("The red fox, ünder 狐", **arguments)
    assert [c.score for c in second.candidates] == [c.score for c in first.candidates]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first.candidates, second.candidates, strict=True))
    pipe.save_pretrained(tmp_path / "own")
    third = dalle_core.load(tmp_path / "own")("The red fox, ünder 狐", **arguments)
    assert [c.score for c in third.candidates] == [c.score for c in first.candidates]


def test_without_clip_nothing_is_ranked(peer):
    pipe = dalle_core.load(peer.folder, clip="none")
    keep = torch.ones(16, 16, dtype=torch.bool)
    drawn = pipe("a cat", num_candidates=2, image_tokens=torch.zeros(16, 16, dtype=torch.long), keep=keep)
    assert [(c.index, c.score) for c in drawn.candidates] == [(0, None), (1, None)]


def test_a_clip_that_is_not_here_says_so(peer):
    with pytest.raises(ModelError, match="TinyCLIP.*HF_HUB_OFFLINE"):
        dalle_core.load(peer.folder)


def test_what_is_wrong_with_a_clip_is_named(saved, clip_folder, tmp_path):
    state = load_file(clip_folder / "model.safetensors")
    config = json.loads((clip_folder / "config.json").read_text(encoding="utf-8"))

    def fails(message, weights=state, old=False, processor=None, **changed):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(clip_folder, folder)
        if old:
            (folder / "model.safetensors").unlink()
            torch.save(weights, folder / "pytorch_model.bin")
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config | changed), encoding="utf-8")
        if processor:
            path = folder / "preprocessor_config.json"
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | processor), encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            dalle_core.load(saved, clip=str(folder))

    intruder = {"intruder" if key == "visual_projection.weight" else key: value for key, value in state.items()}
    fails("visual_projection.weight|intruder", intruder)
    deep = config["text_config"] | {"num_hidden_layers": 10**6}
    for old in (False, True):
        fails("NaN", state | {"logit_scale": torch.tensor(torch.nan)}, old)
        fails("config.json: num_hidden_layers of text_config is 1000000, but the weights have 1", old=old, text_config=deep)
        fails("config.json: num_hidden_layers of text_config_dict is 1000000", old=old, text_config_dict=deep)
        fails("config.json: num_labels is 1000000000", old=old, num_labels=10**9)
    fails("pictures cannot be read with it .size is", processor={"size": {"shortest_edge": 10**6}})
    fails("makes pictures of the shape", processor={"crop_size": {"height": 64, "width": 64}})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ModelError, match="pytorch_model.bin is missing"):
        dalle_core.load(saved, clip=str(tmp_path / "nothing"))


@pytest.fixture
def hub(monkeypatch):
    with local.serve() as (hub, url):
        local.use(url, monkeypatch)
        yield hub


def test_by_name_from_the_hub(peer, clip_folder, hub):
    hub.add("kuprel/min-dalle", peer.folder)
    hub.repos["kuprel/min-dalle"]["decoder.pt"] = b"of the other model"
    hub.add(catalogue.CLIP_ON_CPU, clip_folder)
    known = catalogue.CATALOGUE["dalle-mini"]
    assert not known.is_here()
    pipe = dalle_core.load("dalle-mini")
    assert pipe.name == "dalle-mini" and pipe.config.licence == "MIT" and known.is_here()
    assert pipe.prior.config.text_length == known.text_length
    assert {name: pipe.defaults[name] for name in known.defaults} == known.defaults
    hub.requests.clear()
    dalle_core.load("dalle-mini")
    assert hub.requests == []
    with pytest.raises(ModelError, match="by name, dalle-mini or dalle-mega"):
        dalle_core.load("kuprel/min-dalle")


def test_a_clip_without_safetensors_is_here_once_it_was_downloaded(peer, clip_folder, hub):
    """As openai/clip-vit-base-patch32 has been: its weights are a pytorch_model.bin."""
    hub.add("someone/old-clip", clip_folder)
    hub.repos["someone/old-clip"].pop("model.safetensors")
    weights = io.BytesIO()
    torch.save(CLIPModel.from_pretrained(clip_folder).state_dict(), weights)
    hub.repos["someone/old-clip"]["pytorch_model.bin"] = weights.getvalue()
    expected = dalle_core.load(peer.folder, clip=str(clip_folder)).clip.state_dict()
    for _ in range(2):
        clip = dalle_core.load(peer.folder, clip="someone/old-clip").clip.state_dict()
        assert all(torch.equal(clip[key], expected[key]) for key in expected)
        requests, hub.requests = hub.requests, []
    assert requests == []


def test_a_hub_id_in_our_layout(saved, hub, tiny_pipeline):
    hub.add("someone/tiny", saved)
    ours, theirs = (
        tiny_pipeline("a fox", num_candidates=1, seed=3),
        dalle_core.load("someone/tiny")("a fox", num_candidates=1, seed=3),
    )
    assert torch.equal(ours.candidates[0].tokens, theirs.candidates[0].tokens)
    assert ours.candidates[0].score == theirs.candidates[0].score


def test_what_does_not_fit_is_said_with_numbers(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 6_000_000_000)
    with pytest.raises(
        ModelError, match=r"DALL·E mega takes 10.5 GB in float32, and 6.0 GB are free.*bfloat16 would take 5.3 GB"
    ):
        dalle_core.load("dalle-mega")


def test_a_conversion_that_does_not_fit_and_one_that_cannot_be_saved(peer, home, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(ModelError, match="Converting .* takes .* of memory, once, and 1 MB are free"):
        dalle_core.load(peer.folder, clip="none")
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HOME", str(home))

    def full(pipe, folder, **arguments):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "half").write_bytes(b"x")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(dalle_core.DallePipeline, "save_pretrained", full)
    with pytest.raises(ModelError, match="could not be saved at .*No space left on device.*Free some space"):
        dalle_core.load(peer.folder, clip="none")
    assert list((home / "dalle_core" / "converted").iterdir()) == []


def test_a_full_disk_is_said_before_converting(peer, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ModelError, match="converted .* takes .* are free"):
        dalle_core.load(peer.folder, clip="none")


def test_the_convert_command(peer, clip_folder, tmp_path, home):
    def convert(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "dalle_core", "convert", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            encoding="utf-8",
        )

    out = tmp_path / "out"
    done = convert(peer.folder, out, "--clip", clip_folder)
    assert done.returncode == 0, done.stderr
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card and "BartPrior" in card and f"`{peer.folder.name}`" in card
    assert dalle_core.load(out).prior.config.hidden_size == 64
    again = convert(peer.folder, out)
    assert again.returncode == 2 and "not empty" in again.stderr and "Traceback" not in again.stderr
    nothing = convert(tmp_path / "nothing", tmp_path / "new")
    assert nothing.returncode == 2 and "Traceback" not in nothing.stderr


def test_a_folder_of_nothing_known(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(ModelError, match="no model folder"):
        dalle_core.load(tmp_path / "x")
