"""Loading is strict and safe: what is wrong with a model folder is named, and nothing in it ever runs."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import dalle_core
from dalle_core import ModelError

WEIGHTS = "prior/diffusion_pytorch_model.safetensors"


def change(path, edit):
    state = load_file(path)
    edit(state)
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize("file", [WEIGHTS, "image_tokenizer/diffusion_pytorch_model.safetensors", "clip/model.safetensors"])
def test_missing_unexpected_and_misshapen_keys_name_themselves(saved, file):
    key = sorted(load_file(saved / file))[3]
    value = load_file(saved / file)[key]
    change(saved / file, lambda state: state.pop(key))
    with pytest.raises(ModelError, match=f"{key} is missing"):
        dalle_core.load(saved)
    change(saved / file, lambda state: state.update({key: torch.zeros(3, 3, 3)}))
    with pytest.raises(ModelError, match=f"{key} has the shape"):
        dalle_core.load(saved)
    change(saved / file, lambda state: state.update({key: value, "intruder.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match="intruder.weight is unexpected"):
        dalle_core.load(saved)
    change(saved / file, lambda state: state.pop("intruder.weight"))
    dalle_core.load(saved)


@pytest.mark.parametrize(
    "file",
    ["model_index.json", "prior/config.json", "clip/config.json", "text_tokenizer/tokenizer.json",
     "clip_processor/preprocessor_config.json", WEIGHTS, "clip/model.safetensors"],
)  # fmt: skip
def test_missing_and_damaged_files_name_themselves(saved, file):
    content = (saved / file).read_bytes()
    name = file.split("/")[-1]
    for damaged in (content[: len(content) // 2], b"", b"\x89PNG not this"):
        (saved / file).write_bytes(damaged)
        with pytest.raises(ModelError, match=name):
            dalle_core.load(saved)
    (saved / file).unlink()
    with pytest.raises(ModelError, match=name):
        dalle_core.load(saved)


def test_a_pickle_never_runs(saved, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (saved / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    (saved / "prior" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError):
        dalle_core.load(saved)
    assert not (tmp_path / "ran").exists()


def test_config_that_disagrees_with_the_weights(saved):
    path = saved / "prior" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ModelError, match="config.json asks for"):
        dalle_core.load(saved)
    path.write_text(json.dumps(config | {"num_layers": "many"}))
    with pytest.raises(ModelError, match="does not describe a GPTPrior"):
        dalle_core.load(saved)


@pytest.mark.parametrize(
    "file, changes, named",
    [
        ("model_index.json", {"defaults": {"num_candidates": "many"}}, "num_candidates is 'many'"),
        ("model_index.json", {"defaults": 3}, "model_index.json"),
        ("model_index.json", {"examples": [3]}, "examples must be a list"),
        ("model_index.json", {"text_normalizer": "mega"}, "text_normalizer is 'mega'"),
        ("model_index.json", {"name": 3}, "name must be text"),
        ("prior/config.json", {"num_heads": 5}, "does not describe a GPTPrior"),
        ("image_tokenizer/config.json", {"norm_num_groups": 7}, "does not describe a VQModel"),
        ("clip/config.json", {"text_config": {"layer_norm_eps": None}}, "does not describe a CLIPModel"),
        ("clip/config.json", {"vision_config": {"num_attention_heads": 5}}, "does not describe a CLIPModel"),
        ("clip_processor/preprocessor_config.json", {"size": 3}, "clip_processor makes pictures of the shape"),
        ("clip_processor/preprocessor_config.json", {"image_mean": None}, "clip_processor: pictures cannot be read"),
    ],
)
def test_a_config_that_cannot_work_is_named_at_loading_not_at_drawing(saved, file, changes, named):
    content = json.loads((saved / file).read_text())
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(content[key], dict) and isinstance(value, dict) else value
    (saved / file).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=named):
        dalle_core.load(saved)


def test_parts_that_do_not_belong_together(saved):
    path = saved / "image_tokenizer"
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"num_vq_embeddings": 32}))
    change(
        path / "diffusion_pytorch_model.safetensors",
        lambda state: state.update({"quantize.embedding.weight": state["quantize.embedding.weight"][:32]}),
    )
    with pytest.raises(ModelError, match="32 codes, the prior 64"):
        dalle_core.load(saved)


def test_a_text_tokenizer_with_ids_beyond_the_prior_s(saved):
    path = saved / "text_tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab[next(piece for piece in vocab if not piece.startswith("["))] = 5000  # no more entries than before
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="has ids up to 5000, the prior only"):
        dalle_core.load(saved)


def test_json_that_is_nested_without_end(saved):
    (saved / "prior" / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ModelError, match="config.json cannot be read as JSON"):
        dalle_core.load(saved)


def test_foreign_folder_and_unknown_names(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ModelError, match="StableDiffusionPipeline"):
        dalle_core.load(tmp_path)
    with pytest.raises(ModelError, match="emoji"):
        dalle_core.load("no-such-model")
    with pytest.raises(ModelError, match="someone/no-such-model"):
        dalle_core.load("someone/no-such-model")  # the tests run offline: answered from the cache, at once


@pytest.mark.parametrize("device", ["cuda:99", "tpu0", "meta", "mps"])
def test_bad_devices(saved, device):
    if device == "mps" and torch.backends.mps.is_available():
        device = "cuda"  # a Mac has no CUDA
    with pytest.raises(ModelError, match=device.split(":")[0]):
        dalle_core.load(saved, device=device)


def test_dtype(saved):
    assert dalle_core.load(saved, dtype=torch.bfloat16).prior.dtype == torch.bfloat16
    assert dalle_core.load(saved).prior.dtype == torch.float32
