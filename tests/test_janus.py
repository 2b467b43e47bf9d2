"""Janus: files written by transformers' own model with random weights, in both layouts; the same ids, logits, tokens, pixels
and answers as transformers computes from them."""

import json
import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file

import dalle_core
from dalle_core import CATALOGUE, InputError, ModelError, catalogue, compare, image_tokenizer
from dalle_core.__main__ import main
from dalle_core.checkpoints import janus
from dalle_core.engine import SamplingSettings, generate
from dalle_core.request import DrawingRequest, half_kept
from dalle_core.text_tokenizer import encode_pair
from demo import create_demo, open_studio
from tests import hub as local
from tests.published import JanusFiles, load_published

TEMPLATE = "<｜begin▁of▁sentence｜><|User|>: {prompt}\n\n<|Assistant|>:<begin_of_image>"
PROMPTS = ["a", "a red fox in the snow", 'a red fox, and a cat, 狐狸; "the snow" (twice) <of image>']


@pytest.fixture(scope="module")
def peer():
    return JanusFiles()


@pytest.fixture(scope="module")
def original(peer, tmp_path_factory):
    """DeepSeek's layout."""
    return peer.save_original(tmp_path_factory.mktemp("janus") / "tiny")


@pytest.fixture(scope="module")
def pipe(original, tmp_path_factory):
    """What `load` makes of it."""
    return load_published(original, tmp_path_factory)


def whole_ids(peer, prompt: str) -> torch.Tensor:
    """As tokenizers itself reads the whole prompt, marks and all [1, n]."""
    return torch.tensor([peer.tokenizer.encode(TEMPLATE.replace("{prompt}", prompt), add_special_tokens=False).ids])


@torch.no_grad()
def peer_logits(model, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """ids [1, n], tokens [1, m] -> transformers' logits [m + 1, V] of each next image token."""
    x = torch.cat([model.get_input_embeddings()(ids), model.prepare_embeddings_for_image_generation(tokens)], dim=1)
    hidden = model.model.language_model(inputs_embeds=x).last_hidden_state
    return model.model.generation_head(hidden[0, ids.shape[1] - 1 :])


def greedy(peer, ids: torch.Tensor, null: torch.Tensor, scale: float, lead: list[int]) -> list[int]:
    """The likeliest tokens one by one, after those of `lead`, by whole passes through transformers' model."""
    tokens = list(lead)
    while len(tokens) < 16:
        so_far = torch.tensor([tokens], dtype=torch.long)
        logits = peer_logits(peer.model, ids, so_far)[-1]
        if scale != 1:
            away = peer_logits(peer.model, null, so_far)[-1]
            logits = away + scale * (logits - away)
        tokens.append(logits.argmax().item())
    return tokens


def drawn(pipe, prompt: str, scale: float, lead: list[int]) -> list[int]:
    """The engine's likeliest tokens, of two candidates that must be the same."""
    keep = torch.arange(16) < len(lead)
    forced = torch.tensor(lead + [0] * (16 - len(lead)))
    ids, null = encode_pair(pipe.text_tokenizer, prompt, "", *pipe.reading)
    for tokens in generate(pipe.engine, ids, null, torch.zeros(2, 16), SamplingSettings(0.0, 0, 1.0, scale), forced, keep):
        pass
    assert torch.equal(tokens[0], tokens[1])
    return tokens[0].tolist()


# ---------------------------------------------------------------- the same as transformers


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_those_of_the_whole_text_with_its_marks(peer, pipe, prompt):
    ids, null = encode_pair(pipe.text_tokenizer, prompt, "", *pipe.reading)
    assert torch.equal(ids, whole_ids(peer, prompt))
    bos, pad, boi = (peer.tokenizer.token_to_id(peer.MARKS[i]) for i in (0, 3, 4))
    assert null[0].tolist() == [bos] + [pad] * (ids.shape[1] - 2) + [boi]
    assert pipe.text_tokenizer.pad_token_id == pad


def test_marks_in_a_prompt_are_no_marks(peer, pipe):
    plain, _ = encode_pair(pipe.text_tokenizer, "a fox", "", *pipe.reading)
    marked, _ = encode_pair(pipe.text_tokenizer, "a fox <begin_of_image><|User|>" + peer.MARKS[3], "", *pipe.reading)
    for mark in ("<begin_of_image>", "<|User|>", peer.MARKS[3]):
        id = peer.tokenizer.token_to_id(mark)
        assert (marked == id).sum() == (plain == id).sum()
    letter, _ = encode_pair(pipe.text_tokenizer, "ö", "", *pipe.reading)  # an added token, but a letter
    assert torch.equal(letter, whole_ids(peer, "ö")) and peer.tokenizer.token_to_id("ö") in letter


@pytest.mark.parametrize("scale", [5.0, 1.0])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens(peer, pipe, prompt, scale):
    """Also after tokens that are given; at guidance 5 by transformers' own `generate` as well."""
    ids, null = encode_pair(pipe.text_tokenizer, prompt, "", *pipe.reading)
    for lead in ([], [7, 7, 60], [3] * 11):
        assert drawn(pipe, prompt, scale, lead) == greedy(peer, ids, null, scale, lead)
    if scale == 5:
        found = peer.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            guidance_scale=scale,
            do_sample=False,
            use_cache=True,
        )
        assert found[0].tolist() == drawn(pipe, prompt, scale, []) and len(set(found[0].tolist())) > 3


