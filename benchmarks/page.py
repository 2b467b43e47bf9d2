"""How long the page takes to answer after `python app.py`, and what the server needs.

Regime: a new process, the embedded model, nothing cached in memory but what the operating system keeps of files read
before (the second start on a machine). Then one request for 16 candidates through the page's own endpoint, and the
resident memory of the server after it (Linux). Nothing else should be running. Ends in one JSON line.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.embedded import cpu_name

ROOT = Path(__file__).parent.parent


def main() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    started = time.perf_counter()
    server = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    assert answer.status == 200
                    break
            except (urllib.error.URLError, ConnectionError):
                if server.poll() is not None or time.perf_counter() - started > 120:
                    raise SystemExit("the page did not answer")
                time.sleep(0.05)
        answered = time.perf_counter() - started

        from gradio_client import Client

        client = Client(url, verbose=False)
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            client.predict(prompt="a fox and a banana", negative="", candidates=16, seed="1", api_name="/generate")
            took = time.perf_counter() - start
        status = Path(f"/proc/{server.pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    finally:
        server.terminate()
        server.wait()
    print(
        json.dumps(
            {
                "page_answers_s": round(answered, 1), "generate_16_s": round(took, 2),
                "resident_memory_gib": round(resident / 2**20, 2), "cores": os.cpu_count(), "machine": cpu_name(),
            }
        )  # fmt: skip
    )


if __name__ == "__main__":
    main()
