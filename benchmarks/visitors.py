"""A public page with a crowd: sixty visitors, each of whom draws one grid of 16 after the other for two minutes.

Regime: `app.py --public --proxies 1` with the embedded model, on the same cores; each visitor has an address of its own by
X-Forwarded-For, one of eight seeds, and asks again a second after the queue was full. First the seeds are drawn alone. Then
these must hold, or the run fails: no request gets another's candidates, nor others than it gets alone; the queue is never
longer than its bound; the files stay within the store's quota; nobody waits longer than the place in the queue explains:
while one waits, those before it and those that are being drawn finish, and a few that are drawn beside it, no more. Ends in
one JSON line. Nothing else should be running.
"""

import argparse
import inspect
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.embedded import cpu_name
from dalle_core.studio.store import Store

ROOT = Path(__file__).parent.parent
PROMPT, CANDIDATES, SEEDS = "a fox and a banana", 16, 8
TOGETHER, LONGEST = 4, 16  # drawn at once, waiting: as the page has them


@dataclass
class Asked:
    """How one request went."""

    seed: int
    place: int  # requests before it when it joined the queue
    begun: float  # seconds of the clock
    ended: float
    candidates: dict[int, list]  # index -> tokens; {}: it ended otherwise
    said: str  # an error's sentence

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


class Page:
    """The page as one visitor sees it."""

    def __init__(self, url: str, event: int, arguments: list[str], address: str):
        self.web = httpx.Client(base_url=f"{url}gradio_api/", headers={"X-Forwarded-For": address}, timeout=600)
        self.event, self.arguments = event, arguments

    def ask(self, seed: int) -> Asked | None:
        """None: the queue is full."""
        given = {"prompt": PROMPT, "num_candidates": CANDIDATES, "seed": seed, "negative_prompt": "", "preview_every": 0}
        session, started, place = secrets.token_hex(8), time.perf_counter(), 0
        body = {"data": [given.get(name) for name in self.arguments], "fn_index": self.event, "session_hash": session}
        if (joined := self.web.post("queue/join", json=body)).status_code == 503:
            return None
        joined.raise_for_status()
        with self.web.stream("GET", "queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
                if message["msg"] == "estimation":
                    place = max(place, message["rank"] or 0)
                if message["msg"] == "process_completed":
                    break
        output = message["output"]
        found = output["data"][0]["candidates"] if message["success"] else []
        tokens = {one["index"]: one["tokens"] for one in found if one["seed"] == seed}
        return Asked(seed, place, started, time.perf_counter(), tokens, str(output.get("error", "")))


def main() -> None:
    parser = argparse.ArgumentParser(description="A public page with a crowd.")
    parser.add_argument("--visitors", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as files:
        server = subprocess.Popen(
            [sys.executable, "app.py", "--public", "--proxies", "1", "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"GRADIO_TEMP_DIR": files},
        )
        try:
            found = crowd(url, args, Path(files), server)
        finally:
            server.terminate()
            server.wait()
    print(json.dumps(found | {"cores": os.cpu_count(), "machine": cpu_name()}))


def crowd(url: str, args: argparse.Namespace, files: Path, server: subprocess.Popen) -> dict:
    """The figures. Raises SystemExit when something does not hold."""
    config = wait_for(f"{url}config", server).json()
    event = next(event["id"] for event in config["dependencies"] if event["api_name"] == "generate")
    info = httpx.get(f"{url}gradio_api/info").json()["named_endpoints"]["/generate"]["parameters"]
    names = [parameter["parameter_name"] for parameter in info]

    first = Page(url, event, names, "203.0.113.1")
    alone = {seed: first.ask(seed) for seed in range(SEEDS)}
    if bad := [asked for asked in alone.values() if len(asked.candidates) != CANDIDATES]:
        raise SystemExit(f"A request alone ended with: {bad[0].said}")

    asked, full, lengths, stop = [], [], [0], threading.Event()

    def visit(number: int) -> None:
        page = Page(url, event, names, f"198.51.100.{number}" if number < 256 else f"192.0.2.{number - 256}")
        while not stop.is_set():
            found = page.ask(number % SEEDS)
            (full if found is None else asked).append(found)
            if found is None:
                stop.wait(1)

    def watch() -> None:
        with httpx.Client() as web:
            while not stop.wait(0.5):
                lengths.append(web.get(f"{url}gradio_api/queue/status", timeout=60).json()["queue_size"])

    started = time.perf_counter()
    with ThreadPoolExecutor(args.visitors + 1) as people:
        works = [people.submit(watch), *(people.submit(visit, number) for number in range(args.visitors))]
        time.sleep(args.seconds)
        stop.set()
    elapsed = time.perf_counter() - started
    for work in works:
        work.result()
    return figures(args, asked, full, lengths, alone, elapsed, files, server)


def figures(args, asked: list[Asked], full: list, lengths: list[int], alone: dict, elapsed: float, files: Path, server) -> dict:
    drawn = [one for one in asked if one.candidates]
    mixed = [one for one in drawn if one.candidates != alone[one.seed].candidates]
    # How many more finished while one waited than were before it or being drawn.
    overtaken = max(sum(one.begun < other.ended < one.ended for other in drawn) - one.place - TOGETHER for one in drawn)
    quota = inspect.signature(Store).parameters["quota"].default
    size = sum(file.stat().st_size for file in files.rglob("*") if file.is_file())
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
    memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    slowest = max(drawn, key=lambda one: one.seconds)
    found = {
        "visitors": args.visitors,
        "seconds": round(elapsed, 1),
        "drawings": len(drawn),
        "refused": sorted({one.said for one in asked if one.said}),
        "times_queue_was_full": len(full),
        "longest_queue": max(lengths),
        "mixed_up": len(mixed),
        "slowest_s": round(slowest.seconds, 1),
        "its_place": slowest.place,
        "alone_s": round(min(one.seconds for one in alone.values()), 2),
        "most_overtaken_by": max(overtaken, 0),
        "files_mib": round(size / 2**20, 1),
        "resident_memory_gib": round(memory / 2**20, 2),
    }
    wrong = {
        "other candidates than alone": bool(mixed),
        "a queue longer than its bound": max(lengths) > LONGEST,
        "files over quota": size > quota,
        "a wait that its place does not explain": overtaken > 2 * TOGETHER,
        "requests that failed": len(drawn) < len(asked),
    }
    if any(wrong.values()):
        raise SystemExit(f"{', '.join(what for what, is_so in wrong.items() if is_so)}: {json.dumps(found)}")
    return found


def wait_for(url: str, server: subprocess.Popen) -> httpx.Response:
    for _ in range(1200):
        try:
            return httpx.get(url, timeout=10).raise_for_status()
        except httpx.HTTPError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    raise SystemExit("the page did not answer")


if __name__ == "__main__":
    main()
