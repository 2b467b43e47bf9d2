"""The page's files that are not Python: scripts, styles, an icon, the Chinese texts."""

from pathlib import Path


def read(name: str) -> str:
    """The text of a file of this folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
