"""dalle-mini's flax files, written by flax itself: the same tensors as min-dalle's reader gives, the same pixels."""

import json
import os

import huggingface_hub
import msgpack
import numpy as np
import pytest
import torch
from flax.serialization import to_bytes
from huggingface_hub import constants
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing

import dalle_core
from dalle_core import ModelError, downloads, image_tokenizer, text_normalizer
from dalle_core.checkpoints import dalle_mini, min_dalle
from dalle_core.checkpoints.tensors import read_torch
from dalle_core.engine import Engine, SamplingSettings, generate
from dalle_core.text_tokenizer import encode_prompts
from tests import hub as local
from tests import plain
from tests.published import MinDalleFiles, load_published

CONFIG = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "d_model": 128,
    "encoder_vocab_size": 600,
    "max_text_length": 64,
    "image_length": 256,
    "decoder_start_token_id": 16384,
    "ln_positions": "normformer",
    "use_glu": True,
    "normalize_text": True,
}


def put(tree: dict, path: str, value) -> None:
    *parents, leaf = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value


def flax_prior(peer: MinDalleFiles, scanned: bool) -> dict:
    """The peer's tensors as dalle-mini's flax modules name and lay them out (src/dalle_mini/model/modeling.py)."""
    tree = {}
    for side, module in (("Encoder", peer.encoder), ("Decoder", peer.decoder)):
        state = {key: value.numpy() for key, value in module.state_dict().items()}
        root = f"model/{side.lower()}"
        put(tree, f"{root}/embed_tokens/embedding", state["embed_tokens.weight"])
        put(tree, f"{root}/embed_positions/embedding", state["embed_positions.weight"])
        put(tree, f"{root}/layernorm_embedding/scale", state["layernorm_embedding.weight"])
        put(tree, f"{root}/layernorm_embedding/bias", state["layernorm_embedding.bias"])
        put(tree, f"{root}/final_ln/bias", state["final_ln.bias"])
        norms = [
            ("0/bias", "pre_self_attn_layer_norm.bias"),
            ("1/scale", "self_attn_layer_norm.weight"),
            ("1/bias", "self_attn_layer_norm.bias"),
        ]
        attentions = [(0, "self_attn")]
        if side == "Decoder":
            norms += [
                ("2/bias", "pre_encoder_attn_layer_norm.bias"),
                ("3/scale", "encoder_attn_layer_norm.weight"),
                ("3/bias", "encoder_attn_layer_norm.bias"),
            ]
            attentions += [(1, "encoder_attn")]
        layer = {f"LayerNorm_{number}": name for number, name in norms}
        layer |= {
            f"FlaxBartAttention_{n}/{p}_proj/kernel": f"{a}.{p}_proj.weight"
            for n, a in attentions
            for p in ("q", "k", "v", "out")
        }
        layer |= {f"GLU_0/LayerNorm_{n}/bias": f"glu.ln{n}.bias" for n in (0, 1)}
        layer |= {f"GLU_0/Dense_{n}/kernel": f"glu.fc{n}.weight" for n in (0, 1, 2)}
        for flax_name, name in layer.items():
            values = [state[f"layers.{i}.{name}"].T for i in range(peer.layers)]
            if scanned:
                put(tree, f"{root}/layers/FlaxBart{side}Layers/{flax_name}", np.stack(values))
            else:
                for i, value in enumerate(values):
                    put(tree, f"{root}/layers/FlaxBart{side}Layer_{i}/{flax_name}", np.ascontiguousarray(value))
    put(tree, "lm_head/kernel", np.ascontiguousarray(peer.decoder.state_dict()["lm_head.weight"].numpy().T))
    return tree


def flax_vqgan(state: dict) -> dict:
    """Taming's names as vqgan-jax has them: down_0/block_1, mid/attn_1, kernels [height, width, in, out]."""
    tree = {}
    for key, value in state.items():
        parts, value = key.split("."), value.numpy()
        leaf = parts.pop()
        joined = []
        for part in parts:
            if part.isdecimal():
                joined[-1] += f"_{part}"
            else:
                joined.append(part)
        if leaf == "weight":
            leaf = "embedding" if "embedding" in joined else "kernel" if value.ndim == 4 else "scale"
        put(tree, "/".join([*joined, leaf]), np.ascontiguousarray(value.transpose(2, 3, 1, 0)) if value.ndim == 4 else value)
    return tree


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    return MinDalleFiles(tmp_path_factory.mktemp("min-dalle"), text_vocab=600, detoker=False)


@pytest.fixture(scope="module")
def vqgan_of_mini():
    return plain.vqgan_state(codes=16384, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, peer, vqgan_of_mini):
    folder = tmp_path_factory.mktemp("dalle-mini")
    (folder / "vqgan").mkdir()
    (folder / "flax_model.msgpack").write_bytes(to_bytes(flax_prior(peer, scanned=True)))
    (folder / "vqgan" / "flax_model.msgpack").write_bytes(to_bytes(flax_vqgan(vqgan_of_mini)))
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["the red fox and a cat"] * 3, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens(["<mask>"])
    tokenizer._tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("scanned", [True, False])