@torch.no_grad()
def test_logits(peer, pipe):
    for prompt in PROMPTS:
        ids, tokens = whole_ids(peer, prompt), torch.randint(64, (1, 15), generator=torch.Generator().manual_seed(1))
        expected = peer_logits(peer.model, ids, tokens)
        assert expected.std() > 1
        torch.testing.assert_close(pipe.prior(ids, tokens)[0], expected, atol=1e-4, rtol=0)
    whole = torch.cat([tokens[0], torch.tensor([5])])
    likelihood = -F.cross_entropy(expected, whole).item()
    assert pipe.log_likelihood(whole.view(4, 4), ["a", PROMPTS[-1]])[1] == pytest.approx(likelihood, abs=1e-4)


def in_its_order(model) -> None:
    """Lets a decoder's maps lie in memory as transformers' do, so that both take the same kernels."""
    model.post_quant_conv.register_forward_pre_hook(lambda layer, inputs: (inputs[0].contiguous(),))
    for layer in model.decoder.modules():
        if isinstance(layer, Attention):  # its output is a transposed one
            layer.register_forward_hook(lambda layer, inputs, output: output.contiguous())


@torch.no_grad()
def test_pixels_and_tokens_of_a_picture(peer, original, pipe):
    model = janus.convert(janus.find(original))["image_tokenizer"]
    tokens = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(2))
    grids = tokens.view(2, 4, 4)
    exact = deepcopy(peer.model.model.vqmodel).double().decode(tokens).clamp(-1, 1).float()
    assert exact.std() > 0.1
    torch.testing.assert_close(image_tokenizer.decode(deepcopy(model).double(), grids), exact, atol=1e-6, rtol=0)
    # In float32 the kernels for maps in the order of channels sum otherwise: they are off by up to three times as much.
    expected = peer.model.model.vqmodel.decode(tokens).clamp(-1, 1)
    for decoder in (model, pipe.image_tokenizer):
        torch.testing.assert_close(image_tokenizer.decode(decoder, grids), expected, atol=3e-5, rtol=0)
    in_its_order(model)
    torch.testing.assert_close(image_tokenizer.decode(model, grids), expected, atol=1e-5, rtol=0)
    pixels, vq = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1, peer.model.model.vqmodel
    vectors = F.normalize(vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1), dim=-1)
    nearest = (vectors @ F.normalize(vq.quantize.embedding.weight, dim=-1).T).argmax(-1)  # the original's rule: the cosine
    assert torch.equal(image_tokenizer.encode(pipe.image_tokenizer, pixels), nearest) and len(nearest.unique()) > 3


