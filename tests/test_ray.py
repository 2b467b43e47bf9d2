"""Several processes draw what one draws (augmentation on Ray Data, the page on Ray Serve), and any of them may be killed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from dalle_core import InputError, ModelError, cluster
from dalle_core.__main__ import main
from dalle_core.augment import augment
from dalle_core.catalogue import load
from dalle_core.prompts import Row
from dalle_core.request import DrawingRequest
from dalle_core.studio.holder import ModelHolder
from dalle_core.studio.store import Store
from dalle_core.studio.studio import Studio
from tests.conftest import make_pipeline

ROOT = Path(__file__).parent.parent
PROMPTS = [Row("a red fox", 300), Row("two apples", 40), Row("狐狸和香蕉", 260)]  # 39 blocks
SAMPLING = {"negative_prompt": "", "temperature": 0.9, "top_k": None, "top_p": None, "guidance_scale": None}
THRESHOLD = 0.05  # the tiny CLIP's scores lie on both sides
WAIT = 600  # seconds, at most: for processes that import PyTorch on a busy machine

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is optional")


@pytest.fixture(scope="module")
def ray():
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp" if os.name == "posix" else None)  # sockets' paths must be short
    os.environ.update(cluster.ALONE)
    import ray
    from ray._private import services

    get_node = services.get_node

    def patient(*args):  # Ray gives itself half a minute to start
        deadline = time.monotonic() + WAIT
        while True:
            try:
                return get_node(*args)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(services, "get_node", patient)
        cluster.connect(num_cpus=2, _temp_dir=folder)
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict:
    """The arguments of `load` for a tiny model on the disk."""
    folder = tmp_path_factory.mktemp("ray") / "model"
    make_pipeline().save_pretrained(folder)
    return {"source": str(folder), "device": None, "dtype": None, "clip": None}


def processes(name: str) -> list[psutil.Process]:
    """Of this Ray's, those whose title begins with a name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found += [process] if " ".join(process.cmdline()).startswith(name) else []
        except psutil.Error:  # it has just ended
            pass
    return found


def wait_until(condition, what: str):
    deadline = time.monotonic() + WAIT
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def listens_here_only() -> bool:
    """Whether this Ray's processes listen on this machine's own address, and on no other."""
    places = {
        place.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for place in process.net_connections("tcp")
        if place.status == psutil.CONN_LISTEN
    }
    return bool(places) and places <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def contents(out: Path) -> dict:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".augment.lock"}


def test_each_process_gets_its_part_of_the_cores(ray):
    assert cluster.share(1, None) == {"num_cpus": 2, "num_gpus": 0}
    assert cluster.share(2, "cpu") == {"num_cpus": 1, "num_gpus": 0}
    assert cluster.share(4, None) == {"num_cpus": 0.5, "num_gpus": 0}
    with pytest.raises(InputError, match="2 processes need 2 GPUs, and Ray has 0"):
        cluster.share(2, "cuda")
    with pytest.raises(InputError, match="use cuda in the place of cuda:1"):
        cluster.share(1, "cuda:1")


def test_without_ray_the_options_say_what_to_install(monkeypatch, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red fox\n", encoding="utf-8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["augment", str(tmp_path / "prompts.txt"), str(tmp_path / "out"), "--workers", "2"])
    said = "augment: Ray is not installed: pip install -r requirements-ray.txt, or this package with its extra “ray”.\n"
    assert capsys.readouterr().err == said


def blocks(out: Path) -> int:
    """That are finished."""
    return json.loads((out / ".augment.json").read_text(encoding="utf-8"))["blocks"]


