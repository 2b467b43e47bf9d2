"""LlamaGen: files in its own layout with random weights; the same ids, logits, tokens and pixels as a plain re-derivation
computes from them, with captions of the full length, filled up at the left as the original does it."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

import dalle_core
from dalle_core import CATALOGUE, InputError, ModelError, image_tokenizer
from dalle_core.checkpoints import llamagen
from dalle_core.engine import SamplingSettings, generate
from dalle_core.request import DrawingRequest
from dalle_core.slots import SlotEngine
from dalle_core.text_normalizer import NORMALIZERS
from dalle_core.text_tokenizer import encode_pair
from dalle_core.training.prior import open_pipeline
from demo import open_studio
from tests import hub as local
from tests import plain
from tests.published import load_published

CAPTION, GRID = 24, 4
NO_INT8 = not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() == "DEFAULT"
PROMPTS = ["fox", "a red fox, in the snow!", 'A cat — "big" & <b>red</b> at https://foo.com/x']


def original_names(state: dict) -> dict:
    """VQ-16's, of taming's (tokenizer/tokenizer_image/vq_model.py): the decoder's levels in running order."""
    found = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[1] in ("down", "up"):
            level = int(parts[2]) if parts[1] == "down" else 2 - int(parts[2])
            parts[1:3] = ["conv_blocks", str(level)]
            parts[3] = {"block": "res"}.get(parts[3], parts[3])
        elif parts[1] == "mid":
            parts[2] = {"block_1": "0", "attn_1": "1", "block_2": "2"}[parts[2]]
        found[".".join(parts)] = value
    return found | {"quantize.codebook_used": torch.zeros(65536)}


class Files:
    """A tiny model of each kind, and the folder that holds them."""

    def __init__(self):
        self.vq = plain.vqgan_state(mult=(1, 1, 2), resnets=1, code_size=8)
        self.gpt = plain.llamagen_state(caption=CAPTION)
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=200, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
        )
        self.t5 = T5ForConditionalGeneration(config).eval()
        self.encoder = T5EncoderModel(deepcopy(config)).eval()
        state = {f"encoder.{key}": value for key, value in self.t5.encoder.state_dict().items()}
        self.encoder.load_state_dict({"shared.weight": self.t5.shared.weight} | state)
        words = sorted({word for prompt in PROMPTS for word in NORMALIZERS["llamagen"](prompt).split()} | {"two", "apples"})
        pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz,.!&;", *(f"▁{word}" for word in words)]
        vocabulary = [(piece, 0.0 if piece[0] == "<" else -float(len(pieces) - i)) for i, piece in enumerate(pieces)]
        self.tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
        )
        self.tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
        self.tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])

    def save(self, folder: Path, **settings) -> Path:
        (folder / "flan-t5-xl").mkdir(parents=True)
        torch.save({"model": self.gpt}, folder / "t2i_XL_stage1_16.pt")
        torch.save({"model": original_names(self.vq)}, folder / "vq_ds16_t2i.pt")
        self.t5.save_pretrained(folder / "flan-t5-xl", **settings)
        self.tokenizer.save(str(folder / "flan-t5-xl" / "tokenizer.json"))
        return folder

    def ids(self, prompt: str) -> list[int]:
        return self.tokenizer.encode(NORMALIZERS["llamagen"](prompt)).ids

    @torch.no_grad()
    def features(self, prompt: str) -> tuple[torch.Tensor, int]:
        """The caption as sample_t2i.py makes it [CAPTION, E], and how many of its last positions are of the prompt: T5 reads
        the padded prompt, and what it makes of it goes to the right end."""
        ids = torch.tensor([self.ids(prompt) + [0] * CAPTION])[:, :CAPTION]
        mask = (ids != 0).long()
        given = int(mask.sum())
        found = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        return torch.cat([found[given:] * 0, found[:given]]), given

    def logits(self, prompt: str, tokens: list[int], null: bool = False) -> torch.Tensor:
        features, given = self.features(prompt)
        features = self.gpt["cls_embedding.uncond_embedding"] if null else features
        return plain.llamagen_logits(self.gpt, GRID, features, given, torch.tensor(tokens, dtype=torch.long))

    def greedy(self, prompt: str, scale: float, lead: list[int]) -> list[int]:
        tokens = list(lead)
        while len(tokens) < GRID * GRID:
            logits = self.logits(prompt, tokens)[-1]
            if scale != 1:
                away = self.logits(prompt, tokens, null=True)[-1]
                logits = away + scale * (logits - away)
            tokens.append(logits.argmax().item())
        return tokens


