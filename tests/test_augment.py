"""Data sets of drawn pictures: whole after a kill at any moment, read by the training commands, hostile tables refused."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle_core import InputError, augment
from dalle_core.__main__ import main
from dalle_core.augment import archive
from dalle_core.catalogue import load
from dalle_core.prompts import Row, read_prompts, rows_of
from dalle_core.training.data import open_dataset
from demo.tabs.dataset import asked_for

ROOT = Path(__file__).parent.parent
ROWS = [Row("a red fox", 3), Row("two apples", 2), Row("a red fox", 3)]
THRESHOLD = 0.05  # the tiny CLIP's scores lie on both sides


def run(pipe, out, rows=ROWS, seed=7, threshold=THRESHOLD, **arguments):
    for progress in augment.augment(pipe, rows, out, seed, threshold, **arguments):
        pass
    return progress


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(out) -> dict:
    """What counts of a data set: every file but the lock."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".augment.lock"}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(augment, "BLOCK", 2)


@pytest.fixture
def whole(small_blocks, tiny_pipeline, tmp_path):
    """A data set that was drawn without interruption."""
    run(tiny_pipeline, tmp_path / "whole")
    return tmp_path / "whole"


def test_a_data_set_of_those_that_fit(tiny_pipeline, tmp_path):
    steps = list(augment.augment(tiny_pipeline, ROWS, tmp_path, 7, THRESHOLD))
    drawn = [progress.drawn + progress.part for progress in steps]
    assert drawn == sorted(drawn) and (drawn[0], drawn[-1]) == (0, 8) and steps[-1].total == 8
    found = lines(tmp_path)
    assert 0 < len(found) == steps[-1].kept < 8
    assert [str(kept.path.name) for progress in steps for kept in progress.new] == [line["file_name"] for line in found]
    seeds = {}
    for line in found:
        assert line["score"] >= THRESHOLD and line["model"] == "tiny" and line["settings"]["temperature"] == 1.0
        assert set(line) == {"file_name", "text", "model", "revision", "negative_prompt", "seed", "index", "score", "settings"}
        seeds.setdefault(line["seed"], line["text"])
        again = tiny_pipeline(line["text"], seed=line["seed"], num_candidates=line["index"] + 1)
        expected = next(candidate for candidate in again.candidates if candidate.index == line["index"])
        with Image.open(tmp_path / line["file_name"]) as image:
            assert np.array_equal(np.array(image), np.array(expected.image))
            assert json.loads(image.text["dalle"])["tokens"] == expected.tokens.tolist()
    assert list(seeds.values()).count("a red fox") == 2  # equal prompts, different seeds
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "**tiny**" in card and "unknown" in card and "0.05" in card and "seed: `7`" in card


def test_no_seed_comes_twice():
    rows = [Row("a", 40), Row("b", 1)] * 200
    blocks = list(augment._blocks(rows, {"seed": 3, "best": None}))
    seeds = {seed for *_, seed in blocks}
    assert len(seeds) == len(blocks) == 200 * 4 and sum(count for _, _, count, _ in blocks) == 200 * 41
    assert not seeds & {seed for *_, seed in augment._blocks(rows, {"seed": 4, "best": None})}
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_best_of_each_prompt(tiny_pipeline, tmp_path):
    progress = run(tiny_pipeline, tmp_path, [Row("a red fox", 20), Row("two apples", 5)], threshold=None, best=3)
    found = lines(tmp_path)
    assert (progress.drawn, progress.kept) == (25, 6)
    assert [line["text"] for line in found] == ["a red fox"] * 3 + ["two apples"] * 3
    drawn = tiny_pipeline("a red fox", seed=found[0]["seed"], num_candidates=20).candidates
    assert [line["score"] for line in found[:3]] == [candidate.score for candidate in drawn[:3]]


def test_training_reads_it(tiny_pipeline, tmp_path):
    run(tiny_pipeline, tmp_path, [Row("a red fox", 20), Row("狐狸\u2028和\x85香蕉", 5)], threshold=None)
    dataset = open_dataset(str(tmp_path), 32)
    kept_out = dataset.held_out("caption", 99)  # of two captions, one
    assert len(dataset) + len(kept_out) == 25 and dataset[0][0].size == (32, 32)
    assert {dataset.caption(0), kept_out[0][1]} == {"a red fox", "狐狸 和 香蕉"}  # one line for every reader


# ---------------------------------------------------------------- going on


class Killed(BaseException):
    """As if the process ended here: nothing of the package may catch it."""


