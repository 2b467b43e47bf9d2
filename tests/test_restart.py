"""kill -9 in the middle of each long operation: the page starts again, what was finished is there, nothing stays for ever."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gradio_client import Client
from PIL import Image

from dalle_core.studio.store import Store
from tests.test_app import ROOT, free_port  # noqa: F401  a fixture


def start(folder: Path, model: Path, port: str) -> subprocess.Popen:
    """`python app.py`, ready to answer."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": str(folder / "gradio")}
    command = [sys.executable, "app.py", "--model", str(model), "--port", port]
    with open(folder / "said.txt", "wb") as said:
        server = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=environment)
    for _ in range(1200):
        if b"MCP" in (folder / "said.txt").read_bytes():  # the last that Gradio says of its start
            return server
        assert server.poll() is None, (folder / "said.txt").read_text(encoding="utf-8", errors="replace")
        time.sleep(0.1)
    raise AssertionError("the page did not start")


def kill(server: subprocess.Popen) -> None:
    server.send_signal(signal.SIGKILL)
    server.wait()


def visit(port: str) -> Client:
    return Client(f"http://127.0.0.1:{port}/", verbose=False)


def begun(job, folder: Path) -> None:
    """Waits until a long job has said something and written a file."""
    for _ in range(1200):
        if job.outputs() and any(path.is_file() for path in (folder / "gradio" / "studio").rglob("*")):
            return
        assert not job.done(), "it ended before it could be killed"
        time.sleep(0.05)
    raise AssertionError("it did not begin")


def test_a_page_that_is_killed_while_it_draws_starts_again_and_forgets_nothing_for_ever(saved, tmp_path, free_port):  # noqa: F811
    folder = tmp_path / "page"
    folder.mkdir()
    server = start(folder, saved, free_port)
    try:
        finished = visit(free_port).predict("a red fox", num_candidates=2, seed=5, api_name="/generate")
        # A grid, a data set and an X/Y grid, each killed in its middle.
        client = visit(free_port)
        jobs = [
            client.submit("two apples", num_candidates=64, preview_every=1, api_name="/generate"),
            client.submit(["a fox"] * 100, count=10, api_name="/augment"),
            client.submit("a fox", "seed", list(range(64)), num_candidates=4, api_name="/compare"),
        ]
        begun(jobs[1], folder)
        kill(server)

        server = start(folder, saved, free_port)
        again = visit(free_port).predict("a red fox", num_candidates=2, seed=5, api_name="/generate")
        assert [one["tokens"] for one in again["candidates"]] == [one["tokens"] for one in finished["candidates"]]
        whole = list((folder / "gradio" / "studio").rglob("*.png"))
        for path in whole:  # a file is whole or not at all
            Image.open(path).load()
        kill(server)

        # Whoever's they were: what lies there has an age, and goes with it.
        left = list((folder / "gradio" / "studio").iterdir())
        assert left
        for path in left:
            os.utime(path, (1, 1))
            for inner in path.rglob("*"):
                os.utime(inner, (1, 1))
        Store(folder / "gradio" / "studio")
        assert list((folder / "gradio" / "studio").iterdir()) == []
    finally:
        kill(server)
