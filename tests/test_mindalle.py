"""minDALL·E's folder: files in its key layout load into GPTPrior and VQModel, and compute what they should."""

import json
import subprocess
import sys

import pytest
import torch
import yaml
from tokenizers.implementations import CharBPETokenizer

from dalle_core import ModelError, image_tokenizer
from dalle_core.checkpoints import mindalle
from dalle_core.checkpoints.tensors import read_torch
from dalle_core.engine import Engine, SamplingSettings, generate
from dalle_core.text_tokenizer import encode_prompts, fit_prompt
from tests import plain
from tests.published import load_published

CONFIG = {"stage2": {"hparams": {"embed_dim": 128, "n_layers": 2, "n_heads": 2, "ctx_len_img": 256, "ctx_len_txt": 64}}}


def write(folder, stage1=None, stage2=None, config=CONFIG):
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": stage1 or plain.vqgan_state()}, folder / "stage1_last.ckpt")
    torch.save({"state_dict": stage2 or plain.mindalle_state()}, folder / "stage2_last.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    pieces = [
        "[PAD]",
        "[UNK]",
        *"abcdefghijklmnopqrstuvwxyz",
        *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"),
        "ca",
        "cat</w>",
    ]
    (folder / "tokenizer" / "bpe-16k-vocab.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}), encoding="utf-8")
    (folder / "tokenizer" / "bpe-16k-merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("mindalle") / "1.3B")


@pytest.fixture(scope="module")
def pipe(folder, tmp_path_factory):
    """What `load` gives: converted, saved and loaded again in float32."""
    return load_published(folder, tmp_path_factory)


@pytest.fixture(scope="module")
def parts(pipe):
    return pipe.components


@torch.no_grad()
def test_logits_at_every_position(parts):
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(60, (2, 64), generator=generator)
    images = torch.randint(64, (2, 255), generator=generator)
    expected = plain.mindalle_logits(plain.mindalle_state(), 2, texts, images)
    assert expected.std() > 0.1
    torch.testing.assert_close(parts["prior"](texts, images).double(), expected, atol=1e-4, rtol=0)
    cache, logits = parts["prior"].prefill(texts)
    for position in range(3):
        torch.testing.assert_close(logits.double(), expected[:, position], atol=1e-4, rtol=0)
        logits = parts["prior"].decode([(images[:, position], cache, position)])[0]


@torch.no_grad()
def test_greedy_tokens(pipe):
    text = encode_prompts(pipe.text_tokenizer, ["a cat"], 64)
    expected = torch.empty(1, 0, dtype=torch.long)
    for _ in range(24):
        logits = plain.mindalle_logits(plain.mindalle_state(), 2, text, expected)[:, -1]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    steps = generate(Engine(pipe.prior), text, text, torch.zeros(1, 256), SamplingSettings(temperature=0.0))
    for _ in range(24):
        drawn = next(steps)
    steps.close()
    assert drawn[0, :24].tolist() == expected[0].tolist() and len(expected.unique()) > 2
    assert pipe.config.licence.startswith("CC-BY-NC-SA-4.0 (non-commercial)")


@torch.no_grad()
def test_pixels_and_tokens(parts):
    peer, model = plain.VQGAN(plain.vqgan_state()), parts["image_tokenizer"]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (1, 16, 16), generator=generator)
    expected = peer.pixels(tokens).clamp(-1, 1)
    assert expected.std() > 0.1
    torch.testing.assert_close(image_tokenizer.decode(model, tokens).double(), expected, atol=1e-4, rtol=0)
    pixels = torch.rand(1, 3, 256, 256, generator=generator) * 2 - 1
    assert torch.equal(image_tokenizer.encode(model, pixels), peer.tokens(pixels))
    assert len(peer.tokens(pixels).unique()) > 5


def test_text_is_that_of_its_own_tokenizer(folder, parts):
    files = mindalle.find(folder)
    peer = CharBPETokenizer.from_file(str(files["vocab"]), str(files["merges"]), unk_token="[UNK]", lowercase=True)
    peer.enable_padding(length=64, pad_id=peer.token_to_id("[PAD]"))
    peer.enable_truncation(max_length=64)
    for prompt in ("A cat", "the CAT sat, ünder", "", "cat " * 80):
        ids = encode_prompts(parts["text_tokenizer"], [prompt], 64)
        assert ids[0].tolist() == peer.encode(prompt).ids
    used, dropped = fit_prompt(parts["text_tokenizer"], "cat " * 80, 64)
    assert used == ("cat " * 64).strip() and dropped == ("cat " * 16).strip()


def test_what_is_wrong_is_named(tmp_path):
    stage2 = plain.mindalle_state()

    def fails(message, **files):
        folder = write(tmp_path / str(len(list(tmp_path.iterdir()))), **files)
        with pytest.raises(ModelError, match=message):
            mindalle.convert(mindalle.find(folder))

    fails("blocks.1.attn.key.bias is missing", stage2={k: v for k, v in stage2.items() if k != "blocks.1.attn.key.bias"})
    fails("blocks.0.mlp.0.weight has the shape", stage2=stage2 | {"blocks.0.mlp.0.weight": torch.zeros(2, 2)})
    fails("sos.weight is unexpected", stage2=stage2 | {"sos.weight": torch.zeros(1)})
    fails("ln_f.bias holds NaN", stage2=stage2 | {"ln_f.bias": torch.full((128,), torch.nan)})
    fails("n_layers is 3", config={"stage2": {"hparams": CONFIG["stage2"]["hparams"] | {"n_layers": 3}}})
    fails("n_heads is 3", config={"stage2": {"hparams": CONFIG["stage2"]["hparams"] | {"n_heads": 3}}})
    for key in ("n_layers", "embed_dim", "ctx_len_txt", "ctx_len_img"):
        fails(
            f"config.yaml: {key} is 1000000000, but", config={"stage2": {"hparams": CONFIG["stage2"]["hparams"] | {key: 10**9}}}
        )
    fails(
        "config.yaml: n_heads is 1000000000", config={"stage2": {"hparams": CONFIG["stage2"]["hparams"] | {"n_heads": 10**9}}}
    )
    fails("n_layers must be a whole number", config={"stage2": {"hparams": {"n_layers": 10**4000}}})
    fails("n_layers must be a whole number", config={"stage2": {"hparams": {"n_layers": "many"}}})
    fails("gelu_use_approx", config={"stage2": {"hparams": {"gelu_use_approx": True}}})
    stage1 = plain.vqgan_state()
    fails("encoder.norm_out.bias is missing", stage1={k: v for k, v in stage1.items() if k != "encoder.norm_out.bias"})
    # Shapes of which a few bytes ask for 39 GB, or for what no norm can do, or for a model that takes all day to build.
    first, last = "decoder.up.0.block.0.conv1.weight", "decoder.up.4.block.0.conv1.weight"
    fails("stage1_last.ckpt: .* has the shape", stage1=stage1 | {first: torch.zeros(2**15, 1, 1, 1)})
    fails("stage1_last.ckpt: there is no VQGAN of its sizes", stage1=stage1 | {last: torch.zeros(33, 1, 1, 1)})
    blocks = {f"decoder.up.0.block.{i}.x": torch.zeros(1) for i in range(300)}
    fails("stage1_last.ckpt: decoder.up has 5 levels of 300 blocks", stage1=stage1 | blocks)
    layers = {f"blocks.{i}.x": torch.zeros(1) for i in range(1500)}
    fails("stage2_last.ckpt: it has 1500 of blocks.0, blocks.1", stage2=stage2 | layers)


def test_a_config_is_never_longer_in_memory_than_on_the_disk(folder, tmp_path):
    """YAML's aliases let each line stand for nine times the one before: 9**12 entries here."""
    path = tmp_path / "config.yaml"
    lines = ["l0: &l0 {a: 1}"] + [f"l{i}: &l{i} {{<<: [{', '.join([f'*l{i - 1}'] * 9)}]}}" for i in range(1, 13)]
    file = read_torch(folder / "stage2_last.ckpt", "state_dict")
    for text, message in (
        ("\n".join(lines), "config.yaml cannot be read .it has aliases"),
        ("#" * 2**17, "config.yaml cannot be read .it is longer than 64 kB"),
        ("[" * 5000, "config.yaml cannot be read .it is nested without end"),
        (f"stage2: {{hparams: {{n_layers: 0x{'f' * 20_000}}}}}", "config.yaml: n_layers must be a whole number"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            mindalle.convert_prior(file, path)


def test_a_training_state_is_refused_with_the_way_to_its_weights(tmp_path):
    """A checkpoint may hold more than weights. Nothing of it runs; who trusts it is told how to keep the weights alone."""
    ran = tmp_path / "ran"

    class Callback:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    folder = write(tmp_path / "1.3B")
    torch.save({"state_dict": plain.mindalle_state(), "callbacks": Callback()}, folder / "stage2_last.ckpt")
    with pytest.raises(ModelError, match="more than weights.*If you trust") as error:
        mindalle.convert(mindalle.find(folder))
    assert not ran.exists()
    command = str(error.value).partition("runs what is in it: ")[2]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    assert ran.exists()
    mindalle.convert(mindalle.find(folder))


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    for name in ("config.yaml", "stage1_last.ckpt", "tokenizer/bpe-16k-vocab.json", "tokenizer/bpe-16k-merges.txt"):
        broken = write(tmp_path / name.replace("/", "-"))
        (broken / name).write_bytes((broken / name).read_bytes()[: 40 if "json" in name or "ckpt" in name else 2])
        with pytest.raises(ModelError, match=name.split("/")[-1]):
            mindalle.convert(mindalle.find(broken))
        (broken / name).unlink()
        with pytest.raises(ModelError, match=f"{name.split('/')[-1]} is missing"):
            mindalle.convert(mindalle.find(broken))
