"""LoRA: what peft writes is read, equals peft's own merge, and is told apart from the model without it."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

import dalle_core
from dalle_core import ModelError
from dalle_core.__main__ import main
from dalle_core.lora import CONFIG, WEIGHTS, read_lora
from dalle_core.priors.bart import BartPrior
from dalle_core.request import DrawingRequest
from dalle_core.studio.holder import ModelHolder
from dalle_core.studio.links import query
from dalle_core.studio.pool import read_entry, to_entry
from dalle_core.studio.store import Store
from dalle_core.studio.studio import Studio
from demo.models import facts, labelled

TARGETS = {"GPTPrior": ["qkv", "proj", "mlp.0", "mlp.2"], "BartPrior": ["qkv", "q", "kv", "out", "gate_and_value"]}


def with_peft(prior, folder, rank=4, **config):
    """A LoRA of random numbers as peft writes it; returns peft's model."""
    config = {"target_modules": TARGETS[type(prior).__name__], "lora_alpha": 6} | config
    model = get_peft_model(prior, LoraConfig(r=rank, **config))
    generator = torch.Generator().manual_seed(1)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.3, generator=generator)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(the folder of a saved pipeline, a LoRA for it, peft's own merge of the two)."""
    from tests.conftest import make_pipeline

    folder, pipe = tmp_path_factory.mktemp("lora"), make_pipeline()
    pipe.save_pretrained(folder / "model")
    merged = with_peft(pipe.prior, folder / "foxes").merge_and_unload()
    return folder / "model", folder / "foxes", merged


@pytest.fixture
def own_lora(model, tmp_path):
    """A copy that a test may damage."""
    for file in (CONFIG, WEIGHTS):
        (tmp_path / file).write_bytes((model[1] / file).read_bytes())
    return tmp_path


def load(model, lora, **arguments):
    return dalle_core.load(model[0], device="cpu", clip="none", lora=lora, **arguments)


@pytest.fixture(scope="module")
def with_lora(model):
    return load(model, model[1])


@pytest.fixture(scope="module")
def plain(model):
    return load(model, None)


def change(folder, **values):
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8")) | values
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def test_the_weights_are_those_that_peft_merges(model):
    pipe = load(model, model[1], packed=False, dtype=torch.float32)
    for key, value in pipe.prior.state_dict().items():
        torch.testing.assert_close(value, model[2].state_dict()[key], atol=1e-6, rtol=1e-6)
    before = load_file(model[0] / "prior" / "diffusion_pytorch_model.safetensors")
    changed = {key for key, value in before.items() if not torch.equal(value, pipe.prior.state_dict()[key])}
    assert changed == {f"blocks.{i}.{part}.weight" for i in (0, 1) for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")}


@torch.no_grad()
def test_packed_and_8_bit_weights_have_the_change(model, with_lora, plain):
    """Merged in float32 and then treated as any weight: within what is rounded."""
    text, image = torch.randint(5, 50, (2, 8)), torch.randint(64, (2, 9))
    exact = model[2](text, image)
    eight_bit = load(model, model[1], dtype=torch.int8)
    for pipe, bound in ((with_lora, 1e-4), (eight_bit, 0.1)):
        assert (pipe.prior(text, image) - exact).abs().mean() < bound * exact.std()
    assert (plain.prior(text, image) - exact).abs().mean() > 0.5 * exact.std()


def small_bart():
    torch.manual_seed(0)
    prior = BartPrior(
        50,
        8,
        64,
        16,
        encoder_layers=2,
        decoder_layers=2,
        num_heads=2,
        hidden_size=32,
        ffn_size=48,
        embedded_image_tokens=65,
        start_token_id=64,
    )
    return prior.eval()


@pytest.mark.parametrize("slope", [{}, {"use_rslora": True}])
def test_an_encoder_decoder_prior_takes_a_lora_too(tmp_path, slope):
    prior = small_bart()
    lora, weights = tmp_path / "lora", {key: value.clone() for key, value in prior.state_dict().items()}
    merged = with_peft(prior, lora, **slope).merge_and_unload().state_dict()
    plain = small_bart()
    plain.load_state_dict(weights)
    lora = read_lora(lora)
    changes = lora.changes(plain)
    assert len(changes) == 2 * 4 + 2 * 7
    for key, value in weights.items():
        value = lora.merged(key, value, changes[key]) if key in changes else value
        torch.testing.assert_close(value, merged[key], atol=1e-6, rtol=1e-6)


CONFIGS = [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ({"use_dora": True}, "use_dora is 'True'; only plain LoRA"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"rank_pattern": {"qkv": 8}}, "rank_pattern"),
    ({"modules_to_save": ["head"]}, "modules_to_save"),
    ({"init_lora_weights": "pissa"}, "pissa"),
    ({"r": 10**12}, "r is '1000000000000'"),
    ({"r": 0}, "r is '0'"),
    ({"r": True}, "r is 'True'"),
    ({"r": 8}, "lora_B.weight has the shape"),
    ({"lora_alpha": float("nan")}, "lora_alpha is 'nan'"),
    ({"lora_alpha": 10**400}, "lora_alpha"),
    ({"target_modules": ".*(a+)+b"}, "target_modules must be a list"),
    ({"target_modules": ["q_proj"]}, "unexpected"),
    ({"target_modules": ["qkv", "proj", "mlp.0"]}, r"mlp\.2\.lora_A\.weight is unexpected"),
    ({"target_modules": ["qkv", "proj", "mlp.0", "mlp.2", "head"]}, r"head\.lora_B\.weight is missing"),
    ({"base_model_name_or_path": "dalle-mini"}, "trained for the model 'dalle-mini', not for"),
    ({"revision": "0123456789ab"}, "version 0123456789ab of"),
    ({"base_model_name_or_path": 7}, "must be text"),
]


def open_on(pipe, folder):
    """What `load` does with a LoRA, but for the model's own weights."""
    lora = read_lora(folder)
    lora.check_base({"tiny"}, pipe.revision)
    return [lora.merged(key, pipe.prior.state_dict()[key], change) for key, change in lora.changes(pipe.prior).items()]


@pytest.mark.parametrize("values, said", CONFIGS, ids=lambda value: str(value)[:30])
def test_a_configuration_that_does_not_fit_is_named(tiny_pipeline, own_lora, values, said):
    change(own_lora, **values)
    with pytest.raises(ModelError, match=said):
        open_on(tiny_pipeline, own_lora)


def test_the_model_that_it_was_trained_for_opens_it(tiny_pipeline, own_lora):
    for base in ("tiny", "somebody/tiny", None):
        change(own_lora, base_model_name_or_path=base, revision=tiny_pipeline.revision or None)
        assert len(open_on(tiny_pipeline, own_lora)) == 8


def test_damaged_weights_are_named(tiny_pipeline, own_lora):
    tensors = load_file(own_lora / WEIGHTS)
    key = "base_model.model.blocks.1.attn.qkv.lora_B.weight"
    for value, said in (
        (tensors[key][:-1].clone(), f"{key} has the shape"),
        (torch.full_like(tensors[key], torch.nan), "NaN or infinity"),
        (torch.full_like(tensors[key], 3e38), "becomes NaN or infinity with this LoRA"),
        (tensors[key].int(), "not floating-point"),
    ):
        save_file(tensors | {key: value.contiguous()}, own_lora / WEIGHTS)
        with pytest.raises(ModelError, match=said):
            open_on(tiny_pipeline, own_lora)
    for extra in ("base_model.model.text_embedding.lora_A.weight", "base_model.model.blocks.7.attn.qkv.lora_A.weight"):
        save_file(tensors | {extra: torch.zeros(4, 32)}, own_lora / WEIGHTS)
        with pytest.raises(ModelError, match="is unexpected"):
            open_on(tiny_pipeline, own_lora)
    (own_lora / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot be read"):
        open_on(tiny_pipeline, own_lora)


def test_what_is_not_there_is_said(model, own_lora):
    (own_lora / WEIGHTS).unlink()
    (own_lora / "adapter_model.bin").write_bytes(b"a pickle is not looked at")
    with pytest.raises(ModelError, match=f"{WEIGHTS} is missing"):
        load(model, own_lora)
    with pytest.raises(ModelError, match="There is no LoRA"):
        load(model, own_lora / "nowhere")


def test_a_picture_says_which_lora_drew_it(with_lora, plain, own_lora, tmp_path):
    """The picture's recipe, the history's entry and the link name it; without it the page says what is missing."""
    assert with_lora.revision == read_lora(own_lora).revision(plain.revision) != plain.revision
    change(own_lora, lora_alpha=5)
    assert read_lora(own_lora).revision(plain.revision) != with_lora.revision
    studio, bare = (
        Studio(ModelHolder(pipe, "tiny"), Store(tmp_path / pipe.name, also=[tmp_path])) for pipe in (with_lora, plain)
    )
    request = DrawingRequest("a red fox", num_candidates=1, seed=7)
    [picture] = [*studio.draw("me", request)][-1].pictures
    path = tmp_path / "saved.png"
    path.write_bytes(picture.enlarged())
    assert json.loads(Image.open(path).info["dalle"])["model"] == "tiny + foxes"
    assert torch.equal(studio.open_saved("me", path).drawn.tokens, picture.drawn.tokens)
    with pytest.raises(dalle_core.InputError, match="drawn with the LoRA 'foxes': choose the model 'tiny . foxes', or start"):
        bare.open_saved("me", path)
    entry = to_entry([picture])
    assert [len(pictures) for _, pictures in studio.draw_again("me", entry)] == [1]
    with pytest.raises(dalle_core.InputError, match="This entry was drawn with the LoRA 'foxes'"):
        read_entry(entry, plain.name, plain.revision, plain.limits)
    assert "model=tiny+%2B+foxes" in query(picture.drawn)


def test_the_pages_list_has_the_model_with_its_lora_and_without(with_lora, plain):
    asked = []

    def load_chosen(source, tell):
        asked.append(source)
        return plain

    holder = ModelHolder(with_lora, "emoji + foxes", load_chosen, model="emoji")
    assert holder.choices[:3] == ["emoji + foxes", "emoji", "dalle-mini"] and holder.loaded.bytes > 0
    assert [label.split(" · ")[1] for label, _ in labelled(holder)][:2] == ["here", "here"]
    assert "LoRA: foxes" in facts(holder.loaded)
    list(holder.use("emoji"))
    assert asked == ["emoji"] and holder.loaded.model == "emoji" and "LoRA" not in facts(holder.loaded)
    with pytest.raises(ModelError, match="not one of this page's models"):
        list(holder.use("emoji + ../../secret"))
    alone = ModelHolder(with_lora, "emoji + foxes", model="emoji")  # a public page
    assert alone.choices == ["emoji + foxes"]


def test_the_command_draws_with_a_lora(model, with_lora, tmp_path, capsys):
    arguments = ["sample", "a red fox", "--model", str(model[0]), "--clip", "none", "--candidates", "1", "--seed", "7"]
    arguments += ["--out", str(tmp_path)]
    main([*arguments, "--lora", str(model[1])])
    [path] = tmp_path.glob("*.png")
    recipe = json.loads(Image.open(path).info["dalle"])
    [expected] = with_lora("a red fox", num_candidates=1, seed=7).candidates
    assert recipe["model"] == "tiny + foxes" and recipe["tokens"] == expected.tokens.tolist()
    with pytest.raises(SystemExit):
        main([*arguments, "--lora", str(tmp_path)])
    assert "adapter_config.json is missing" in capsys.readouterr().err