def test_the_prior_s_tensors_are_min_dalle_s(peer, folder, tmp_path, scanned):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(to_bytes(flax_prior(peer, scanned)))
    ours = min_dalle.convert_prior(*dalle_mini.prior_tensors(dalle_mini.read_flax(path), path))
    files = min_dalle.find(peer.folder)
    expected = min_dalle.convert_prior(read_torch(files["encoder"]), read_torch(files["decoder"])).state_dict()
    assert set(ours.state_dict()) == set(expected)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, expected[key].float()), key


@pytest.fixture(scope="module")
def pipe(folder, tmp_path_factory):
    """What `load` gives: converted, saved and loaded again in float32."""
    return load_published(folder, tmp_path_factory)


@torch.no_grad()
def test_states_logits_and_greedy_tokens(peer, pipe):
    """The peer here is min-dalle's module with the tensors that flax wrote: the formats hold one architecture."""
    ids = encode_prompts(pipe.text_tokenizer, ["The red fox!", ""], 64, "dalle-mini")
    assert ids[1, :3].tolist() == [0, 2, 1] and pipe.config.text_normalizer == "dalle-mini"
    for row in range(2):
        text = ids[row] != 1
        states = pipe.prior.encode_text(ids)[0][row, text]
        torch.testing.assert_close(states, peer.encode(ids[row : row + 1])[0, text], atol=1e-4, rtol=0)
    tokens = torch.randint(16384, (1, 255), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pipe.prior(ids[:1], tokens)[0], peer.logits(ids[:1], tokens), atol=1e-4, rtol=0)
    steps = generate(Engine(pipe.prior), ids[:1], ids[1:], torch.zeros(1, 256), SamplingSettings(0.0, 0, 1.0, 4.0))
    for _ in range(30):
        drawn = next(steps)
    steps.close()
    assert drawn[0, :30].tolist() == peer.greedy(ids[:1], ids[1:], 4.0, 30).tolist()


@torch.no_grad()
def test_vqgan_pixels_and_tokens(pipe, vqgan_of_mini):
    model, peer = pipe.image_tokenizer, plain.VQGAN(vqgan_of_mini)
    tokens = torch.randint(16384, (1, 16, 16))
    expected = peer.pixels(tokens).clamp(0, 1)
    assert expected.std() > 0.1
    torch.testing.assert_close((image_tokenizer.decode(model, tokens).double() + 1) / 2, expected, atol=1e-4, rtol=0)
    pixels = torch.rand(1, 3, 256, 256)
    ours = image_tokenizer.encode(model, pixels * 2 - 1)
    assert (ours == peer.tokens(pixels)).float().mean() > 0.98  # among 16,384 random codes some are as near


def test_the_folder_that_hf_download_makes(folder, tmp_path, monkeypatch):
    """As the README says: the model's repository into a folder, that of the VQGAN into `vqgan` inside it."""
    mini = tmp_path / "mini"
    with local.serve() as (hub, url):
        local.use(url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
        hub.add("dalle-mini/dalle-mini", folder)
        weights = hub.repos["dalle-mini/dalle-mini"].pop("vqgan/flax_model.msgpack")
        hub.repos["dalle-mini/dalle-mini"] |= {
            "README.md": b"# mini",
            "enwiki-words-frequency.txt": b"the 1",
            "merges.txt": b"",
        }
        hub.repos["dalle-mini/vqgan_imagenet_f16_16384"] = {"flax_model.msgpack": weights, "config.json": b"{}"}
        huggingface_hub.snapshot_download("dalle-mini/dalle-mini", local_dir=mini)  # what the command calls
        huggingface_hub.snapshot_download("dalle-mini/vqgan_imagenet_f16_16384", local_dir=mini / "vqgan")
    assert (mini / ".cache" / "huggingface").is_dir() and (mini / "vqgan" / ".cache" / "huggingface").is_dir()

    # A msgpack has no checksum of its own; the one that the command noted finds a bit that turned on the disk.
    path = mini / "vqgan" / "flax_model.msgpack"
    good, times = path.read_bytes(), path.stat()
    bad = good[:-5] + bytes([good[-5] ^ 1]) + good[-4:]
    path.write_bytes(bad)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ModelError, match="vqgan/flax_model.msgpack is damaged .wrong checksum"):
        dalle_core.load(mini, device="cpu", clip="none")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**10))
    downloads.check_local(path)  # changed after the download: it is the user's own
    path.write_bytes(good)
    pipe = dalle_core.load(mini, device="cpu", clip="none")
    assert pipe.prior.config.hidden_size == 128 and image_tokenizer.has_encoder(pipe.image_tokenizer)


def test_text_normalizer():
    """What dalle-mini's TextNormalizer gives, by reading its source rule by rule."""
    for text, expected in {
        "A Café,  with 1,000 people!": " a cafe, with 1000 people",
        "it's 3.5/5 &amp; more": " it's 3.5/5 & more",
        "the well-known <b>fox</b> http://a.b/c": " the well known fox",
        "#sunset_over: the (sea)": " sunset over, the, sea",
        'sooooo "good"': ' so " good "',
        "🦊 runs": " fox, runs",
        "<PERSON>, <person> and <person> by the sea": " people by the sea",
        "<person> smiles": " a person smiles",
    }.items():
        assert text_normalizer.dalle_mini(text) == expected