@pytest.fixture(scope="module")
def files():
    return Files()


@pytest.fixture(scope="module")
def original(files, tmp_path_factory):
    return files.save(tmp_path_factory.mktemp("llamagen") / "tiny")


@pytest.fixture(scope="module")
def pipe(original, tmp_path_factory):
    return load_published(original, tmp_path_factory)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))


# ---------------------------------------------------------------- the same as the re-derivation


def test_ids_are_those_of_the_cleaned_prompt_and_the_null_prompt_is_as_long(files, pipe):
    for prompt in [*PROMPTS, "a ü fox 😀", "the </s> fox <pad><extra_id_0>"]:
        ids, null = encode_pair(pipe.text_tokenizer, prompt, "", *pipe.reading)
        assert ids[0].tolist() == files.ids(prompt) and null[0].tolist() == [0] * (ids.shape[1] - 1) + [1]
    assert files.ids(PROMPTS[0]) == [files.tokenizer.token_to_id("▁fox"), 1] and 2 in files.ids("a ü fox")
    with pytest.raises(InputError, match="knows none of the characters"):
        pipe("狐狸", num_candidates=1)  # cleaned away


def test_a_prompt_is_cleaned_as_the_original_does_it():
    """What its `T5Embedder` answered."""
    for prompt, expected in (
        ("A Red Fox, in the snow!", "a red fox, in the snow!"),
        ("see https://foo.com/a-b and bar.org now", "see and now"),
        ("<b>bold</b> & R&amp;D “quoted” a–b", 'bold r d "quoted" a-b'),
        ("img.png #123 1234567 jc6640vc 狐狸 10.0.0.1 x", "x"),
        ("this-is-my-cute-cat, free shipping", "this is my cute cat"),
        ("100x200 and don't ..stop.. page 3", "and don't stop"),
        ("a [b] {c} ~d *e*  f", "a b c d e f"),
    ):
        assert NORMALIZERS["llamagen"](prompt) == expected


@torch.no_grad()
def test_logits(files, pipe):
    tokens = torch.randint(64, (15,), generator=torch.Generator().manual_seed(1)).tolist()
    for prompt in PROMPTS:
        ids, null = encode_pair(pipe.text_tokenizer, prompt, "", *pipe.reading)
        expected = torch.stack([files.logits(prompt, tokens, null=which) for which in (False, True)]).float()
        assert expected.std() > 1 and (expected[0] - expected[1]).std() > 0.1
        found = pipe.prior(torch.cat([ids, null]), torch.tensor([tokens, tokens]))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    whole = torch.tensor([*tokens, 5])
    likelihood = -F.cross_entropy(expected[0], whole).item()
    assert pipe.log_likelihood(whole.view(GRID, GRID), PROMPTS)[-1] == pytest.approx(likelihood, abs=1e-4)