def test_a_kill_at_any_write_loses_nothing_and_lists_nothing_twice(whole, tiny_pipeline, tmp_path, monkeypatch):
    for after in range(1, 1000):
        out, calls = tmp_path / f"killed{after}", 0

        def counted(call, last=after):
            def counting(*args):
                nonlocal calls
                calls += 1
                if calls == last:
                    raise Killed
                return call(*args)

            return counting

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", counted(os.replace))
            patch.setattr(os, "fsync", counted(os.fsync))
            try:
                run(tiny_pipeline, out)
            except Killed:
                pass
        for line in lines(out) if (out / "metadata.jsonl").exists() else []:
            Image.open(out / line["file_name"]).load()  # listed: whole
        if calls < after:
            break
        run(tiny_pipeline, out)
        assert contents(out) == contents(whole), after
    assert after > 20


def test_a_line_that_was_cut_off_is_written_again(whole, tiny_pipeline, tmp_path):
    steps = augment.augment(tiny_pipeline, ROWS, tmp_path / "cut", 7, THRESHOLD)
    while not (tmp_path / "cut" / "metadata.jsonl").exists():
        next(steps)
    steps.close()
    with open(tmp_path / "cut" / "metadata.jsonl", "ab") as file:
        file.write('{"file_name": "000000_0002.png", "text": "狐'.encode()[:-1])
    run(tiny_pipeline, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(whole)


def test_closed_between_two_tokens_it_goes_on_and_draws_only_the_rest(whole, own_pipeline, tmp_path):
    asked, stream = [], own_pipeline.stream

    def counted(prompt, **arguments):
        asked.append((arguments["seed"], arguments["num_candidates"]))
        return stream(prompt, **arguments)

    own_pipeline.stream = counted
    steps = augment.augment(own_pipeline, ROWS, tmp_path / "out", 7, THRESHOLD)
    while next(steps).drawn + 1 < 5:
        pass
    for _ in range(5):  # into the block after
        next(steps)
    steps.close()
    before = len(asked)
    steps = augment.augment(own_pipeline, ROWS, tmp_path / "out", 7, THRESHOLD)
    first = next(steps)
    assert first.drawn == 5 and first.kept == len(lines(tmp_path / "out"))
    assert list(steps)[-1].drawn == 8
    assert contents(tmp_path / "out") == contents(whole)
    assert sum(count for _, count in asked[before + 1 :]) == 3  # the first call only checks the settings
    before = len(asked)
    assert run(own_pipeline, tmp_path / "out").drawn == 8 and len(asked) == before + 1  # finished: nothing is drawn


def test_a_process_that_is_killed_goes_on(saved, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red fox\ntwo apples\n", encoding="utf-8")
    arguments = ["augment", str(tmp_path / "prompts.txt"), str(tmp_path / "out"), "--model", str(saved), "--count", "3000"]
    process = subprocess.Popen([sys.executable, "-m", "dalle_core", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    metadata = tmp_path / "out" / "metadata.jsonl"
    deadline = time.monotonic() + 60
    while not metadata.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = [Row("a red fox", 3000), Row("two apples", 3000)]
    steps = augment.augment(load(saved), rows, tmp_path / "out")
    first = next(steps)
    assert first.kept > 0 and first.drawn % 16 == 0
    while next(steps).drawn < first.drawn + 32:
        pass
    steps.close()
    names = [line["file_name"] for line in lines(tmp_path / "out")]
    assert names and len(set(names)) == len(names) and set(names) == {path.name for path in (tmp_path / "out").glob("*.png")}
    indices = sorted(int(name.removesuffix(".png").split("_")[1]) for name in names)
    assert indices == list(range(first.drawn + 32))  # none skipped


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": 8}, "seed 7, now 8"),
        ({"threshold": None}, "threshold 0.05, now None"),
        ({"rows": ROWS[:2]}, "other prompts"),
        ({"temperature": 0.5}, "temperature 1.0, now 0.5"),
        ({"best": 2}, "best None, now 2"),
    ],
)
def test_another_runs_folder_is_refused(tiny_pipeline, tmp_path, changes, message):
    next(augment.augment(tiny_pipeline, ROWS, tmp_path, 7, THRESHOLD))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=message):
        run(tiny_pipeline, tmp_path, **changes)
    assert contents(tmp_path) == before


def test_folders_that_cannot_be_used_are_named(tiny_pipeline, tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "metadata.jsonl").write_text("{}\n", encoding="utf-8")
    for out, message in (("file", "cannot be written"), ("file/below", "cannot be written"), ("own", "is not empty")):
        with pytest.raises(InputError, match=message):
            run(tiny_pipeline, tmp_path / out)
    assert (tmp_path / "own" / "metadata.jsonl").read_text(encoding="utf-8") == "{}\n"
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / ".augment.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        run(tiny_pipeline, tmp_path / "damaged")
    steps = augment.augment(tiny_pipeline, ROWS, tmp_path / "busy", 7, THRESHOLD)
    next(steps)
    with pytest.raises(InputError, match="Another run is writing"):
        run(tiny_pipeline, tmp_path / "busy")
    steps.close()
    run(tiny_pipeline, tmp_path / "busy")


def test_a_full_disk_keeps_a_whole_data_set(whole, tiny_pipeline, tmp_path, monkeypatch):
    out, calls, fsync = tmp_path / "full", 0, os.fsync

    def full(file):
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch, pytest.raises(InputError, match="The disk is full"):
        patch.setattr(os, "fsync", full)
        run(tiny_pipeline, out)
    assert archive(out, tmp_path / "full.zip") == len(lines(out)) > 0
    run(tiny_pipeline, out)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rows": []}, "no prompts"),
        ({"seed": -1}, "-1"),
        ({"seed": "7"}, "whole number"),
        ({"seed": 2**63}, "whole number"),
        ({"threshold": float("nan")}, "nan"),
        ({"threshold": 2}, "from -1 to 1"),
        ({"threshold": "0.2"}, "0.2"),
        ({"best": 0}, "best is '0'"),
        ({"best": 2, "rows": [Row("a fox", 65)]}, "Prompt 1: the best"),
        ({"rows": [Row("a fox", 1), Row("ЖЖ", 1)]}, "Prompt 2: This model knows none"),
        ({"top_p": 0}, "top_p"),
    ],
)
def test_what_the_model_cannot_take_is_said_before_anything_is_written(tiny_pipeline, tmp_path, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        run(tiny_pipeline, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_without_clip_everything_is_kept_and_nothing_judged(own_pipeline, tmp_path):
    own_pipeline.register_modules(clip=None)
    with pytest.raises(InputError, match="without CLIP"):
        run(own_pipeline, tmp_path)
    assert run(own_pipeline, tmp_path, threshold=None).kept == 8
    assert {line["score"] for line in lines(tmp_path)} == {None}


def test_a_zip_that_cannot_be_finished_leaves_nothing(whole, tmp_path):
    (whole / "README.md").unlink()
    (tmp_path / "zips").mkdir()
    with pytest.raises(FileNotFoundError):
        archive(whole, tmp_path / "zips" / "a.zip")
    assert list((tmp_path / "zips").iterdir()) == []


# ---------------------------------------------------------------- tables of prompts


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"prompt,count\na red fox,3\ntwo apples,\n", [("a red fox", 3), ("two apples", 5)]),
        ("\ufeffcount;Prompt \r\n2;Füchse\r\n\r\n".encode(), [("Füchse", 2)]),
        ("prompt\tnote\n狐狸\tx\n".encode("utf-16"), [("狐狸", 5)]),
        (b'prompt,prompts,x,x\n"a fox, red\nand large",,,\n', [("a fox, red and large", 5)]),
        (b"prompt\n=cmd|' /C calc'!A0\n", [("=cmd|' /C calc'!A0", 5)]),
        (b"prompt\n<script>alert(1)</script>,,\n", [("<script>alert(1)</script>", 5)]),
    ],
)
def test_tables(tmp_path, content, expected):
    (tmp_path / "a.csv").write_bytes(content)
    assert read_prompts(tmp_path / "a.csv", 5) == [Row(*row) for row in expected]


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"text,count\na fox,1\n", "“prompt”; its first line says: text, count"),
        (b"prompt,prompt\na,b\n", "2 columns “prompt”"),
        (b"prompt,count,Count\na,1,2\n", "2 columns “count”"),
        (b"prompt\na fox, red\n", "line 2 has 2 cells, the header 1"),
        (b"prompt,count\n,3\n", "line 2 has no prompt"),
        (b"prompt,count\na,x\n", "'x'"),
        (b"prompt,count\na,0\n", "from 1"),
        (b"prompt,count\na," + b"9" * 5000, "count is"),
        ("prompt\nFüchse\n".encode("latin-1"), "not UTF-8 text (line 2)"),
        (b"prompt\na\x00b\n", "line 2 holds a zero byte"),
        ("prompt\na fox\n".encode("utf-16-le"), "zero byte"),
        (b"\xff\xfea", "is not UTF-8"),
        (b"prompt\n" + b"a" * 30_000, "30,000 characters"),
        (b"prompt\n" + b"a" * 300_000, "cannot be read as CSV"),
        (b'prompt\n"a fox\ntwo apples\n', "cannot be read as CSV"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8"),
    ],
)
def test_tables_that_are_refused(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        read_prompts(tmp_path / "a.csv", 5)
    assert len(str(error.value)) < 300


def test_lines_of_text_and_many_rows(tmp_path):
    (tmp_path / "a.txt").write_text("a red fox\n\n  two apples \r\n", encoding="utf-8")
    assert read_prompts(tmp_path / "a.txt", 2) == [Row("a red fox", 2), Row("two apples", 2)]
    assert rows_of(["a\x00 fox\ud800", " "], 1) == [Row("a fox", 1)]
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path / "none.csv", 2)
    (tmp_path / "many.csv").write_text("prompt\n" + "a fox\n" * 10**5, encoding="utf-8")
    started = time.monotonic()
    with pytest.raises(InputError, match="These are 100,000 and 200,000.*python -m dalle_core augment"):
        asked_for("", str(tmp_path / "many.csv"), 2)
    assert time.monotonic() - started < 5
    with pytest.raises(InputError, match="python -m dalle_core augment"):
        asked_for("a" * 10**7, None, 2)