def test_a_worker_that_is_killed_is_replaced_and_a_command_that_is_killed_goes_on(ray, model, tmp_path):
    pipe = load(**model)

    def draw(out):
        return augment(pipe, PROMPTS, tmp_path / out, 7, THRESHOLD, **SAMPLING)

    *_, last = draw("one")
    expected = contents(tmp_path / "one")
    assert last.drawn == 600 > last.kept > 0

    many = tmp_path / "many"
    begun = draw("many")
    while next(begun).drawn < 32:
        pass
    begun.close()
    lines = "".join(f"{row.prompt},{row.count}\n" for row in PROMPTS)
    (tmp_path / "prompts.csv").write_text(f"prompt,count\n{lines}", encoding="utf-8")
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)}
    model_folder = os.path.relpath(model["source"], tmp_path)  # the workers' own directory is another
    said = (tmp_path / "said.txt").open("wb")
    command = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "dalle_core",
            "augment",
            "prompts.csv",
            "many",
            "--model",
            model_folder,
            "--seed",
            "7",
            "--threshold",
            str(THRESHOLD),
            "--temperature",
            "0.9",
            "--workers",
            "2",
        ],
        cwd=tmp_path,
        env=environment,
        stderr=said,
    )
    try:
        wait_until(lambda: blocks(many) > 2 or command.poll() is not None, "the workers drew nothing")
        victims = processes("ray::MapWorker")
        assert len(victims) == 2, (tmp_path / "said.txt").read_text(encoding="utf-8")
        victims[0].kill()
        at = blocks(many)
        # Blocks are written in order, so those of the killed worker are among them.
        wait_until(lambda: blocks(many) > at + 4 or command.poll() is not None, "nobody took over")
    finally:
        command.kill()
        command.wait()
        said.close()
    assert at + 4 < blocks(many) < 39, (tmp_path / "said.txt").read_text(encoding="utf-8")

    *_, last = draw("many")
    names = [json.loads(line)["file_name"] for line in (many / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert last.drawn == 600 and len(set(names)) == len(names) == last.kept
    assert contents(many) == expected  # names, recipes, seeds, scores, order: every byte


def test_what_a_worker_cannot_do_is_a_sentence(ray, model, tmp_path):
    from ray.exceptions import ActorDiedError

    from dalle_core import workers

    with pytest.raises(ModelError, match="^There is no model 'nowhere': give a folder") as error:
        workers.augment(model | {"source": "nowhere"}, 2, PROMPTS, tmp_path / "out", 7, None, None, SAMPLING)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="^Prompt 1: This model knows none of"):
        workers.augment(model, 2, [Row("ЖЖ", 1)], tmp_path / "out", 7, None, None, SAMPLING)
    assert not (tmp_path / "out").exists()
    assert "killed again and again" in str(cluster.sentence(ActorDiedError()))
    assert "failed: division by zero" in str(cluster.sentence(ZeroDivisionError("division by zero")))


def test_a_page_whose_replica_is_killed_goes_on_and_one_that_is_left_is_free(ray, model, tmp_path, monkeypatch):
    from dalle_core.studio import replicas

    class Watched(replicas.Replica):
        async def drawings(self) -> tuple[int, int]:
            return os.getpid(), len(self.pipe.engine._requests)

    monkeypatch.setattr(replicas, "Replica", Watched)
    pipe = replicas.open_replicas(2, model, lambda: load(**model))
    drawings = pipe._compute.__self__.options(method_name="drawings", stream=False).remote
    asked, compute = [], pipe._compute
    pipe._compute = lambda work, *args, **kwargs: asked.append(work) or compute(work, *args, **kwargs)
    studio = Studio(ModelHolder(pipe, "tiny"), Store(tmp_path / "store", also=[tmp_path]))
    request = DrawingRequest("a red fox", num_candidates=64, seed=5)

    replicas_there = processes(f"ray::ServeReplica:{replicas.APPLICATION}")
    assert len(replicas_there) == 2
    if sys.platform == "linux":  # others do not show what a process listens on
        assert listens_here_only()
    updates = studio.draw("1.2.3.4", request, preview_every=1)
    seen = [next(updates), next(updates)]
    pid, count = drawings().result()
    victim = next(one for one in replicas_there if (one.pid == pid) == (count > 0))  # the one that draws
    victim.kill()
    seen += updates
    assert asked == ["stream", "stream"]  # it was killed in the middle
    indices = [update.index for update in seen]
    assert indices == sorted(indices) and all(len(update.previews) == 64 for update in seen if update.previews)
    expected = pipe.pipe("a red fox", num_candidates=64, seed=5).candidates
    assert len(seen[-1].pictures) == 64 == len(list((tmp_path / "store").rglob("*.png")))  # nothing is lost or there twice
    for picture, candidate in zip(seen[-1].pictures, expected, strict=True):
        assert (picture.drawn.index, picture.drawn.score) == (candidate.index, candidate.score)
        assert np.array_equal(np.array(Image.open(picture.path)), np.array(candidate.image))

    left = studio.draw("1.2.3.4", request, preview_every=1)
    next(left), next(left)
    left.close()
    wait_until(lambda: drawings().result()[1] == 0, "it goes on drawing for nobody")
    path = studio.store.write("1.2.3.4", "fox.png", Path(seen[-1].pictures[0].path).read_bytes())
    assert studio.tokens_of("1.2.3.4", str(path)) == expected[0].tokens.tolist()
    assert [label.text for label in studio.recognise("1.2.3.4", str(path), ["a fox", "two apples"])] == [
        label.text for label in pipe.pipe.recognise(expected[0].image, ["a fox", "two apples"])
    ]
    with pytest.raises(InputError, match="negative prompt"):
        list(studio.draw("1.2.3.4", DrawingRequest("a fox", "Ж")))
