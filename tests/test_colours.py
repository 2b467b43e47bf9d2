"""Any picture becomes the same RGB wherever it comes in: 16 bits, colour profiles, damaged ones."""

import io
import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from dalle_core.image_tokenizer import flat, to_pixels
from dalle_core.training.data import open_dataset

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = {b"rXYZ": (0.51512, 0.24119, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189), b"bXYZ": (0.1571, 0.06657, 0.78407)}


def fixed(*numbers) -> bytes:
    """ICC's s15Fixed16Number."""
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def display_p3() -> bytes:
    """sRGB's curve with the primaries of Display P3, as phones embed it."""
    profile = bytearray(SRGB)
    for i in range(struct.unpack(">I", profile[128:132])[0]):
        name, offset, size = struct.unpack(">4sII", profile[132 + 12 * i : 144 + 12 * i])
        if name in P3:
            profile[offset + 8 : offset + 20] = fixed(*P3[name])
    return bytes(profile)


def profile_of(space: bytes, connection: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = tags | {b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249)}
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4sI4s4s4s12s4s24s", start + len(data), b"", 0x02400000, kind, space, connection, bytes(12), b"acsp", bytes(24)
    )
    header += struct.pack(">I", 0) + fixed(0.9642, 1, 0.8249) + bytes(48)
    return header[:128] + table + data


def linear_grey() -> bytes:
    """Numbers that are proportional to light."""
    return profile_of(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": b"curv\0\0\0\0" + bytes(4)})


def cyan_is_black() -> bytes:
    """A printer whose cyan ink is black and whose other inks are invisible."""
    ramp = bytes(range(256))
    grid = b"".join(bytes([255 * (1 - cyan), 128, 128]) * 8 for cyan in (0, 1))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + 4 * ramp + grid + 3 * ramp
    return profile_of(b"CMYK", b"Lab ", b"prtr", {b"A2B0": table})


def opened(image: Image.Image, format_: str, profile: bytes | None) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format_, icc_profile=profile, quality=100)
    return Image.open(io.BytesIO(file.getvalue()))


def colour(image: Image.Image) -> tuple:
    """Of its first pixel, by the one way to RGB."""
    return tuple(int(value) for value in np.asarray(flat(image))[0, 0])


def near(found, expected) -> bool:
    return max(abs(a - b) for a, b in zip(found, expected)) <= 2


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_a_phone_s_colours_are_those_it_shows(format_):
    """Display P3's (200, 100, 100) is sRGB's (214, 95, 97)."""
    to_linear = lambda value: np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)  # noqa: E731
    from_linear = lambda value: np.where(value > 0.0031308, 1.055 * value ** (1 / 2.4) - 0.055, 12.92 * value)  # noqa: E731
    srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
    light = np.array(list(P3.values())).T @ to_linear(np.array([200, 100, 100]) / 255)
    expected = 255 * from_linear(np.linalg.inv(srgb) @ light)
    assert expected[0] - 200 > 8  # the profile matters
    image = opened(Image.new("RGB", (16, 16), (200, 100, 100)), format_, display_p3())
    assert near(colour(image), expected)
    assert flat(flat(image)).tobytes() == flat(image).tobytes()  # once
    assert colour(opened(Image.new("RGB", (16, 16), (200, 100, 100)), "PNG", SRGB)) == (200, 100, 100)


def test_profiles_of_other_kinds_of_pictures():
    grey = Image.new("L", (16, 16), 55)
    assert near(colour(opened(grey, "PNG", linear_grey())), (128, 128, 128))
    deep = Image.fromarray(np.full((16, 16), 55 * 257, np.uint16))
    assert near(colour(opened(deep, "PNG", linear_grey())), (128, 128, 128))
    both = Image.merge("LA", (grey, Image.new("L", (16, 16), 0)))
    assert colour(opened(both, "PNG", linear_grey())) == (255, 255, 255)
    assert near(colour(opened(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", cyan_is_black())), (0, 0, 0))
    assert near(colour(opened(Image.new("CMYK", (16, 16), (0, 255, 0, 0)), "JPEG", cyan_is_black())), (255, 255, 255))
    red = Image.new("RGB", (16, 16), (200, 100, 100))
    clear = red.copy()
    clear.putalpha(0)
    assert colour(opened(clear, "PNG", display_p3())) == (255, 255, 255)
    assert colour(opened(red.quantize(2), "PNG", display_p3())) == colour(opened(red, "PNG", display_p3()))


@pytest.mark.parametrize(
    "profile",
    [b"no profile", SRGB[:200], SRGB[:128] + bytes(400), linear_grey(), cyan_is_black()],
    ids=["noise", "cut", "zeros", "grey", "cmyk"],
)
def test_a_profile_that_is_damaged_or_another_picture_s_is_ignored(profile):
    assert colour(opened(Image.new("RGB", (16, 16), (200, 100, 100)), "PNG", profile)) == (200, 100, 100)


def test_training_sees_what_the_model_is_given(tmp_path):
    """16 bits are scaled, not cut; profiles count."""
    Image.fromarray(np.full((32, 32), 77 * 257, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (32, 32), (200, 100, 100)).save(tmp_path / "phone.png", icc_profile=display_p3())
    lines = [json.dumps({"file_name": name, "text": "a picture"}) for name in ("deep.png", "phone.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    dataset = open_dataset(tmp_path, 32)
    assert np.asarray(dataset.picture(0))[0, 0].tolist() == [77, 77, 77]
    for i, name in enumerate(("deep.png", "phone.png")):
        with Image.open(tmp_path / name) as image:
            assert torch.equal(to_pixels([dataset.picture(i)]), to_pixels([image]))


def test_a_training_picture_that_is_cut_off_is_named(tmp_path):
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "cut.png", "text": "a picture"}), encoding="utf-8")
    with pytest.raises(ValueError, match="cut.png cannot be read as a picture"):
        open_dataset(tmp_path, 32).picture(0)