# ---------------------------------------------------------------- commands


def test_augment_command(saved, tmp_path, capsys):
    lines = "prompt,count\na red fox,3\na fox and a banana on a purple background in noto style,2\n"
    (tmp_path / "a.csv").write_text(lines, encoding="utf-8")
    arguments = ["augment", str(tmp_path / "a.csv"), str(tmp_path / "out"), "--model", str(saved), "--seed", "7"]
    main(arguments)
    out = capsys.readouterr().out
    assert "1 of 2 prompts are longer" in out and "5 pictures kept, 0 rejected" in out
    before = contents(tmp_path / "out")
    main(arguments)
    assert contents(tmp_path / "out") == before
    with pytest.raises(SystemExit) as error:
        main([*arguments, "--threshold", "0.1"])
    assert error.value.code == 2
    said = capsys.readouterr().err
    assert "augment: " in said and "threshold None, now 0.1" in said and "Traceback" not in said


def test_sample_command(saved, tiny_pipeline, tmp_path, capsys):
    arguments = ["sample", "a red fox", "--model", str(saved), "--candidates", "3", "--seed", "7"]
    arguments += ["--out", str(tmp_path / "out")]
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith("#")]
    assert not any("reads" in line for line in lines)  # nothing of the prompt is left out
    expected = tiny_pipeline("a red fox", num_candidates=3, seed=7)
    assert len(said) == 3
    for line, candidate in zip(said, expected.candidates, strict=True):
        path = Path(line.split("  ")[-1])
        assert path.name == f"a-red-fox_seed7_{candidate.index}.png" and f"{candidate.score:.3f}" in line
        recipe = json.loads(Image.open(path).text["dalle"])
        assert recipe["tokens"] == candidate.tokens.tolist() and recipe["prompt"] == "a red fox"
    before = contents(tmp_path / "out")
    main([*arguments, "--best", "1"])  # the same once more: nothing new
    assert contents(tmp_path / "out") == before
    main([*arguments, "--temperature", "0.3", "--best", "1"])  # others of the same name
    after = contents(tmp_path / "out")
    assert len(after) == 4 and before.items() <= after.items()
    (tmp_path / "more.txt").write_text("a fox\n\ntwo apples\n", encoding="utf-8")
    capsys.readouterr()
    several = ["sample", "a fox", "a red fox", "--prompts", str(tmp_path / "more.txt"), *arguments[2:-2]]
    main([*several, "--best", "1", "--out", str(tmp_path / "several")])
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("“")] == ["“a fox”", "“a red fox”", "“a fox”", "“two apples”"]
    assert len([line for line in said if line.startswith("#1 ")]) == 4 and len(contents(tmp_path / "several")) == 3
    none = ["--out", str(tmp_path / "none")]
    for prompts, message in ((["a fox", "Ж"], "none of the"), ([], "There is no prompt")):
        with pytest.raises(SystemExit):
            main(["sample", *prompts, *arguments[2:], *none])
        assert message in capsys.readouterr().err
    assert not contents(tmp_path / "none")  # what cannot be drawn is said before anything is
    for wrong, message in ((["--candidates", "0"], "num_candidates is '0'"), (["--best", "0"], "--best 0")):
        with pytest.raises(SystemExit):
            main([*arguments, *wrong])
        assert message in capsys.readouterr().err
