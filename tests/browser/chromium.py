"""Where the tests' Chromium is. As a command: exits with 0 when there is one."""

import os
import shutil
import sys
from pathlib import Path


def executable() -> str | None:
    """The path in $CHROMIUM, an installed Chromium or Chrome, or Playwright's own; None when there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    mac = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    found = os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)
    if found or Path(mac).exists():
        return found or mac
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


if __name__ == "__main__":
    sys.exit(0 if executable() else 1)
