"""The training loop: a run that was killed ends where it would have ended, alone or with others, and says what is wrong."""

import argparse
import json
import random
import shutil
import time

import pytest
import torch

from dalle_core.errors import InputError, ModelError
from dalle_core.priors.gpt import GPTPrior
from dalle_core.training import checkpoints
from dalle_core.training.arguments import add_arguments, command
from dalle_core.training.loop import Loop, learning_rate
from tests import runs
from tests.runs import one_thread  # noqa: F401  every test here


def result(out) -> dict:
    return torch.load(out / "result" / "model.pt", weights_only=True)


def log(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("whole")
    runs.toy(out, save_minutes=0)
    return out


def test_a_run_leaves_its_log_its_arguments_and_its_last_checkpoints(whole):
    lines = log(whole)
    assert [line["step"] for line in lines] == list(range(1, 13)) and lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["seen"] == 96 and lines[-1]["time"] == pytest.approx(time.time(), abs=600)
    config = json.loads((whole / "config.json").read_text(encoding="utf-8"))
    assert config["arguments"]["batch_size"] == 8 and config["versions"]["torch"] == torch.__version__
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step_000011", "step_000012"]


def test_killed_at_any_moment_a_run_ends_with_the_same_bytes(whole, tmp_path):
    """kill -9, some times: mostly while a checkpoint is being written, as one is written after each step."""
    chance, kills = random.Random(4), 0
    while kills < 6:
        before = (tmp_path / "log.jsonl").stat().st_size if (tmp_path / "log.jsonl").exists() else 0
        (process,) = runs.start(runs._toy, tmp_path, {"save_minutes": 0, "pause": 0.02})
        deadline = time.monotonic() + 60
        while process.is_alive() and time.monotonic() < deadline:  # until it is at work
            if (tmp_path / "log.jsonl").exists() and (tmp_path / "log.jsonl").stat().st_size != before:
                break
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.06))
        process.kill()
        process.join()
        kills += 1
        if (tmp_path / "result").exists():
            break
    assert kills >= 3, "the run was over before it was killed often"
    runs.toy(tmp_path, save_minutes=0)
    assert (tmp_path / "result" / "model.pt").read_bytes() == (whole / "result" / "model.pt").read_bytes()
    losses = [[(line["step"], line["loss"], line["seen"]) for line in log(out)] for out in (tmp_path, whole)]
    assert losses[0] == losses[1]  # no step twice, none missing


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("file", ["optimizer.bin", "toy.safetensors", "objects.pt", "files.json"])
@pytest.mark.parametrize("damage", [cut, emptied])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(whole, tmp_path, capsys, file, damage):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    shutil.copytree(whole / "checkpoints" / "step_000012", tmp_path / "checkpoints" / "step_000013.part")
    damage(tmp_path / "checkpoints" / "step_000012" / file)
    runs.toy(tmp_path)
    said = capsys.readouterr().out
    assert "step_000012 is damaged" in said and "trying the one before" in said
    assert equal(result(tmp_path), result(whole)) and [line["step"] for line in log(tmp_path)] == [12]
    checkpoints.check(tmp_path / "checkpoints" / "step_000012")  # written anew


def test_damage_that_leaves_the_size_is_noticed_too(whole, tmp_path, capsys):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "step_000012" / "objects.pt"
    path.write_bytes(bytes(path.stat().st_size))
    runs.toy(tmp_path)
    assert "step_000012 is damaged" in capsys.readouterr().out and equal(result(tmp_path), result(whole))


def test_a_run_without_a_whole_checkpoint_does_not_start_anew(whole, tmp_path):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    for _, path in checkpoints.found(tmp_path / "checkpoints"):
        emptied(path / "toy.safetensors")
    with pytest.raises(ModelError, match="take another --out"):
        runs.toy(tmp_path)


