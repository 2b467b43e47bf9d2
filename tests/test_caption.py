"""Captions of a folder: a line a picture, a run that was stopped goes on, and the file is whole or not there."""

import json

import pytest
from PIL import Image

from dalle_core import InputError
from dalle_core.__main__ import main
from dalle_core.caption import FINISHED, PART, caption
from tests.published import JanusFiles, load_published


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return JanusFiles().save_original(tmp_path_factory.mktemp("janus") / "tiny")


@pytest.fixture(scope="module")
def pipe(files, tmp_path_factory):
    return load_published(files, tmp_path_factory)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "more").mkdir()
    for name, colour in (("b.png", "red"), ("a.jpg", "blue"), ("more/c.webp", "green")):
        Image.new("RGB", (40, 20), colour).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    (tmp_path / "notes.txt").write_text("not a picture", encoding="utf-8")
    return tmp_path


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_that_was_stopped_goes_on_to_the_same_file(pipe, folder, monkeypatch):
    steps = caption(pipe, folder, "What?")
    first, second = next(steps), next(steps)
    assert (first.file_name, second.file_name, first.total) == ("a.jpg", "b.png", 4) and first.text
    steps.close()
    assert not (folder / FINISHED).exists()
    with (folder / PART).open("a", encoding="utf-8") as part:
        part.write('{"file_name": "broken')  # as a process that is killed leaves it
    asked, describing = [], pipe.describing
    monkeypatch.setattr(pipe, "describing", lambda image, *rest: asked.append(image.size) or describing(image, *rest))
    steps = list(caption(pipe, folder, "What?"))
    assert len(asked) == 1 and [step.text == "" for step in steps] == [False, False, True, False]
    rows = lines(folder / FINISHED)
    assert [row["file_name"] for row in rows] == ["a.jpg", "b.png", "more/c.webp"] and not (folder / PART).exists()
    with Image.open(folder / "b.png") as image:
        assert rows[1]["text"] == " ".join(describing_all(describing, image).split())
    with pytest.raises(InputError, match="metadata.jsonl is there already"):
        caption(pipe, folder, "What?")


def describing_all(describing, image) -> str:
    *_, text = describing(image, "What?", 128)
    return text


def test_what_cannot_be_described_is_a_sentence(pipe, tiny_pipeline, folder, tmp_path_factory):
    with pytest.raises(InputError, match="does not answer questions"):
        caption(tiny_pipeline, folder)
    with pytest.raises(InputError, match="has no pictures"):
        caption(pipe, tmp_path_factory.mktemp("empty"))
    next(caption(pipe, folder, "What?"))
    with pytest.raises(InputError, match="begun with another model or question"):
        caption(pipe, folder, "Who?")


def test_the_command(files, folder, capsys, monkeypatch, tmp_path_factory):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("home")))
    main(["caption", str(folder), "--model", str(files), "--device", "cpu"])
    assert "3 pictures with their captions" in capsys.readouterr().out and len(lines(folder / FINISHED)) == 3
    with pytest.raises(SystemExit):
        main(["caption", str(folder), "--model", str(files), "--device", "cpu"])
    assert capsys.readouterr().err.count("\n") == 1
