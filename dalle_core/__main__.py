"""`python -m dalle_core convert SOURCE OUT`: any model into a folder of this project's layout."""

import argparse
import sys
from pathlib import Path

import torch

from dalle_core.convert import convert
from dalle_core.errors import ModelError


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dalle_core")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert", help="a published model into a folder of this project's layout")
    command.add_argument("source", help="a name (dalle-mini, dalle-mega), a folder of min-dalle, dalle-mini or minDALL·E, or a Hub id")
    command.add_argument("out", type=Path, help="a new folder")
    command.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float16", help="(default: %(default)s)")
    command.add_argument("--clip", help='folder or Hub id of the CLIP that ranks, or "none" (default: the usual one)')
    args = parser.parse_args()
    try:
        convert(args.source, args.out, getattr(torch, args.dtype), args.clip, tell=lambda line: print(line, flush=True))
    except (ModelError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{args.out} is ready: dalle_core.load({str(args.out)!r})")


if __name__ == "__main__":
    main()
