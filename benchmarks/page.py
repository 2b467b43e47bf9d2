"""How long the page takes to answer after `python app.py`, and from a click to the ranked grid; what the server needs.

Regime: a new process, the embedded model, nothing cached in memory but what the operating system keeps of files read
before (the second start on a machine). Then requests for 16 candidates, with previews, typed into the page in a
headless Chromium on the same cores: seconds until the first preview and until the ranked grid with all its pictures is
seen, medians of `--repeats` after a first one that warms up. Last, the resident memory of the server (Linux). Nothing
else should be running. Ends in one JSON line.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from playwright.sync_api import sync_playwright

from benchmarks.embedded import cpu_name
from tests.browser.chromium import executable

ROOT = Path(__file__).parent.parent
POLLING = 50  # milliseconds between looks at the page; looking at every frame would slow it down
PREVIEW = "document.querySelector('#previews img')?.naturalWidth > 0"
GRID = """() => {
  const pictures = [...document.querySelectorAll("#gallery img")];
  return pictures.length == 16 && document.querySelectorAll("#gallery .caption-label").length == 16
    && pictures.every((picture) => picture.complete && picture.naturalWidth > 0);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description="From a start to the page, from a click to the ranked grid.")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
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
                    raise SystemExit("the page did not answer") from None
                time.sleep(0.05)
        answered = time.perf_counter() - started
        previews, grids = zip(*from_click(url, 1 + args.repeats))
        status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    finally:
        server.terminate()
        server.wait()
    print(
        json.dumps(
            {
                "page_answers_s": round(answered, 1),
                "first_grid_s": round(grids[0], 2),
                "preview_s": round(statistics.median(previews[1:]), 2),
                "grid_s": round(statistics.median(grids[1:]), 2),
                "resident_memory_gib": round(resident / 2**20, 2),
                "cores": os.cpu_count(),
                "machine": cpu_name(),
            }
        )
    )


def from_click(url: str, times: int) -> list[tuple[float, float]]:
    """(seconds to the first preview, to the ranked grid), of each of several clicks in one page."""
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1440, "height": 1200})
        page.goto(url)
        page.locator("#generate:not([disabled])").wait_for()
        page.locator("#prompt textarea").fill("a fox and a banana")
        for _ in range(times):
            page.wait_for_timeout(1000)
            start = time.perf_counter()
            page.locator("#generate").click()
            page.wait_for_function(PREVIEW, polling=POLLING)
            preview = time.perf_counter() - start
            page.wait_for_function(GRID, polling=POLLING)
            found.append((preview, time.perf_counter() - start))
        browser.close()
    return found


if __name__ == "__main__":
    main()
