"""Training CLIP: the loss over all processes, a killed run, and going on from a trained one."""

import json
import time

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel, PreTrainedTokenizerFast

from dalle_core import image_tokenizer
from dalle_core.catalogue import load_clip
from dalle_core.errors import InputError
from dalle_core.training import checkpoints
from dalle_core.training import clip as training
from tests import runs
from tests.runs import one_thread  # noqa: F401  every test here

RESULT = "clip/model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return runs.pictures(tmp_path_factory.mktemp("pictures"))


def arguments(folder, out, *more) -> list[str]:
    return [
        "--data",
        str(folder),
        "--out",
        str(out),
        "--text-tokenizer",
        str(folder / "text_tokenizer"),
        "--cpu",
        "--workers",
        "0",
        "--samples",
        "64",
        "--batch-size",
        "8",
        "--learning-rate",
        "0.001",
        *more,
    ]


@pytest.fixture(scope="module")
def start(folder, tmp_path_factory):
    """The folder of a tiny CLIP, so that all runs here are fast; as `assets/emoji/clip` it has no tokenizer beside it."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "text_tokenizer")
    path = tmp_path_factory.mktemp("clip")
    training.new_clip(tokenizer, 32, 8, width=32).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(folder, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    training.main(arguments(folder, out, "--init", str(start)))
    return out


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_loss_is_that_of_the_paper():
    images, texts = (F.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(i)), dim=1) for i in (0, 1))
    loss, right = training.contrastive_loss(images, texts, torch.tensor(2.0))
    products = images @ texts.T * torch.tensor(2.0).exp()
    expected = -(products.log_softmax(1).diagonal() + products.log_softmax(0).diagonal()).sum() / (2 * 5)
    torch.testing.assert_close(loss, expected)
    assert right == (products.argmax(1) == torch.arange(5)).float().mean()


def test_a_trained_clip_is_gone_on_from_in_its_own_sizes(folder, start, whole, tmp_path):
    before, after = (CLIPModel.from_pretrained(path) for path in (start, whole / "clip"))
    assert after.config.vision_config.image_size == 32 and lines(whole)[-1]["step"] == 8
    change = (after.visual_projection.weight - before.visual_projection.weight).abs().max()
    assert 0 < change < 0.05  # some steps from where it was
    with pytest.raises(InputError, match="--text-length 9: .* has 8; leave it out"):
        training.train(training.parser().parse_args(arguments(folder, tmp_path, "--init", str(start), "--text-length", "9")))


def test_a_whole_clip_is_gone_on_from_with_its_own_tokenizer_and_normalisation(folder, start, tmp_path):
    """As those of the Hub are; the outcome is such a folder again, which `--clip` takes."""
    processor = training.new_image_processor(32)
    processor.image_mean, processor.image_std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "text_tokenizer")
    for part in (CLIPModel.from_pretrained(start), processor, tokenizer):
        part.save_pretrained(tmp_path / "hub")
    more = ("--init", str(tmp_path / "hub"), "--text-tokenizer", "not needed", "--samples", "8")
    training.main(arguments(folder, tmp_path / "out", *more))
    parts = load_clip(tmp_path / "out" / "clip")
    assert list(parts["clip_processor"].image_mean) == [0.4, 0.5, 0.6] and parts["clip_tokenizer"]("red").input_ids
    image = Image.effect_noise((32, 32), 90).convert("RGB")
    expected = processor(images=[image], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(training.normalise(image_tokenizer.to_pixels([image]), processor), expected, atol=1e-5, rtol=0)


def test_killed_clip_ends_with_the_same_bytes(folder, start, whole, tmp_path):
    more = ("--init", str(start), "--save-minutes", "0")
    (process,) = runs.start(training.main, arguments(folder, tmp_path, *more))
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if [step for step, _ in checkpoints.found(tmp_path / "checkpoints") if step >= 3]:
            break
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (tmp_path / RESULT).exists()
    training.main(arguments(folder, tmp_path, *more))
    assert (tmp_path / RESULT).read_bytes() == (whole / RESULT).read_bytes()


def test_two_processes_train_clip_as_one_does(folder, start, whole, tmp_path):
    """Each picture has to find its caption among those of both processes."""
    runs.finish(runs.start(training.main, arguments(folder, tmp_path, "--init", str(start)), processes=2))
    assert lines(tmp_path)[-1]["loss"] == pytest.approx(lines(whole)[-1]["loss"], rel=1e-5)
    ours, theirs = (CLIPModel.from_pretrained(out / "clip").state_dict() for out in (tmp_path, whole))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)