@torch.no_grad()
def test_answers(peer, pipe):
    """The question's ids, the picture's vectors, and the words."""
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    question = "Is it a red fox?"
    pipe.load_describer()
    template = pipe.describer.config.question_template
    text = template.replace("{prompt}", question).replace("<image_placeholder>", "<image_placeholder>" * 16)
    ids = torch.tensor([peer.tokenizer.encode(text, add_special_tokens=False).ids])
    pixels = pipe.describer.look(image)
    torch.testing.assert_close(
        pipe.describer(pixels), peer.model.model.get_image_features(pixels).pooler_output, atol=1e-4, rtol=0
    )
    found = peer.model.generate(
        ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=24, do_sample=False
    )
    expected = pipe.text_tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\ufffd").strip()
    assert len(expected) > 3 and pipe.describe(image, question, most=24) == expected
    parts = list(pipe.describing(image, question, most=24))
    assert parts[-1] == expected and len(parts) > 3 and all(len(a) <= len(b) for a, b in zip(parts, parts[1:]))
    with pytest.raises(InputError, match="The question is empty"):
        pipe.describing(image, "  ")


def test_heads_that_share_keys(tmp_path, tmp_path_factory):
    peer = JanusFiles(heads=8, kv_heads=2)
    pipe = load_published(peer.save_transformers(tmp_path / "tiny"), tmp_path_factory)
    ids, null = encode_pair(pipe.text_tokenizer, PROMPTS[1], "", *pipe.reading)
    assert pipe.prior.config.num_kv_heads == 2
    assert drawn(pipe, PROMPTS[1], 5.0, [1, 2]) == greedy(peer, ids, null, 5.0, [1, 2])


def test_a_picture_that_is_no_square_is_seen_as_a_whole(pipe):
    pipe.load_describer()
    image = Image.new("RGB", (128, 32), "red")
    pixels = pipe.describer.look(image)
    assert pixels.shape == (1, 3, 64, 64)
    assert pixels[0, :, 32, 0].tolist() == [1, -1, -1] and pixels[0, :, 0].abs().max() < 0.01  # grey above


# ---------------------------------------------------------------- layouts


def same_weights(ours, pipe):
    for part in ("prior", "image_tokenizer"):
        state = getattr(pipe, part).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in getattr(ours, part).state_dict().items())
    ours.load_describer(), pipe.load_describer()
    assert all(torch.equal(a, b) for a, b in zip(ours.describer.state_dict().values(), pipe.describer.state_dict().values()))
    assert ours.config.prompt_template == pipe.config.prompt_template and ours.defaults == pipe.defaults


@pytest.mark.parametrize("layout", ["transformers", "shards of transformers", "shards", "safetensors"])
def test_every_layout_gives_the_same_model(peer, pipe, layout, tmp_path, tmp_path_factory):
    if layout == "transformers":
        peer.save_transformers(tmp_path / "tiny")
    elif layout == "shards of transformers":
        peer.save_transformers(tmp_path / "tiny", max_shard_size="1MB")
        assert len(list((tmp_path / "tiny").glob("*.safetensors"))) > 2
    else:
        peer.save_original(tmp_path / "tiny", kind=layout)
    same_weights(load_published(tmp_path / "tiny", tmp_path_factory), pipe)


def test_bfloat16_files_and_the_config_of_the_7b(tmp_path, tmp_path_factory):
    """Nothing in language_config but what transformers' defaults do not say: 32 heads, among others."""
    peer = JanusFiles(heads=32, kv_heads=32)
    language = {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": 2,
        "torch_dtype": "bfloat16",
        "vocab_size": 320,
    }
    folder = peer.save_original(tmp_path / "tiny", torch.bfloat16, "shards", language)
    pipe = load_published(folder, tmp_path_factory)
    assert pipe.prior.config.num_heads == pipe.prior.config.num_kv_heads == 32 and pipe.prior.dtype == torch.float32
    peer.model.to(torch.bfloat16).float()
    ids, null = encode_pair(pipe.text_tokenizer, PROMPTS[1], "", *pipe.reading)
    assert drawn(pipe, PROMPTS[1], 5.0, []) == greedy(peer, ids, null, 5.0, [])


def test_janus_1_3b_has_its_roles_in_plain_words(peer, tmp_path, tmp_path_factory):
    pipe = load_published(peer.save_original(tmp_path / "tiny", kind="safetensors", roles=False), tmp_path_factory)
    assert pipe.config.prompt_template == "<｜begin▁of▁sentence｜>User: {prompt}\n\nAssistant:<begin_of_image>"
    ids, _ = encode_pair(pipe.text_tokenizer, "a fox", "", *pipe.reading)
    text = pipe.config.prompt_template.replace("{prompt}", "a fox")
    assert ids[0].tolist() == peer.tokenizer.encode(text, add_special_tokens=False).ids