def test_on_a_full_disk_the_checkpoint_before_stays(whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    save = torch.save

    def full_disk(object_, file, *args, **kwargs):
        if "objects.pt" in str(file):
            raise OSError(28, "No space left on device")
        save(object_, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(ModelError, match="step 13 could not be written.*No space left on device.*make room"):
        runs.toy(tmp_path / "run", steps=14, save_minutes=0)
    assert [step for step, _ in checkpoints.found(tmp_path / "run" / "checkpoints")] == [11, 12]
    assert not list((tmp_path / "run" / "checkpoints").glob("*.part"))
    monkeypatch.undo()
    runs.toy(tmp_path / "run", steps=14)
    assert [line["step"] for line in log(tmp_path / "run")] == list(range(1, 15))


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        command("toy", lambda args: Loop("toy", args, 1), runs.options(tmp_path / "file"))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and "cannot be written to" in said and "--out" in said


def test_a_run_goes_on_with_its_own_arguments_only(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with pytest.raises(InputError, match="started with --seed 0, and now it is 1"):
        runs.toy(tmp_path / "run", seed=1)
    runs.toy(tmp_path / "run", steps=13, keep=1, accumulation=2)  # these may change
    assert [step for step, _ in checkpoints.found(tmp_path / "run" / "checkpoints")] == [13]
    with pytest.raises(InputError, match="has done 13 steps already"):
        runs.toy(tmp_path / "run", steps=12)


def test_gradients_are_accumulated(whole, tmp_path):
    runs.toy(tmp_path, accumulation=4)
    for name, value in result(tmp_path).items():
        torch.testing.assert_close(value, result(whole)[name], rtol=1e-5, atol=1e-6)


def test_a_batch_that_cannot_be_shared_out_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="--batch-size 8 .* Take a multiple of 3"):
        runs.toy(tmp_path, accumulation=3)


def close(out, whole) -> None:
    for ours, theirs in zip(log(out), log(whole), strict=True):
        assert ours["step"] == theirs["step"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    for name, value in result(out).items():
        torch.testing.assert_close(value, result(whole)[name], rtol=1e-4, atol=1e-6)


def test_two_processes_do_what_one_does_and_their_number_may_change(whole, tmp_path):
    runs.toy_in_processes(2, tmp_path / "two", accumulation=2, save_minutes=0)
    close(tmp_path / "two", whole)
    for first, then in ((2, 1), (1, 2)):
        out = tmp_path / f"from {first} to {then}"
        runs.toy_in_processes(first, out, until=7)
        runs.toy_in_processes(then, out)
        close(out, whole)


def test_under_fsdp_two_processes_do_what_one_does(tmp_path):
    """Weights, Muon's and AdamW's states and the moving average are cut up, and whole again in the result."""
    runs.transformer(tmp_path / "one", sharded=False)
    for until in (2, None):  # the second time it goes on
        runs.finish(runs.start(runs.transformer, tmp_path / "two", True, until, processes=2))
    for ours, theirs in zip(log(tmp_path / "two"), log(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    ours, theirs = (GPTPrior.from_pretrained(tmp_path / name / "prior").state_dict() for name in ("two", "one"))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="under FSDP: go on with it in the same way"):
        runs.transformer(tmp_path / "two", sharded=False)


def test_what_is_saved_is_the_moving_average(tmp_path):
    loop = Loop("toy", runs.options(tmp_path), 3)
    model = runs.Toy()
    loop.prepare("toy", model, torch.optim.SGD(model.parameters(), lr=1.0), ema_decay=0.5)
    expected, now = [], model.second.bias.detach().clone()
    for step, _ in loop.run(range(3)):
        loop.backward(model.second.bias.sum())
        loop.update("toy")
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0  # diffusers begins slowly
        now = now * decay + model.second.bias.detach() * (1 - decay)
        expected.append(now)
    trained = model.second.bias.detach().clone()
    with loop.averaged("toy") as averaged:
        torch.testing.assert_close(averaged.second.bias.detach(), expected[-1], atol=1e-5, rtol=0)
        assert not torch.equal(averaged.second.bias, trained)
    assert torch.equal(model.second.bias, trained)
    loop.save_pretrained("toy", tmp_path / "result")
    assert torch.equal(result(tmp_path)["second.bias"], loop.trained["toy"].ema.shadow_params[2])


def test_learning_rates_follow_their_own_peaks(tmp_path):
    loop = Loop("toy", runs.options(tmp_path), 10, warmup=4)
    model = runs.Toy()
    first, second = torch.optim.SGD(model.first.parameters(), lr=0.5), torch.optim.SGD(model.second.parameters(), lr=0.1)
    loop.prepare("toy", model, [first, second])
    for step, x in loop.run(runs.batch(step) for step in range(10)):
        loop.backward(model(x).square().mean())
        loop.update("toy")
        rates = [group["lr"] for optimizer in (first, second) for group in optimizer.param_groups]
        assert rates == [learning_rate(step, 10, 0.5, 4), learning_rate(step, 10, 0.1, 4)]
    assert learning_rate(0, 10, 0.5, 4) == 0.125 and learning_rate(10, 10, 0.5, 4) == pytest.approx(0.01)


def test_bfloat16_on_the_cpu_and_tensorboard(tmp_path):
    runs.toy(tmp_path, precision="bf16", tensorboard=True, steps=3)
    assert len(log(tmp_path)) == 3 and list(tmp_path.rglob("events.out.tfevents*"))


def test_the_command_line_has_what_the_loop_reads(tmp_path):
    parser = argparse.ArgumentParser()
    add_arguments(parser, out=str(tmp_path), batch_size=4)
    assert Loop("toy", parser.parse_args(["--cpu"]), 1).batch_size == 4
