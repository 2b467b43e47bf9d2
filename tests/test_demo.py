"""What the page says and shows, without a browser."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dalle_core import InputError
from dalle_core.pictures import enlarge, file_name
from dalle_core.studio.holder import Loaded
from dalle_core.studio.studio import Update
from demo import create_demo, open_studio, progress
from demo.handlers import parse_seed
from demo.models import facts


def test_enlarging_is_exact_in_size_and_true_in_colour():
    image = Image.new("RGB", (96, 96), (200, 30, 30))
    image.paste((250, 250, 250), (48, 0, 96, 96))
    large = np.array(enlarge(image)).astype(int)
    assert large.shape == (384, 384, 3)
    assert abs(large[:, 20] - (200, 30, 30)).max() <= 2 and abs(large[:, -20] - 250).max() <= 2
    edge = (large[200, :, 1] > 60) & (large[200, :, 1] < 220)
    assert edge.sum() <= 6  # an edge stays an edge


@pytest.mark.parametrize(
    "prompt, name",
    [
        ("a Red fox!", "a-red-fox_seed7_3.png"),
        ("狐狸 和 香蕉", "狐狸-和-香蕉_seed7_3.png"),
        ("../../etc/passwd", "etc-passwd_seed7_3.png"),
        ("***", "picture_seed7_3.png"),
    ],
)
def test_file_names(prompt, name):
    assert file_name(prompt, 7, 3) == name
    assert len(file_name("word " * 1000, 7, 3)) < 90
    assert len(file_name("𝕒" * 1000, 2**63 - 1, 63).encode()) < 255  # what file systems allow


def test_time_left_and_notices():
    line = progress.of(Update("", 256, 1024, 2.0))
    assert "25.0%" in line and "6 s left" in line and "</b> 25 %<" in line
    assert progress.cut(Update()) == ""
    notice = progress.cut(Update(cut=(("prompt", "<script>", "<b>rest</b>"),)))
    assert "&lt;script&gt;" in notice and "<b>" not in notice
    assert progress.notices(Update()) == ""
    notice = progress.notices(Update(unknown=(("<kitten>", ["cat", "cat face"]), ("xyz", []))))
    assert "&lt;kitten&gt; → cat, cat face; xyz</span>" in notice and notice.count("<div") == 1
    assert progress.stopped(line) == progress.STOPPED and progress.stopped("4 candidates") != progress.STOPPED


def test_a_seed_is_the_one_that_was_typed_and_one_drawn_at_random_is_not_used_again():
    for text in ("x", "-3", "1.5", str(2**63), "１２", "1" * 5000):
        with pytest.raises(InputError, match="is not a whole number from 0 to 9223372036854775807"):
            parse_seed(text)
    assert parse_seed("12", keep=True, drawn="12") == 12
    assert parse_seed("12", keep=False, drawn="7") == 12  # typed: it is meant
    assert parse_seed("12", keep=False, drawn="12") is None and parse_seed(" ") is None and parse_seed(None) is None


def test_what_is_known_of_a_model_is_shown(tiny_pipeline):
    loaded = Loaded.of("/models/1.3B", tiny_pipeline)
    assert "downloads 1.1 GB" in (mini := facts(replace(loaded, source="dalle-mini", model="dalle-mini"))) and "MIT" in mini
    shown = facts(replace(loaded, licence="CC-BY-NC-SA-4.0 (non-commercial)"))
    assert "non-commercial" in shown and "64 candidates at a time" in shown and "float32 on cpu" in shown


def test_nothing_misses_its_first_value(tiny_pipeline):
    """Gradio loses, now and then, a value that is sent together with what makes it, its row or its column exist."""
    demo = create_demo(open_studio(tiny_pipeline, "tiny"))
    blocks = [block for block in demo.blocks.values() if block.get_block_name() not in ("api", "state")]
    assert len(blocks) > 100 and [block.elem_id for block in blocks if block.visible is not True] == []