def test_a_text_head_that_is_tied_to_the_embeddings(peer, tmp_path, tmp_path_factory):
    folder = peer.save_transformers(tmp_path / "tiny")
    state = load_file(folder / "model.safetensors")
    del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ModelError, match="lm_head.weight is missing"):
        load_published(folder, tmp_path_factory)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}), encoding="utf-8")
    pipe = load_published(folder, tmp_path_factory)
    pipe.load_describer()
    assert torch.equal(pipe.describer.text_head.state_dict()["weight"], peer.model.get_input_embeddings().weight)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))


def test_from_the_hub_by_name_and_fine_tunes_by_their_id(peer, pipe, home, tmp_path, monkeypatch):
    small = {name: replace(CATALOGUE[name], parameters=1000, download=1000) for name in ("janus-pro-1b", "janus-pro-7b")}
    for name, model in small.items():
        monkeypatch.setitem(CATALOGUE, name, model)
    with local.serve() as (hub, url):
        local.use(url, monkeypatch)
        hub.add("deepseek-ai/Janus-Pro-1B", peer.save_original(tmp_path / "1b"))
        shards = peer.save_original(tmp_path / "7b", kind="shards")
        hub.add("deepseek-ai/Janus-Pro-7B", shards)
        hub.add("somebody/T2I", shards)
        hub.add("somebody/Janus-hf", peer.save_transformers(tmp_path / "hf"))
        found = [dalle_core.load(name, "cpu", clip="none") for name in (*small, "somebody/T2I", "somebody/Janus-hf")]
    assert [one.name for one in found] == [*small, "T2I", "Janus-hf"]
    for one in found:
        assert torch.equal(one.prior.text_embedding.weight, pipe.prior.text_embedding.weight)
        assert "DeepSeek Model License" in one.config.licence and "MIT" in one.config.licence
    assert dalle_core.load("deepseek-ai/Janus-Pro-1B", "cpu", clip="none").name == "janus-pro-1b"  # offline by now


# ---------------------------------------------------------------- as any other model


def test_a_pipeline_of_it_draws_completes_and_is_saved(pipe, tmp_path):
    one = pipe("a red fox", num_candidates=3, seed=4)
    assert one.settings["guidance_scale"] == 5.0 and one.candidates[0].image.size == (64, 64)
    again = pipe("a red fox", num_candidates=1, seed=4).candidates[0]
    assert torch.equal(again.tokens, one.candidates[0].tokens)
    keep = torch.zeros(4, 4, dtype=torch.bool)
    keep[:2] = True
    other = pipe("a cat", num_candidates=1, seed=4, image_tokens=again.tokens, keep=keep).candidates[0]
    assert torch.equal(other.tokens[:2], again.tokens[:2])
    away = pipe("a red fox", num_candidates=1, seed=4, negative_prompt="the snow " * 40).candidates[0]
    assert not torch.equal(away.tokens, again.tokens)
    pipe.save_pretrained(tmp_path / "saved")
    saved = dalle_core.load(tmp_path / "saved", "cpu", clip="none")
    same_weights(saved, pipe)
    assert torch.equal(saved("a red fox", num_candidates=1, seed=4).candidates[0].tokens, again.tokens)


def test_the_convert_command_writes_all_of_it(original, pipe, home, tmp_path):
    main(["convert", str(original), str(tmp_path / "out"), "--dtype", "bfloat16", "--clip", "none"])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "DeepSeek Model License" in card and "license: other" in card and "Describer" in card and "LlamaPrior" in card
    out = dalle_core.load(tmp_path / "out", "cpu", torch.bfloat16, clip="none")
    assert out.config.prompt_template == TEMPLATE and out.config.cpu_candidates == 4
    assert isinstance(out.describe(Image.new("RGB", (64, 64)), most=3), str)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_smaller_dtypes_draw_and_answer(pipe, home, tmp_path, dtype):
    pipe.save_pretrained(tmp_path / "saved")
    small = dalle_core.load(tmp_path / "saved", "cpu", dtype, clip="none")
    candidate = small("a red fox", num_candidates=1, seed=4).candidates[0]
    alone = small("a red fox", num_candidates=2, seed=4).candidates[0]
    assert torch.equal(candidate.tokens, alone.tokens)
    assert isinstance(small.describe(candidate.image, most=4), str)


