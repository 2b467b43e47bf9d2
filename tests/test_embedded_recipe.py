"""The recipe of the embedded model: its commands are those that the trainers take, and it goes on where it was stopped."""

import argparse
import importlib
import subprocess
from types import SimpleNamespace

import pytest

from dalle_core.training import embedded

AFTER_PRIOR = ["image_tokenizer", "assemble", "candidates", "clip", "assemble", "evaluate_emoji", "contact_sheet"]


class Parsed(Exception):
    pass


@pytest.fixture
def commands(monkeypatch):
    """The commands that were run: each is only read, as its own parser reads it, and leaves what it should make."""
    found, parse = [], argparse.ArgumentParser.parse_args

    def parsed(self, *args, **kwargs):
        raise Parsed(parse(self, *args, **kwargs))

    def run(words):
        module, arguments = words[2], words[3:]
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", [module, *arguments])
            patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
            with pytest.raises(Parsed):
                importlib.import_module(module).main()
        found.append(module.rpartition(".")[2])
        if run.fails == found[-1]:
            return SimpleNamespace(returncode=2)
        makes = {" ".join(step): makes for step, makes in run.steps}[" ".join(words[2:])]
        (makes.parent if makes.suffix else makes).mkdir(parents=True, exist_ok=True)
        if makes.suffix:
            makes.touch()
        return SimpleNamespace(returncode=0)

    def steps(args):
        run.steps = made(args)
        return run.steps

    made, run.fails = embedded.steps, None
    monkeypatch.setattr(embedded, "steps", steps)
    monkeypatch.setattr(subprocess, "run", run)
    return found, run


def test_every_command_is_one_that_its_trainer_takes(commands, tmp_path):
    found, _ = commands
    embedded.main(["--out", str(tmp_path / "run"), "--data", str(tmp_path / "emoji"), "--precision", "bf16", "--at-once", "32"])
    assert found == ["emoji", "judge", "image_tokenizer", "text_tokenizer", "prior", *AFTER_PRIOR]


def test_it_goes_on_with_what_failed(commands, tmp_path, capsys):
    found, run = commands
    taken = [
        "--out",
        str(tmp_path / "run"),
        "--data",
        str(tmp_path),
        "--image-tokenizer",
        str(tmp_path),
        "--unpack",
        "emoji.tar",
    ]
    run.fails = "prior"
    with pytest.raises(SystemExit):
        embedded.main(taken)
    assert found == ["emoji", "judge", "text_tokenizer", "prior"] and "goes on there" in capsys.readouterr().err
    run.fails = None
    found.clear()
    embedded.main(taken)
    assert found == ["prior", *AFTER_PRIOR]
