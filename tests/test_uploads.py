"""The gate for files: what lies below one folder is opened, everything else is refused in one sentence."""

import os
from pathlib import Path

import pytest
from PIL import Image

from dalle_core import InputError
from dalle_core.studio import uploads
from dalle_core.studio.uploads import REFUSED, checked, opened


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cache" / "a").mkdir(parents=True)
    (tmp_path / "cache-of-others").mkdir()
    picture = Image.new("RGB", (8, 8), "red")
    for path in ("secret.png", "cache/a/mine.png", "cache-of-others/x.png"):
        picture.save(tmp_path / path)
    os.symlink(tmp_path / "secret.png", tmp_path / "cache" / "a" / "link.png")
    os.symlink(tmp_path, tmp_path / "cache" / "a" / "up")
    os.symlink(tmp_path / "cache" / "a" / "loop", tmp_path / "cache" / "a" / "loop")
    os.symlink("mine.png", tmp_path / "cache" / "a" / "alias.png")
    os.mkfifo(tmp_path / "cache" / "a" / "pipe")
    return tmp_path / "cache"


def test_a_file_below_the_folder_is_opened(folder):
    assert opened(folder / "a" / "mine.png", folder).size == (8, 8)
    assert checked(str(folder / "a" / ".." / "a" / "alias.png"), folder) == Path(os.path.realpath(folder / "a" / "mine.png"))


@pytest.mark.parametrize("path", [
    "../secret.png", "../missing.png", "a/../../secret.png", "a/link.png", "a/up/secret.png", "a/up/missing.png", "a/loop",
    "a/pipe", "a", "", "/", "/etc/passwd", "/etc/shadow", "/nope", "/etc/passwd/x", "../cache-of-others/x.png", "a/mine.png\0",
    "a/" + "x" * 5000, "file:///etc/passwd", "http://127.0.0.1/", "data:image/png;base64,AAAA", "/proc/self/mem", "~/x",
])  # fmt: skip
def test_everything_else_is_refused_in_the_same_words(folder, path):
    with pytest.raises(InputError) as refused:
        opened(os.path.join(folder, path), folder)
    assert str(refused.value) == REFUSED
    with pytest.raises(InputError) as missing:
        opened("a/mine.png", folder)  # of another folder, the one the server was started in
    assert str(missing.value) == REFUSED


@pytest.mark.parametrize("path", [7, ["x"], {"path": "x"}, b"\xff", 3.5, True])
def test_what_is_no_path_is_refused(folder, path):
    with pytest.raises(InputError) as refused:
        checked(path, folder)
    assert str(refused.value) == REFUSED


def test_without_a_picture_one_is_asked_for(folder):
    for nothing in (None, ""):
        with pytest.raises(InputError, match="Choose a picture first."):
            opened(nothing, folder)


def test_a_folder_that_is_not_there_holds_nothing(tmp_path):
    with pytest.raises(InputError) as refused:
        checked("/etc/passwd", tmp_path / "none")
    assert str(refused.value) == REFUSED


def damaged(folder, how):
    path, data = folder / "a" / "odd.png", (folder / "a" / "mine.png").read_bytes()
    path.write_bytes({
        "cut": data[:50], "text": b"not a picture", "empty": b"", "flipped": data[:45] + b"\xff" + data[46:],
        "tiff": b"II*\0" + bytes(100), "ps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }[how])  # fmt: skip
    return path


@pytest.mark.parametrize("how", ["cut", "text", "empty", "flipped", "tiff", "ps"])
def test_what_is_wrong_with_a_picture_is_said_of_its_name_alone(folder, how):
    with pytest.raises(InputError, match="^odd.png is (damaged|not a picture)") as refused:
        opened(damaged(folder, how), folder)
    assert str(folder) not in str(refused.value) and "rrno" not in str(refused.value)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_PIXELS", 60)
    with pytest.raises(InputError, match="too large"):
        opened(folder / "a" / "mine.png", folder)