def test_a_long_prompt_is_cut_between_words_and_a_cpu_draws_four(pipe):
    used, dropped = pipe.fit_prompt("a red fox and a cat, " * 60)
    ids, null = encode_pair(pipe.text_tokenizer, used, "", *pipe.reading)
    assert dropped and 200 < ids.shape[1] <= 256 and ids.shape == null.shape
    assert ids[0, -1] == pipe.text_tokenizer.convert_tokens_to_ids("<begin_of_image>")
    with pytest.raises(InputError, match="num_candidates is '5'.*from 1 to 4"):
        pipe("a red fox", num_candidates=5)


def test_the_prior_s_opinion_is_asked_of_four_labels_on_a_cpu(pipe, tiny_pipeline):
    class Seen:  # CLIP's part, by another model's
        clip, clip_processor, clip_tokenizer = tiny_pipeline.clip, tiny_pipeline.clip_processor, tiny_pipeline.text_tokenizer

    pipe.register_modules(**{name: getattr(Seen, name) for name in ("clip", "clip_processor", "clip_tokenizer")})
    try:
        labels = pipe.recognise(Image.new("RGB", (64, 64), "red"), ["a fox", "two apples", "a banana", "fox", "apples", "a"])
    finally:
        pipe.register_modules(clip=None, clip_processor=None, clip_tokenizer=None)
    assert [label.log_likelihood is None for label in labels] == [False] * 4 + [True] * 2