@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_greedy_tokens(files, pipe, scale):
    """Also after tokens that are given."""
    drawn = set()
    for prompt, lead in ((PROMPTS[0], []), (PROMPTS[1], [7, 7, 60]), (PROMPTS[2], [3, 9, 40] * 3)):
        keep, forced = torch.arange(16) < len(lead), torch.tensor(lead + [0] * (16 - len(lead)))
        ids, null = encode_pair(pipe.text_tokenizer, prompt, "", *pipe.reading)
        settings = SamplingSettings(0.0, 0, 1.0, scale)
        for engine in (pipe.engine, SlotEngine(pipe.prior, 4)):  # as on a CPU, and as on a GPU
            *_, tokens = generate(engine, ids, null, torch.zeros(2, 16), settings, forced, keep)
            assert tokens.tolist() == [files.greedy(prompt, scale, lead)] * 2
        drawn |= set(tokens[0, len(lead) :].tolist())
    assert len(drawn) > 6


@torch.no_grad()
def test_requests_of_other_prompts_and_positions_in_one_pass(pipe):
    steps, alone = [], []
    for prompt, position in ((PROMPTS[0], 11), (PROMPTS[1], 2), (PROMPTS[2], 7)):
        ids, null = encode_pair(pipe.text_tokenizer, prompt, "", *pipe.reading)
        tokens = torch.arange(position + 1) * 3
        cache, _ = pipe.prior.prefill(torch.cat([ids, null]), 1, tokens[:-1])
        steps.append((tokens[-1:].repeat(2), cache, position))
        alone.append(torch.cat([pipe.prior(one, tokens[None])[:, -1] for one in (ids, null)]))
    torch.testing.assert_close(pipe.prior.decode(steps), alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_pixels_and_tokens_of_a_picture(files, pipe):
    """Codes are unit vectors, whatever their length in the file."""
    codes = "quantize.embedding.weight"
    oracle = plain.VQGAN(files.vq | {codes: F.normalize(files.vq[codes], dim=-1)})
    tokens = torch.randint(64, (2, 4, 4), generator=torch.Generator().manual_seed(2))
    expected = oracle.pixels(tokens).clamp(-1, 1).float()
    assert expected.std() > 0.1
    torch.testing.assert_close(image_tokenizer.decode(pipe.image_tokenizer, tokens), expected, atol=1e-4, rtol=0)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert torch.equal(image_tokenizer.encode(pipe.image_tokenizer, pixels), oracle.tokens(pixels))


# ---------------------------------------------------------------- as any other model


def test_it_draws_completes_and_is_saved(pipe, tmp_path):
    one = pipe(PROMPTS[1], num_candidates=3, seed=4)
    assert one.settings["guidance_scale"] == 7.5 and one.settings["top_k"] == 64 and one.candidates[0].image.size == (16, 16)
    again = pipe(PROMPTS[1], num_candidates=1, seed=4).candidates[0]
    assert torch.equal(again.tokens, one.candidates[0].tokens)
    keep = torch.zeros(4, 4, dtype=torch.bool)
    keep[:2] = True
    other = pipe("two apples", num_candidates=1, seed=4, image_tokens=again.tokens, keep=keep).candidates[0]
    assert torch.equal(other.tokens[:2], again.tokens[:2]) and not torch.equal(other.tokens, again.tokens)
    for negative in ("cat", "a cat, " * 40):  # shorter and longer than the prompt
        away = pipe(PROMPTS[1], num_candidates=1, seed=4, negative_prompt=negative).candidates[0]
        assert not torch.equal(away.tokens, again.tokens)
    used, dropped = pipe.fit_prompt("a red fox, " * 30)
    ids, _ = encode_pair(pipe.text_tokenizer, used, "", *pipe.reading)
    assert dropped and CAPTION - 6 < ids.shape[1] <= CAPTION and ids[0, -1] == 1
    pipe.save_pretrained(tmp_path / "saved")
    saved = dalle_core.load(tmp_path / "saved", "cpu", clip="none")
    assert torch.equal(saved(PROMPTS[1], num_candidates=1, seed=4).candidates[0].tokens, again.tokens)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float16", pytest.param("int8", marks=pytest.mark.skipif(NO_INT8, reason="no kernels"))]
)
def test_smaller_dtypes_leave_what_reads_the_prompt_exact(pipe, tmp_path, dtype):
    """But for bfloat16, in which the original has it as well. In float16 the layers that would overflow stay in float32."""
    pipe.save_pretrained(tmp_path / "saved")
    small = dalle_core.load(tmp_path / "saved", "cpu", getattr(torch, dtype), clip="none")
    drawn = small(PROMPTS[1], num_candidates=2, seed=4, guidance_scale=1, temperature=2).candidates
    assert len({tuple(one.tokens.flatten().tolist()) for one in drawn}) == 2
    layer = small.prior.text_encoder.block[0].layer[1].DenseReluDense
    expected = {"bfloat16": (torch.bfloat16,) * 2, "float16": (torch.float16, torch.float32), "int8": (torch.float32,) * 2}
    assert (layer.wi_0.weight.dtype, layer.wo.weight.dtype) == expected[dtype]


