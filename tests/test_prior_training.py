"""Training a prior: whole or by LoRA, killed or not, in one process or two, and what it then draws."""

import argparse
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import dalle_core
from dalle_core import InputError, image_tokenizer
from dalle_core.priors.bart import BartPrior
from dalle_core.priors.gpt import GPTPrior
from dalle_core.priors.loss import head_loss
from dalle_core.training import prior as training
from dalle_core.training.data import open_dataset
from dalle_core.training.look import Look
from dalle_core.training.loop import Loop
from tests.conftest import make_pipeline
from tests.runs import finish, one_thread, start  # noqa: F401  one_thread: in every test here

COLOURS = ["red", "green", "blue", "white", "black", "grey", "yellow", "purple"]
RESULT = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A folder with 40 captioned pictures of a square, and two tiny pipelines: of a GPTPrior and of a BartPrior."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "pictures").mkdir()
    lines = []
    for i in range(40):
        a, b = COLOURS[i % 8], COLOURS[(i // 8 + 1 + i) % 8]
        image = Image.new("RGB", (64, 64), b)
        image.paste(a, (16, 16, 48, 48))
        image.save(folder / "pictures" / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a {a} fox on {b}"}))
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pipe = make_pipeline()
    pipe.prior.head.weight.data.div_(40)
    pipe.save_pretrained(folder / "gpt")
    pipe.register_modules(prior=small_bart(len(pipe.text_tokenizer), pipe.text_tokenizer.pad_token_id))
    pipe.save_pretrained(folder / "bart")
    return folder


def small_bart(texts: int, pad: int) -> BartPrior:
    torch.manual_seed(0)
    return BartPrior(
        texts,
        8,
        64,
        16,
        encoder_layers=1,
        decoder_layers=1,
        num_heads=2,
        hidden_size=32,
        ffn_size=48,
        embedded_image_tokens=65,
        start_token_id=64,
        pad_token_id=pad,
    ).eval()


def arguments(parts, out, *more: str) -> argparse.Namespace:
    """As the command parses them."""
    return training.parser().parse_args(words(parts, out, *more))


def words(parts, out, *more) -> list[str]:
    common = ["--data", parts / "pictures", "--out", out, "--cpu", "--precision", "no", "--workers", "0", "--seed", "3"]
    sizes = [
        "--text-length",
        "8",
        "--layers",
        "2",
        "--heads",
        "2",
        "--hidden-size",
        "16",
        "--batch-size",
        "4",
        "--clip",
        "none",
    ]
    folders = ["--image-tokenizer", parts / "gpt" / "image_tokenizer", "--text-tokenizer", parts / "gpt" / "text_tokenizer"]
    return [str(word) for word in (*common, *sizes, *folders, *more)]


def run(parts, out, *more) -> None:
    training.train(arguments(parts, out, *more))


def killed(parts, out, *more) -> None:
    """The run saves its state after three steps only, and is gone two steps later."""
    update = Loop.update

    def die(self, name):
        if self.step == 5:
            raise KeyboardInterrupt
        update(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_time_to_save", lambda self: self.step == 3)
        patch.setattr(Loop, "update", die)
        with pytest.raises(KeyboardInterrupt):
            run(parts, out, *more)


RUNS = {
    "new": (["--dropout", "0.1"], f"prior/{RESULT}"),
    "bart": (["--architecture", "bart", "--layers", "1"], f"prior/{RESULT}"),
    "whole": (["--init", "bart"], f"model/prior/{RESULT}"),
    "lora": (["--init", "gpt", "--lora", "2"], "lora/adapter_model.safetensors"),
}


def in_folder(parts, more):
    return [parts / name if last == "--init" else name for last, name in zip(["", *more], more)]


def logged(out) -> list[dict]:
    """The lines of a run's log, without their times."""
    lines = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


@pytest.mark.parametrize("kind", RUNS)
def test_a_killed_run_ends_with_the_same_bytes(parts, tmp_path, kind):
    more, result = RUNS[kind]
    more = [*in_folder(parts, more), "--samples", "32", "--look-every", "100"]
    run(parts, tmp_path / "whole", *more)
    killed(parts, tmp_path / "killed", *more)
    assert not (tmp_path / "killed" / result).exists()
    run(parts, tmp_path / "killed", *more)
    assert (tmp_path / "whole" / result).read_bytes() == (tmp_path / "killed" / result).read_bytes()
    assert {key for line in logged(tmp_path / "killed") for key in line} >= {"step", "loss", "held_out_caption"}
    assert [path.name for path in (tmp_path / "killed" / "pictures").iterdir()] == ["samples_000008.png"]


@pytest.mark.parametrize("kind", ["new", "lora"])
def test_two_processes_end_where_one_does(parts, tmp_path, kind):
    more, result = RUNS[kind]
    more = [*in_folder(parts, more), "--samples", "32", "--look-every", "4"]
    if kind == "new":
        more = more[2:]  # the random numbers of dropout are each process's own
    run(parts, tmp_path / "one", *more)
    finish(start(training.main, words(parts, tmp_path / "two", *more), processes=2))
    one, two = (load_file(tmp_path / name / result) for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=0)
    for one, two in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, abs=1e-4)


def test_parts_of_a_batch_give_what_the_whole_gives(parts, tmp_path):
    for parts_ in (1, 2):
        run(parts, tmp_path / str(parts_), "--samples", "12", "--accumulation", str(parts_))
    one, two = (load_file(tmp_path / name / "prior" / RESULT) for name in "12")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=0)


def held_out_loss(pipe, parts) -> float:
    """By the pipeline's own likelihood."""
    items = open_dataset(parts / "pictures", pipe.image_size).held_out("caption", 100)
    return sum(-pipe.log_likelihood(pipe.encode(image), [text])[0] for image, text in items) / len(items)


def test_a_trained_model_learns_new_pictures_by_lora(parts, tmp_path):
    """What it has not seen becomes likelier, with the LoRA that `load` opens; its weights stay as they were."""
    before = dalle_core.load(parts / "gpt", device="cpu", clip="none")
    more = ["--lora", "8", "--samples", "240", "--learning-rate", "0.01", "--look-every", "30"]
    run(parts, tmp_path / "foxes", "--init", parts / "gpt", *more)
    after = dalle_core.load(parts / "gpt", device="cpu", clip="none", lora=tmp_path / "foxes" / "lora")
    assert after.name == "tiny + foxes"
    assert held_out_loss(after, parts) < held_out_loss(before, parts) - 0.2
    losses = [line["held_out_caption"] for line in logged(tmp_path / "foxes") if "held_out_caption" in line]
    assert losses[-1] == pytest.approx(held_out_loss(after, parts), abs=1e-3)
    config = json.loads((tmp_path / "foxes" / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"], config["r"]) == ("tiny", before.revision, 8)


def test_a_trained_model_learns_new_pictures_whole(parts, tmp_path):
    before = dalle_core.load(parts / "bart", device="cpu", clip="none")
    run(parts, tmp_path / "foxes", "--init", parts / "bart", "--samples", "160", "--learning-rate", "0.02")
    after = dalle_core.load(tmp_path / "foxes" / "model", device="cpu", clip="none")
    assert after.name == "foxes" and isinstance(after.prior, BartPrior)
    assert held_out_loss(after, parts) < held_out_loss(before, parts) - 0.2
    assert after("a red fox on blue", num_candidates=1, seed=1).candidates[0].image.size == (64, 64)


@torch.no_grad()
def test_an_encoder_decoder_is_trained_on_the_logits_that_it_draws_from():
    """Teacher forcing from the start token on, with padded texts: at every position what prefill and decode give."""
    prior = small_bart(30, 0)
    text, image = torch.randint(1, 30, (3, 8)), torch.randint(64, (3, 16))
    text[0, 3:], text[1, 6:] = 0, 0
    full = prior(text, image[:, :-1])
    cache, logits = prior.prefill(text)
    for position in range(16):
        torch.testing.assert_close(logits, full[:, position], atol=1e-5, rtol=1e-4)
        if position < 15:
            [logits] = prior.decode([(image[:, position], cache, position)])
    loss = training.prior_loss(prior, text, image)
    torch.testing.assert_close(loss, F.cross_entropy(full.flatten(0, 1), image.flatten()))


def test_prior_learns_one_batch():
    torch.manual_seed(0)
    prior = GPTPrior(20, 4, 16, 9, num_layers=2, num_heads=2, hidden_size=32)
    optimizers = training.optimizers(prior, 0.02)
    text_ids, tokens = torch.randint(20, (6, 4)), torch.randint(16, (6, 9))
    losses = []
    for _ in range(60):
        loss = training.prior_loss(prior, text_ids, tokens)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(16.0).log().item(), rel=0.05)
    assert losses[-1] < 0.3 * losses[0]


def test_noise_derives_from_seed_step_and_position():
    store = [torch.full((3, 3), 1000 + i) for i in range(50)]

    class Store(list):
        def tokens(self, i):
            return self[i]

    noise = training.Noise(Store(store), torch.zeros(1, 5, dtype=torch.long), 400, seed=7)
    text, tokens = torch.ones(400, 5, dtype=torch.long), torch.arange(400 * 9).view(400, 9) % 1000
    ids, read = noise(3, lambda whole: whole, text, tokens)
    wrong = read != tokens
    assert 0.06 < (ids == 0).all(1).float().mean() < 0.14 and set(ids.sum(1).tolist()) == {0, 5}
    assert 0.02 < wrong.float().mean() < 0.04
    for row in range(400):  # of one row all come from one other picture, each from its own place
        assert (read[row][wrong[row]] >= 1000).all() and len(read[row][wrong[row]].unique()) <= 1
    half = noise(3, lambda whole: whole[200:], text[200:], tokens[200:])
    assert torch.equal(half[0], ids[200:]) and torch.equal(half[1], read[200:])
    assert not torch.equal(noise(4, lambda whole: whole, text, tokens)[1], read)


def test_codes_that_look_alike_start_alike(tiny_pipeline):
    model = make_pipeline().image_tokenizer
    vectors = model.quantize.embedding.weight.data
    vectors[1::2] = vectors[::2] + 0.01 * torch.randn(32, vectors.shape[1])
    torch.manual_seed(0)
    prior = GPTPrior(20, 4, 64, 16, num_layers=1, num_heads=2, hidden_size=128)
    training.start_from_codebook(prior, model)
    for weight in (prior.image_embedding.weight, prior.head.weight):
        cosines = F.cosine_similarity(weight[::2], weight[1::2])
        others = F.cosine_similarity(weight[::2], weight[1::2].roll(1, 0))
        assert 0.35 < cosines.mean() < 0.65 and others.mean().abs() < 0.15 and 0.018 < weight.std() < 0.022


@pytest.mark.parametrize("architecture", ["gpt", "bart"])
def test_dropout_is_in_training_only(architecture):
    torch.manual_seed(0)
    prior = GPTPrior(20, 4, 16, 9, num_layers=1, num_heads=2, hidden_size=32) if architecture == "gpt" else small_bart(20, 0)
    text, image = torch.randint(1, 20, (2, prior.config.text_length)), torch.randint(16, (2, 5))
    exact = prior.eval()(text, image)
    training.add_dropout(prior, 0.5)
    assert torch.equal(prior(text, image), exact)
    prior.train()
    assert not torch.allclose(prior(text, image), exact) and not torch.equal(prior(text, image), prior(text, image))


def test_the_held_out_loss_is_the_mean_over_all(parts, tmp_path, monkeypatch):
    """Not of batches, the last of which is smaller."""
    monkeypatch.setattr("dalle_core.training.look.AT_A_TIME", 3)
    args = arguments(parts, tmp_path)
    loop, pipe = Loop("prior", args, 1), make_pipeline()
    images = [Image.open(parts / "pictures" / f"{i}.png") for i in range(7)]
    dataset = SimpleNamespace(held_out_kinds=("a",), held_out=lambda kind, count: [(image, "a fox") for image in images])
    loop.prepare("prior", pipe.prior, torch.optim.SGD(pipe.prior.parameters()))
    reader = pickle.loads(pickle.dumps(training.Reader(pipe.text_tokenizer, 8, None)))  # as workers get it
    look = Look(loop, pipe, dataset, reader, 0)
    look(training.prior_loss)
    [line] = logged(tmp_path)
    expected = [-pipe.log_likelihood(pipe.encode(image), ["a fox"])[0] for image in images]
    assert line["held_out_a"] == pytest.approx(sum(expected) / 7, rel=1e-5)
    sheet = Image.open(tmp_path / "pictures" / "samples_000001.png")
    assert sheet.size == (5 * 64, 6 * 64)
    first = pipe("a fox", num_candidates=4, seed=0).candidates[0].image  # best first by CLIP
    assert sheet.crop((64, 0, 128, 64)).tobytes() == first.tobytes()


def test_what_cannot_be_is_said(parts, tmp_path):
    with pytest.raises(InputError, match="--lora changes a trained model: name it by --init"):
        run(parts, tmp_path / "a", "--lora", "2")
    with pytest.raises(InputError, match="--lora 0: the rank"):
        run(parts, tmp_path / "b", "--lora", "0", "--init", parts / "gpt")
    pipe = make_pipeline()
    image_tokenizer.drop_encoder(pipe.image_tokenizer)
    pipe.save_pretrained(tmp_path / "blind")
    with pytest.raises(InputError, match="without its image tokenizer's encoder"):
        run(parts, tmp_path / "c", "--init", tmp_path / "blind")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [1, 300])  # positions of each of two rows: fewer than go through at a time, and more
def test_the_loss_in_pieces_is_the_loss_of_all_logits(bias, count):
    torch.manual_seed(0)
    head, targets = torch.nn.Linear(24, 50, bias=bias), torch.randint(50, (2, count))
    features = [torch.randn(2, count, 24).requires_grad_() for _ in range(2)]
    features[1].data.copy_(features[0].data)
    whole = F.cross_entropy(head(features[0]).flatten(0, 1), targets.flatten())
    (3 * whole).backward()
    expected = [p.grad.clone() for p in head.parameters()]
    head.zero_grad()
    loss = head_loss(features[1], head, targets)
    (3 * loss).backward()
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(features[1].grad, features[0].grad)
    torch.testing.assert_close([p.grad for p in head.parameters()], expected)
    head.requires_grad_(False)  # as under a LoRA
    head_loss(features[1], head, targets).backward()
    torch.testing.assert_close(features[1].grad, features[0].grad * 4 / 3)  # once more the loss, on top of three times
    with torch.no_grad():
        assert not head_loss(features[1], head, targets).requires_grad


def test_the_loss_in_bfloat16_is_that_of_the_logits_in_bfloat16():
    torch.manual_seed(0)
    head, features, targets = torch.nn.Linear(24, 50, bias=False), torch.randn(2, 300, 24), torch.randint(50, (2, 300))
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = head_loss(features, head, targets), head(features)
    torch.testing.assert_close(loss, F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), atol=1e-5, rtol=0)
    loss.backward()
    assert head.weight.grad.dtype == torch.float32