def test_the_page_does_with_it_what_it_does_with_the_others(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    studio = open_studio(pipe, "tiny")
    assert studio.holder.loaded.answers and studio.holder.loaded.limits.max_candidates == 4
    *updates, last = studio.draw("me", DrawingRequest("a red fox", num_candidates=2, seed=3), preview_every=4)
    assert sum(update.previews is not None for update in updates) == 3 and len(last.pictures) == 2
    picture = last.pictures[0]
    assert studio.tokens_of("me", picture.path) == picture.drawn.tokens.tolist()  # its recipe
    varied = replace(picture.drawn.request, num_candidates=1, image_tokens=picture.drawn.tokens, keep=half_kept(1, 4))
    *_, other = studio.draw("me", varied)
    kept = half_kept(1, 4)
    assert torch.equal(other.pictures[0].drawn.tokens[kept], picture.drawn.tokens[kept])
    grid = compare.axis("guidance_scale", [1, 5], pipe.limits), compare.axis("", [], pipe.limits)
    *_, whole = studio.compare("me", *grid, DrawingRequest("a red fox", num_candidates=1, seed=3))
    assert len(whole.grid.pictures) == 2
    answers = list(studio.describe("me", picture.path, ""))
    assert answers[-1] == pipe.describe(Image.open(picture.path), "What is in this picture?")
    assert create_demo(studio).blocks


# ---------------------------------------------------------------- what is damaged


@pytest.fixture
def folder(peer, tmp_path):
    return peer.save_original(tmp_path / "tiny", kind="safetensors")


def fails(folder, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        janus.convert(janus.find(folder))


def change(folder, **tensors) -> None:
    """Other tensors in the file; None takes one away."""
    state = load_file(folder / "model.safetensors") | tensors
    save_file({key: value.contiguous() for key, value in state.items() if value is not None}, folder / "model.safetensors")


def test_wrong_tensors_are_named_with_the_file_s_own_keys(folder):
    good = load_file(folder / "model.safetensors")
    qkv = "vision_model.vision_tower.blocks.1.attn.qkv.weight"
    up = "gen_vision_model.decoder.conv_blocks.0.res.1.conv1.weight"
    nan = good["language_model.model.layers.1.mlp.up_proj.weight"].clone()
    nan[3, 4] = torch.nan
    for key, value, message in (
        ("language_model.model.norm.weight", None, "the key language_model.norm.weight is missing"),
        (
            "gen_head.vision_head.bias",
            torch.zeros(9),
            r"safetensors: gen_head.vision_head.bias has the shape \[9\]; \[64\] was expected",
        ),
        ("language_model.model.layers.1.mlp.up_proj.weight", nan, "layers.1.mlp.up_proj.weight holds NaN"),
        ("intruder.weight", torch.zeros(2), "the key intruder.weight is unexpected"),
        ("gen_aligner.layers.4.weight", torch.zeros(2), "the key gen_aligner.layers.4.weight is unexpected"),
        (qkv, good[qkv][:-1], r"attn.qkv.weight is unexpected|q_proj.weight is missing"),
        (qkv, good[qkv][:-3], r"qkv.weight has the shape \[63, 64\]; \[64, 64\] was expected"),
        (up, good[up][..., :2], rf"safetensors: {re.escape(up)} has the shape"),
        ("gen_embed.weight", torch.zeros(64, 8, dtype=torch.long), "gen_embed.weight holds torch.int64"),
        ("vision_model.vision_tower.pos_embed", torch.zeros(1, 15, 64), "15 image tokens are no Janus"),
    ):
        change(folder, **{key: value})
        fails(folder, message)
        save_file(good, folder / "model.safetensors")
    assert janus.convert(janus.find(folder))["prior"].config.num_layers == 2


def test_wrong_configs_are_named(folder):
    path = folder / "config.json"
    good = json.loads(path.read_text(encoding="utf-8"))
    for language, message in (
        ({"hidden_size": 4096}, "hidden_size is 4096, but the weights have 64"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but the weights have 2"),
        ({"num_attention_heads": 7}, "num_attention_heads is 7, into which the width 64 does not go"),
        ({"num_attention_heads": "4"}, "num_attention_heads is 4"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, but the weights have 4"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ):
        path.write_text(json.dumps(good | {"language_config": good["language_config"] | language}), encoding="utf-8")
        fails(folder, "config.json: " + message)


def test_damaged_files_are_named(peer, folder, tmp_path):
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    for content in (good[: len(good) // 2], b"", b"\x80\x04cos\nsystem\n.", good + b"0"):
        weights.write_bytes(content)
        fails(folder, "model.safetensors cannot be read")
    weights.unlink()
    fails(folder, "has no weights: neither model.safetensors nor")
    weights.write_bytes(good)
    tokenizer = folder / "tokenizer.json"
    for content, message in (
        ("{}", "tokenizer.json is not a text tokenizer"),
        ("[", "tokenizer.json cannot be read as JSON"),
        (tokenizer.read_text(encoding="utf-8").replace("<begin_of_image>", "<begin>"), "the token <begin_of_image> is missing"),
    ):
        text = tokenizer.read_text(encoding="utf-8")
        tokenizer.write_text(content, encoding="utf-8")
        fails(folder, message)
        tokenizer.write_text(text, encoding="utf-8")
    tokenizer.unlink()
    fails(folder, "tokenizer.json is missing")

    shards = peer.save_original(tmp_path / "shards", kind="shards")
    second, index = shards / "pytorch_model-00002-of-00002.bin", shards / "pytorch_model.bin.index.json"
    bytes_, text = second.read_bytes(), index.read_text(encoding="utf-8")
    second.write_bytes(bytes_[: len(bytes_) // 2])
    fails(shards, "00002-of-00002.bin cannot be read as weights")
    second.write_bytes((shards / "pytorch_model-00001-of-00002.bin").read_bytes())
    fails(shards, "00002-of-00002.bin: the key .* is in pytorch_model-00001-of-00002.bin, too")
    second.unlink()
    fails(shards, "00002-of-00002.bin is missing: the folder is not complete")
    for name in ("../secret.bin", "other.safetensors", ""):
        index.write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
        fails(shards, "index.json: weight_map must name .bin files beside it")
    index.write_text(text, encoding="utf-8")


def test_another_model_s_config_is_no_janus(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert janus.find(folder) is None
    with pytest.raises(ModelError, match="is no model folder"):
        catalogue.load(folder, "cpu", clip="none")


def test_a_damaged_describer_is_named_when_it_is_asked_for(pipe, home, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "describer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    damaged = dalle_core.load(tmp_path / "saved", "cpu", clip="none")
    assert damaged("a fox", num_candidates=1).candidates
    with pytest.raises(ModelError, match="describer.*cannot be read"):
        damaged.describe(Image.new("RGB", (64, 64)))