def test_the_page_draws_with_it(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    studio = open_studio(pipe, "tiny")
    *updates, last = studio.draw("me", DrawingRequest(PROMPTS[1], num_candidates=2, seed=3), preview_every=4)
    assert sum(update.previews is not None for update in updates) == 3 and len(last.pictures) == 2
    picture = last.pictures[0]
    assert studio.tokens_of("me", picture.path) == picture.drawn.tokens.tolist()


def test_from_the_hub_by_name(files, pipe, home, tmp_path, monkeypatch):
    names = ("llamagen-256", "llamagen-512")
    for name in names:
        monkeypatch.setitem(CATALOGUE, name, replace(CATALOGUE[name], parameters=1000, download=1000))
    folder = files.save(tmp_path / "files", max_shard_size="40kB")
    encoder = folder / "flan-t5-xl"
    assert len(list(encoder.glob("model-*.safetensors"))) > 1
    encoder.rename(tmp_path / "t5")
    for name in names:
        (folder / CATALOGUE[name].files[0]).write_bytes((folder / "t2i_XL_stage1_16.pt").read_bytes())
    with local.serve() as (hub, url):
        local.use(url, monkeypatch)
        hub.add("peizesun/llamagen_t2i", folder)
        hub.add("google/flan-t5-xl", tmp_path / "t5")
        assert not CATALOGUE[names[0]].is_here()
        found = [dalle_core.load(name, "cpu", clip="none") for name in names]
    assert CATALOGUE[names[0]].is_here()
    for name, one, pixels in zip(names, found, (256, 512), strict=True):
        assert (one.name, one.image_size, one.max_candidates) == (name, pixels, 1)  # tokens have 4 pixels here, 16 there
        assert torch.equal(one.prior.null_caption, pipe.prior.null_caption) and "Apache-2.0" in one.config.licence
    with pytest.raises(ModelError, match="load it by name, llamagen-256 or llamagen-512"):
        dalle_core.load("peizesun/llamagen_t2i", "cpu", clip="none")


def test_training_says_that_it_cannot(original, home):
    args = SimpleNamespace(init=str(original), clip="none")
    with pytest.raises(InputError, match="cannot be trained here.*Janus and LlamaGen not"):
        open_pipeline(args, SimpleNamespace(print=lambda line: None))


# ---------------------------------------------------------------- what is damaged


@pytest.fixture
def folder(files, tmp_path):
    return files.save(tmp_path / "tiny")


def fails(folder, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        llamagen.convert(llamagen.find(folder))


def test_wrong_tensors_are_named(files, folder):
    nan = files.gpt["layers.1.feed_forward.w1.weight"].clone()
    nan[3, 4] = torch.nan
    path = folder / "t2i_XL_stage1_16.pt"
    for key, value, message in (
        ("norm.weight", None, "the key norm.weight is missing"),
        (
            "output.weight",
            torch.zeros(9, 128),
            r"stage1_16.pt: output.weight has the shape \[9, 128\]; \[64, 128\] was expected",
        ),
        ("layers.1.feed_forward.w1.weight", nan, "layers.1.feed_forward.w1.weight holds NaN"),
        ("freqs_cis", torch.zeros(2), "the key freqs_cis is unexpected"),
        ("tok_embeddings.weight", torch.zeros(64, 100), "the width 100 is no multiple of 64"),
        ("cls_embedding.uncond_embedding", torch.zeros(CAPTION, 40), r"has the shape \[128, 32\]; \[128, 40\] was expected"),
    ):
        state = {name: tensor for name, tensor in (files.gpt | {key: value}).items() if tensor is not None}
        torch.save({"module": state}, path)
        fails(folder, message)
    for content, message in (({"weights": files.gpt}, "the key model is missing"), ({"model": {"a": 1}}, "not hold a dict of")):
        torch.save(content, path)
        fails(folder, message)
    path.write_bytes(path.read_bytes()[:-40])
    fails(folder, "stage1_16.pt cannot be read as weights")


def test_wrong_text_encoders_are_named(files, folder):
    t5 = folder / "flan-t5-xl"
    good = load_file(t5 / "model.safetensors")
    query = "encoder.block.1.layer.0.SelfAttention.q.weight"
    for key, value, message in (
        (query, None, f"the key {query} is missing"),
        (query, torch.zeros(2, 2), r"safetensors: encoder.block.1.layer.0.SelfAttention.q.weight has the shape \[2, 2\]"),
        ("encoder.extra", torch.zeros(2), "the key encoder.extra is unexpected"),
        ("shared.weight", None, "the key shared.weight is missing"),
        ("shared.weight", torch.zeros(20, 32), "has more ids than .* has rows"),
    ):
        state = {name: tensor for name, tensor in (good | {key: value}).items() if tensor is not None}
        save_file(state, t5 / "model.safetensors")
        fails(folder, message)
    save_file(good, t5 / "model.safetensors")
    config = json.loads((t5 / "config.json").read_text(encoding="utf-8"))
    (t5 / "config.json").write_text(json.dumps(config | {"feed_forward_proj": "relu"}), encoding="utf-8")
    fails(folder, "config.json: feed_forward_proj is 'relu'; flan-t5-xl has 'gated-gelu'")
    (t5 / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = (t5 / "tokenizer.json").read_text(encoding="utf-8")
    for content, message in (("{}", "is not a text tokenizer"), (text.replace("</s>", "</e>"), "the token </s> is missing")):
        (t5 / "tokenizer.json").write_text(content, encoding="utf-8")
        fails(folder, f"tokenizer.json.*{message}|tokenizer.json: {message}")
    (t5 / "tokenizer.json").unlink()
    fails(folder, "tokenizer.json is missing")
    (t5 / "model.safetensors").unlink()
    fails(folder, "flan-t5-xl has no weights")


def test_wrong_folders_are_named(files, folder):
    path = folder / "t2i_XL_stage1_16.pt"
    path.rename(folder / "t2i_mine.pt")
    fails(folder, "t2i_mine.pt: its name must end in the pixels a side")
    (folder / "t2i_mine.pt").rename(path)
    codes = original_names(files.vq)
    del codes["decoder.conv_blocks.1.res.0.conv1.weight"]
    torch.save({"model": codes}, folder / "vq_ds16_t2i.pt")
    fails(folder, "vq_ds16_t2i.pt: the key decoder.up.1.block.0.conv1.weight is missing")
    (folder / "vq_ds16_t2i.pt").unlink()
    fails(folder, "vq_ds16_t2i.pt is missing")
    (folder / "t2i_XL_stage2_32.pt").write_bytes(b"")
    fails(folder, r"holds more than one model \(t2i_XL_stage1_16.pt, t2i_XL_stage2_32.pt\)")
    (folder / "t2i_XL_stage2_32.pt").unlink()
    (folder / "flan-t5-xl").rename(folder / "t5")
    fails(folder, "has no text encoder.*hf download google/flan-t5-xl")
