"""SigLIP as what ranks: the cosines that transformers' own forward has, on texts as it was trained on them."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel

import dalle_core
from dalle_core import ModelError, rerank
from dalle_core.__main__ import main


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A tiny one as the Hub's repositories of SigLIP 2 hold it: lower-case letters only, <eos> and then <pad> up to 64."""
    folder = tmp_path_factory.mktemp("siglip")
    vocab = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3} | {chr(c): c - 90 for c in range(97, 123)} | {"▁": 40}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 48, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}))
    for value in model.state_dict().values():
        value.add_(torch.randn(value.shape) * 0.2)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_its_cosines_are_transformers_own(siglip, saved, tmp_path):
    pipe = dalle_core.load(saved, "cpu", clip=str(siglip))
    model, tokenizer = SiglipModel.from_pretrained(siglip).eval(), PreTrainedTokenizerFast.from_pretrained(siglip)
    images = [Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 64), "red")]
    ids = tokenizer("a red fox", padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    pixels = SiglipImageProcessorPil.from_pretrained(siglip)(images=images, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image[:, 0]
    expected = ((logits - model.logit_bias) / model.logit_scale.exp()).tolist()
    found = rerank.scores(pipe.clip, pipe.clip_processor, pipe.clip_tokenizer, "A red FOX", images)
    assert found == pytest.approx(expected, abs=1e-5) and abs(expected[0] - expected[1]) > 1e-3
    candidates = pipe("a red fox", num_candidates=3, seed=1).candidates
    assert [one.score for one in candidates] == sorted((one.score for one in candidates), reverse=True)
    assert pipe.recognise(images[1], ["a fox", "two apples"])[0].probability > 0
    pipe.save_pretrained(tmp_path / "with")
    again = dalle_core.load(tmp_path / "with", "cpu")
    assert again("a red fox", num_candidates=3, seed=1).candidates[0].score == pytest.approx(candidates[0].score, abs=1e-6)


def test_what_it_does_not_read_is_known(siglip, saved):
    pipe = dalle_core.load(saved, "cpu", clip=str(siglip))
    assert pipe.fit_for_clip("a red fox") == ("a red fox", "")
    pipe.register_modules(text_tokenizer=pipe.clip_tokenizer)  # one that reads letters: long enough for both to be cut
    pipe.prior.register_to_config(text_length=100)
    used, dropped = pipe.fit_for_clip("fox " * 24)
    assert 60 <= len(used) <= 63 and (used + " " + dropped).split() == ["fox"] * 24


def test_the_sample_command_says_what_was_not_read(siglip, saved, tmp_path, capsys):
    """The model reads seven words, whatever their length, the ranker 63 letters."""
    arguments = ["--model", str(saved), "--clip", str(siglip), "--candidates", "1", "--out", str(tmp_path)]
    main(["sample", "background " * 6 + "fox", *arguments])
    said = capsys.readouterr().out
    assert "CLIP, which ranks, reads only the beginning of the prompt; it stops before: background fox\n" in said


def test_what_cannot_rank_is_named(siglip, saved, tmp_path):
    folder = tmp_path / "siglip"
    folder.mkdir()
    for path in siglip.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())

    def fails(message):
        with pytest.raises(ModelError, match=message):
            dalle_core.load(saved, "cpu", clip=str(folder))

    state = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in state.items() if key != "vision_model.head.probe"}, folder / "model.safetensors")
    fails("missing keys in the CLIP weights: vision_model.head.probe")
    save_file(state | {"text_model.head.bias": torch.full((32,), torch.nan)}, folder / "model.safetensors")
    fails("text_model.head.bias holds NaN")
    save_file(state, folder / "model.safetensors")
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").unlink()
    fails("tokenizer.json is missing")
    (folder / "tokenizer.json").write_bytes(tokenizer)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}), encoding="utf-8")
    fails("the model_type is 'bert'; what ranks must be one of clip, siglip")