# ---------------------------------------------------------------- what is damaged


def reads(content: bytes, path):
    path.write_bytes(content)
    return min_dalle.convert_prior(*dalle_mini.prior_tensors(dalle_mini.read_flax(path), path))


def test_damaged_msgpack_is_an_error_and_not_a_bomb(peer, folder, tmp_path):
    path = tmp_path / "flax_model.msgpack"
    good = (folder / "flax_model.msgpack").read_bytes()
    array = msgpack.packb(([2], "float32", b"\0" * 8))
    bombs = {
        "truncated": good[: len(good) // 2],
        "empty": b"",
        "nested maps": b"\x81\xa1a" * 100_000 + b"\xc0",
        "a map of 2**32 entries": b"\xdf\xff\xff\xff\xff" + b"\xa1a\xc0",
        "a list of 2**32 entries": b"\xdd\xff\xff\xff\xff",
        "4 GB of bytes": b"\x81\xa1a\xc6\xff\xff\xff\xff",
        "an array of a huge shape": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(([2**40], "float32", b"\0" * 8)))}),
        "an array of objects": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(([1], "object", b"\0" * 8)))}),
        "a complex number": msgpack.packb({"a": msgpack.ExtType(2, array)}),
        "no map": msgpack.packb([1, 2, 3]),
        "layers without end": msgpack.packb(
            {
                "model": {
                    "encoder": {
                        "layers": {
                            "FlaxBartEncoderLayers": {
                                "LayerNorm_0": {"bias": msgpack.ExtType(1, msgpack.packb(([2**40, 0], "float32", b"")))}
                            }
                        }
                    }
                }
            }
        ),
        "very many layers": msgpack.packb(
            {
                "model": {
                    "encoder": {
                        "layers": {
                            "FlaxBartEncoderLayers": {
                                "LayerNorm_0": {
                                    "bias": msgpack.ExtType(1, msgpack.packb(([10**6, 1], "float16", bytes(2 * 10**6))))
                                }
                            }
                        }
                    }
                }
            }
        ),
        "a pickle": b"\x80\x04cos\nsystem\n",
        "two files": good + good,
        "deep": _nested(array, 40),
    }
    for name, content in bombs.items():
        with pytest.raises(ModelError, match="flax_model.msgpack"):
            reads(content, path)
            pytest.fail(name)


def _nested(array: bytes, depth: int) -> bytes:
    tree = msgpack.ExtType(1, array)
    for _ in range(depth):
        tree = {"a": tree}
    return msgpack.packb(tree)


def test_flipped_bits_are_an_error_or_another_number(folder, tmp_path):
    """A msgpack has no checksum: a flip in an array's bytes is another weight, anywhere else it must be named."""
    good, path = (folder / "vqgan" / "flax_model.msgpack").read_bytes(), tmp_path / "flax_model.msgpack"
    for offset in list(range(0, 200, 7)) + list(range(0, len(good), len(good) // 40)):
        flipped = good[:offset] + bytes([good[offset] ^ 0x10]) + good[offset + 1 :]
        path.write_bytes(flipped)
        try:
            flat = dalle_mini.read_flax(path)
        except ModelError as error:
            assert "flax_model.msgpack" in str(error)
        else:
            assert sum(value.numel() for value in flat.values()) <= len(good) // 4


def test_wrong_keys_and_config_are_named(peer, folder, tmp_path):
    def fails(message, tree=None, **config):
        target = tmp_path / str(len(list(tmp_path.iterdir())))
        (target / "vqgan").mkdir(parents=True)
        for name in ("flax_model.msgpack", "vqgan/flax_model.msgpack", "tokenizer.json"):
            (target / name).write_bytes((folder / name).read_bytes())
        if tree:
            (target / "flax_model.msgpack").write_bytes(to_bytes(tree))
        (target / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
        with pytest.raises(ModelError, match=message):
            dalle_mini.convert(dalle_mini.find(target))

    tree = flax_prior(peer, True)
    del tree["model"]["encoder"]["final_ln"]
    fails("final_ln.bias is missing", tree)
    tree = flax_prior(peer, True)
    tree["model"]["decoder"]["intruder"] = {"kernel": np.zeros((2, 2), np.float32)}
    fails("model/decoder/intruder/kernel is unexpected", tree)
    tree = flax_prior(peer, True)
    tree["model"]["encoder"]["layers"]["FlaxBartEncoderLayers"]["GLU_0"]["Dense_2"]["kernel"][1, 2, 3] = np.nan
    fails("layers.1.glu.fc2.weight holds NaN", tree)
    fails("d_model is 1024", d_model=1024)
    fails("config.json: d_model is 1000000000, but the weights have 128", d_model=10**9)
    fails("config.json: decoder_layers is 1000000, but the weights have 2", decoder_layers=10**6)
    fails("ln_positions is 'postln'", ln_positions="postln")
