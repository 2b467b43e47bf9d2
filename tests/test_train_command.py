"""`python -m dalle_core train`: from a folder of pictures to a model that draws, in one command that may be killed."""

import json

import pytest
from PIL import Image

import dalle_core
from dalle_core.__main__ import main
from dalle_core.push import check
from dalle_core.training import whole
from dalle_core.training.loop import Loop
from demo import open_studio
from tests import runs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "squares"
    folder.mkdir()
    return runs.pictures(folder, count=56, side=48)


def command(pictures, run, *more) -> list[str]:
    return ["train", str(pictures), "--out", str(run), "--preset", "tiny", "--scale", "0.2", "--workers", "0", "--cpu", *more]


NAMED = ["--name", "squares", "--licence", "CC0-1.0"]


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """(the folder of a training that was killed in its prior and gone on with, what was seen on the way)."""
    run, seen, patch = tmp_path_factory.mktemp("run") / "squares", {}, pytest.MonkeyPatch()
    loss, calls = whole.prior.prior_loss, []

    def dies_at_the_sixth(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(*args)

    patch.setattr(Loop, "_time_to_save", lambda self: True)
    patch.setattr(whole.prior, "prior_loss", dies_at_the_sixth)
    with pytest.raises(SystemExit) as ended:
        main(command(pictures, run, *NAMED))
    seen["code"], seen["finished"] = ended.value.code, whole.finished(run)
    before = (run / "image_tokenizer" / "image_tokenizer" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    calls.clear()
    calls += [1] * 10  # past the sixth
    patch.setattr(whole.tokenizer_training, "train", lambda args: pytest.fail("the image tokenizer was trained again"))
    patch.setattr(whole, "make_text_tokenizer", lambda args: pytest.fail("the text tokenizer was made again"))
    main(command(pictures, run, *NAMED))
    after = (run / "image_tokenizer" / "image_tokenizer" / "diffusion_pytorch_model.safetensors").stat().st_mtime_ns
    seen["untouched"] = before == after
    seen["losses"] = len(calls) - 10
    patch.undo()
    yield run, seen


def test_a_training_that_was_killed_goes_on_and_does_nothing_twice(trained):
    _, seen = trained
    assert seen["code"] == 130 and seen["finished"] == ["image_tokenizer", "text_tokenizer"] and seen["untouched"]
    # 8 steps, 5 of them before the kill; a loss on held-out pictures of each kind besides.
    assert 3 <= seen["losses"] <= 6


def test_what_is_finished_is_not_done_again(trained, pictures, monkeypatch, capsys):
    run, _ = trained
    card = (run / "model" / "README.md").stat().st_mtime_ns
    for step in (whole.tokenizer_training, whole.prior, whole.clip):
        monkeypatch.setattr(step, "train", lambda args: pytest.fail("trained again"))
    monkeypatch.setattr(whole.evaluate, "evaluate", lambda *args: pytest.fail("evaluated again"))
    main(command(pictures, run, *NAMED))
    said = capsys.readouterr().out
    assert said.count("done before") == 4 and f"{run / 'model'} is ready" in said
    assert (run / "model" / "README.md").stat().st_mtime_ns == card


def test_the_model_loads_draws_and_opens_on_the_page(trained, tmp_path, monkeypatch):
    run, _ = trained
    pipe = dalle_core.load(str(run / "model"), device="cpu")
    assert pipe.name == "squares" and pipe.config.licence == "CC0-1.0" and pipe.image_size == 48
    assert pipe.examples and all(text.startswith("a ") and " square on " in text for text in pipe.examples)  # no emoji
    assert set(pipe.examples) <= set(pipe.config.labels) | set(pipe.examples) and len(pipe.config.labels) > 40
    [best] = pipe(pipe.examples[0], num_candidates=1, seed=1).candidates
    assert best.image.size == (48, 48) and best.score is not None
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert open_studio(pipe, str(run / "model")).holder.loaded.licence == "CC0-1.0"


def test_its_card_says_what_it_learned_from_how_long_and_how_well(trained, pictures):
    run, _ = trained
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    check(run / "model")  # as it is, it may be pushed
    for text in (
        "license: cc0-1.0",
        "squares: 5",
        "pictures with captions",
        "| image_tokenizer | 6 |",
        "| prior | 8 |",
        "dB",
        "GPTPrior",
        "python -m dalle_core.training.evaluate",
    ):
        assert text in card
    assert str(pictures.parent) not in card and str(run) not in card  # where things lie is nobody's business
    result = json.loads((run / "model" / "evaluation.json").read_text(encoding="utf-8"))
    assert result["judge"] == "its own CLIP" and result["caption"]["prompts"] >= 1
    assert Image.open(run / "model" / "evaluation.png").width == 3 * 48  # real, reconstructed, drawn


def test_a_trained_model_learns_other_pictures_as_a_lora(trained, pictures, tmp_path):
    model, run = trained[0] / "model", tmp_path / "tuned"
    main(command(pictures, run, "--from", str(model), "--lora", "2", "--name", "more squares", "--licence", "MIT"))
    lora = run / "prior" / "lora"
    card = (lora / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card and "LoRA of rank 2" in card and "lora" in card
    check(lora)
    pipe = dalle_core.load(str(model), device="cpu", lora=str(lora))
    assert len(pipe("a red square on blue", num_candidates=1, seed=1).candidates) == 1
    assert not (run / "model").exists() and not (run / "image_tokenizer").exists()


def test_a_trained_model_learns_other_pictures_whole_and_is_ranked_by_another_clip(trained, pictures, tmp_path):
    model, run = trained[0] / "model", tmp_path / "tuned"
    main(command(pictures, run, "--from", str(model), "--clip", "none", "--name", "unranked", "--licence", "MIT"))
    pipe = dalle_core.load(str(run / "model"), device="cpu", clip=str(trained[0] / "clip"))  # it has none of its own
    assert pipe.name == "unranked" and pipe.config.licence == "MIT"
    assert pipe("a red square on blue", num_candidates=2, seed=1).candidates[0].score is not None
    assert json.loads((run / "model" / "evaluation.json").read_text(encoding="utf-8"))["judge"] is None


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--licence", "MIT"], "--name is missing"),
        (["--name", "x"], "--licence is missing"),
        ([*NAMED, "--lora", "4"], "--from"),
        ([*NAMED, "--from", "emoji", "--image-tokenizer", "emoji"], "leave out --image-tokenizer"),
        ([*NAMED, "--scale", "0"], "above 0"),
        ([*NAMED, "--clip", "none", "--judge", "x/y"], "--judge"),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_said_at_once(pictures, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(["train", str(pictures), "--out", str(tmp_path / "run"), *arguments])
    text = capsys.readouterr().err
    assert ended.value.code == 2 and said in text and text.count("\n") == 1 and not (tmp_path / "run").exists()


def test_a_training_does_not_go_on_with_other_data(trained, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "train",
                str(tmp_path),
                "--out",
                str(trained[0]),
                *NAMED,
                "--preset",
                "tiny",
                "--scale",
                "0.2",
                "--workers",
                "0",
                "--cpu",
            ]
        )
    assert "was started with --data" in capsys.readouterr().err
