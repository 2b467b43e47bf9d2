"""The gate for files: what lies below one folder is opened, everything else is refused in one sentence."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

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


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "../missing.png",
        "a/../../secret.png",
        "a/link.png",
        "a/up/secret.png",
        "a/up/missing.png",
        "a/loop",
        "a/pipe",
        "a",
        "",
        "/",
        "/etc/passwd",
        "/etc/shadow",
        "/nope",
        "/etc/passwd/x",
        "../cache-of-others/x.png",
        "a/mine.png\0",
        "a/" + "x" * 5000,
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "data:image/png;base64,AAAA",
        "/proc/self/mem",
        "~/x",
    ],
)
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
    path.write_bytes(
        {
            "cut": data[:50],
            "text": b"not a picture",
            "empty": b"",
            "flipped": data[:45] + b"\xff" + data[46:],
            "tiff": b"II*\0" + bytes(100),
            "ps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        }[how]
    )
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


# ---------------------------------------------------------------- what people hand in


@pytest.fixture
def odd_pictures(tmp_path):
    """File name -> what is wrong with it."""
    text_bomb = PngImagePlugin.PngInfo()
    text_bomb.add_text("dalle", "x" * 10**7, zip=True)
    # Upside down, and a resolution that is text, at which Pillow trips.
    damaged_exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\x01\x1a\0\x02\0\0\0\x01a\0\0\0\0\0\0\0"
    rgb = Image.effect_noise((80, 60), 60).convert("RGB")
    made = {
        "fine.png": lambda p: rgb.save(p),
        "palette.png": lambda p: rgb.convert("P").save(p),
        "cmyk.jpg": lambda p: rgb.convert("CMYK").save(p),
        "alpha.png": lambda p: rgb.convert("RGBA").save(p),
        "sixteen.png": lambda p: Image.fromarray((np.arange(4800).reshape(60, 80) * 13).astype(np.uint16)).save(p),
        "moving.gif": lambda p: rgb.save(p, save_all=True, append_images=[rgb.rotate(90)]),
        "text.png": lambda p: p.write_bytes(b"not a picture"),
        "svg.png": lambda p: p.write_bytes(b"<svg></svg>"),
        "cut.png": lambda p: (rgb.save(p), p.write_bytes(p.read_bytes()[:600])),
        "empty.png": lambda p: p.write_bytes(b""),
        "large.png": lambda p: Image.new("1", (10_000, 10_000)).save(p),
        "bomb.png": lambda p: Image.new("1", (20_000, 10_000)).save(p),
        "words.png": lambda p: rgb.save(p, pnginfo=text_bomb),
        "odd-exif.jpg": lambda p: rgb.save(p, exif=damaged_exif),
    }
    for name, write in made.items():
        write(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["fine.png", "palette.png", "cmyk.jpg", "alpha.png", "sixteen.png", "moving.gif", "odd-exif.jpg"]
)
def test_unusual_pictures_are_read(odd_pictures, tiny_pipeline, name):
    tokens = tiny_pipeline.encode(uploads.open_picture(odd_pictures / name))
    assert tokens.shape == (4, 4) and tiny_pipeline.decode(tokens).size == (64, 64)


@pytest.mark.parametrize("name", ["svg.png", "words.png"])
def test_what_is_no_picture_is_refused_in_a_sentence(odd_pictures, name):
    with pytest.raises(InputError, match=name):
        uploads.open_picture(odd_pictures / name)


@pytest.mark.parametrize("name", ["large.png", "bomb.png"])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_unpacked(odd_pictures, name, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was unpacked"))
    with pytest.raises(InputError, match=f"{name} is too large: up to 40 million pixels"):
        uploads.open_picture(odd_pictures / name)


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP"])
def test_a_phone_s_photo_comes_upright(tiny_pipeline, tmp_path, kind):
    upright = Image.new("RGB", (64, 64), (220, 30, 30))
    upright.paste((30, 30, 220), (0, 32, 64, 64))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored lying on its side
    more = {"save_all": True, "append_images": [upright]} if kind == "MPO" else {}
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo", kind, exif=exif, **more)
    seen = np.array(tiny_pipeline.square(uploads.open_picture(tmp_path / "photo"))).astype(int)
    assert abs(seen[:28] - (220, 30, 30)).mean() < 10 and abs(seen[36:] - (30, 30, 220)).mean() < 10


def test_deep_and_printed_colours_come_right(tmp_path, tiny_pipeline):
    grey = np.full((64, 64), 100, np.uint16)
    Image.fromarray(grey * 257).save(tmp_path / "sixteen.png")
    Image.new("RGB", (64, 64), (220, 30, 30)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    for name, colour in (("sixteen.png", (100, 100, 100)), ("cmyk.jpg", (220, 30, 30))):
        seen = np.array(tiny_pipeline.square(uploads.open_picture(tmp_path / name))).astype(int)
        assert abs(seen - colour).max() <= 2, name
