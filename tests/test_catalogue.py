"""Loading is strict and safe: what is wrong with a model folder is named, and nothing in it ever runs."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

import dalle_core
from dalle_core import BartPrior, ModelError, catalogue

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
    [
        "model_index.json",
        "prior/config.json",
        "clip/config.json",
        "text_tokenizer/tokenizer.json",
        "clip_processor/preprocessor_config.json",
        WEIGHTS,
        "clip/model.safetensors",
    ],
)
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
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"hidden_size": 64}), encoding="utf-8")
    with pytest.raises(ModelError, match="config.json asks for"):
        dalle_core.load(saved)
    path.write_text(json.dumps(config | {"num_layers": "many"}), encoding="utf-8")
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
    content = json.loads((saved / file).read_text(encoding="utf-8"))
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(content[key], dict) and isinstance(value, dict) else value
    (saved / file).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match=named):
        dalle_core.load(saved)


@pytest.mark.parametrize(
    "file, changes, named",
    [
        ("prior/config.json", {"num_layers": 10**6}, "num_layers is 1000000, but the weights have 2"),
        ("prior/config.json", {"hidden_size": 10**9}, "hidden_size is 1000000000, but no size of the weights is above 65536"),
        ("prior/config.json", {"text_length": 10**4000}, "text_length is 10000000000000000000, but"),
        ("image_tokenizer/config.json", {"layers_per_block": 10**6}, "layers_per_block is 1000000, but the weights have 1"),
        (
            "image_tokenizer/config.json",
            {"block_out_channels": [16] * 10**5},
            "block_out_channels is 100000, but the weights have 3",
        ),
        ("image_tokenizer/config.json", {"block_out_channels": [16, 10**9, 16]}, "block_out_channels is 1000000000"),
        ("image_tokenizer/config.json", {"num_vq_embeddings": 10**9}, "num_vq_embeddings is 1000000000"),
        ("clip/config.json", {"vision_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers of vision_config is 1000000"),
        ("clip/config.json", {"vision_config": {"image_size": 10**9}}, "image_size is 1000000000"),
        ("clip/config.json", {"text_config": {"num_labels": 10**9}}, "num_labels is 1000000000"),
        ("clip_processor/preprocessor_config.json", {"size": {"height": 10**6}}, "pictures cannot be read with it .size is"),
        ("model_index.json", {"defaults": {"num_candidates": 10**9}}, "num_candidates is '1000000000'"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(saved, file, changes, named, monkeypatch):
    content = json.loads((saved / file).read_text(encoding="utf-8"))
    for key, value in changes.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    (saved / file).write_text(json.dumps(content), encoding="utf-8")
    modules, start = [], torch.nn.Module.__init__

    def counted(module, *arguments, **options):
        modules.append(None)
        assert len(modules) < 2000  # a sound model of this size has some hundreds
        start(module, *arguments, **options)

    monkeypatch.setattr(torch.nn.Module, "__init__", counted)
    with pytest.raises(ModelError, match=named) as error:
        dalle_core.load(saved)
    assert file.split("/")[0] in str(error.value) and len(str(error.value)) < 1000


def test_layers_of_an_encoder_and_decoder_are_counted_too(tmp_path):
    shapes = {
        "encoder.0.glu.ln0.bias": (8,),
        "encoder.1.glu.ln0.bias": (8,),
        "decoder.0.glu.ln0.bias": (8,),
        "head.weight": (70_000, 8),
    }
    config = {"encoder_layers": 2, "decoder_layers": 1, "image_vocab_size": 70_000}
    catalogue._check_config(BartPrior, config, tmp_path / "config.json", shapes)
    for key, value in (("encoder_layers", 10**6), ("decoder_layers", 2), ("image_vocab_size", 70_001)):
        with pytest.raises(ModelError, match=f"config.json: {key} is {value}"):
            catalogue._check_config(BartPrior, config | {key: value}, tmp_path / "config.json", shapes)
    # Weights that go with it, but of no model: a name and an empty tensor are a few bytes, a layer is not.
    shapes |= {f"decoder.{i}.x": (0,) for i in range(1500)}
    with pytest.raises(ModelError, match="have 1502 layers; no model has more than 1000"):
        catalogue._check_config(BartPrior, config | {"decoder_layers": 1500}, tmp_path / "config.json", shapes)


def test_a_config_of_endless_length_is_not_read(saved):
    path = saved / "prior" / "config.json"
    with path.open("ab") as file:
        file.truncate(2**30)  # takes no room on the disk
    with pytest.raises(ModelError, match="prior/config.json is longer than any of a model"):
        dalle_core.load(saved)


def test_parts_that_do_not_belong_together(saved):
    path = saved / "image_tokenizer"
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps(config | {"num_vq_embeddings": 32}), encoding="utf-8")
    change(
        path / "diffusion_pytorch_model.safetensors",
        lambda state: state.update({"quantize.embedding.weight": state["quantize.embedding.weight"][:32]}),
    )
    with pytest.raises(ModelError, match="32 codes, the prior 64"):
        dalle_core.load(saved)


def test_a_text_tokenizer_with_ids_beyond_the_prior_s(saved):
    path = saved / "text_tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocab = content["model"]["vocab"]
    vocab[next(piece for piece in vocab if not piece.startswith("["))] = 5000  # no more entries than before
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ModelError, match="has ids up to 5000, the prior only"):
        dalle_core.load(saved)


def test_json_that_is_nested_without_end(saved):
    (saved / "prior" / "config.json").write_text('{"a":' * 100_000, encoding="utf-8")
    with pytest.raises(ModelError, match="config.json cannot be read as JSON"):
        dalle_core.load(saved)


def test_foreign_folder_and_unknown_names(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
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
