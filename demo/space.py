"""`python -m demo.space OWNER/NAME`: puts the page with the embedded model on a Hugging Face Space, in one commit."""

import argparse
import sys
from pathlib import Path

import gradio
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import filter_repo_objects

from dalle_core import ModelError
from dalle_core.push import sentences

ROOT = Path(__file__).parent.parent
WANTED = ["app.py", "requirements.txt", "LICENSE", "demo/*", "dalle_core/*", "assets/emoji/*"]
UNWANTED = ["*/__pycache__/*", "*.pyc", "*.pyi"]
README = f"""---
title: DALL·E, ranked
emoji: 🎨
colorFrom: orange
colorTo: red
sdk: gradio
sdk_version: {gradio.__version__}
python_version: "3.12"
app_file: app.py
suggested_hardware: cpu-basic
license: mit
short_description: Type a prompt, watch a grid being drawn, ranked by CLIP
tags: [text-to-image, dall-e, vqgan, clip]
---

A small DALL·E for icons: type a prompt, watch a grid of candidates being drawn token by token, see them ranked by CLIP. The
code is MIT; the model's data and licences are in `assets/emoji/README.md`.
"""


def files() -> list[str]:
    """What a Space needs, as paths below the project: the page, the core, the embedded model."""
    every = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return sorted(filter_repo_objects(every, allow_patterns=WANTED, ignore_patterns=UNWANTED))


def push(api: HfApi, repo: str, private: bool = False) -> str:
    """Makes the Space if it is not there, and uploads all in one commit. Returns its address."""
    url = api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    operations = [CommitOperationAdd(path, ROOT / path) for path in files()]
    operations.append(CommitOperationAdd("README.md", README.encode()))
    api.create_commit(url.repo_id, operations, commit_message="The page and its model", repo_type="space")
    return str(url)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.space", description="Put the page on a Hugging Face Space.")
    parser.add_argument("repo", help="owner/name of the Space; it is made when it is not there")
    parser.add_argument("--private", action="store_true")
    args = parser.parse_args()
    try:
        with sentences(args.repo):
            print(push(HfApi(), args.repo, args.private))
    except ModelError as error:
        print(f"space: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
