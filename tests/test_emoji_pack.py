"""The emoji corpus in one file: what is unpacked is what was packed."""

import numpy as np
import pytest

from dalle_core import InputError
from dalle_core.training.emoji import EmojiCorpus
from dalle_core.training.emoji_pack import TEXTS, pack, unpack
from tests.corpus import make_corpus


def test_a_packed_corpus_is_the_same_elsewhere(tmp_path):
    here, there = make_corpus(tmp_path / "here"), tmp_path / "there"
    sprites = np.load(here / "sprites.npy", mmap_mode="r+")
    sprites[3, :8, :8] = (200, 100, 50, 0)  # a colour that nobody sees
    sprites.flush()
    for name in TEXTS[1:]:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(f"of {name}", encoding="utf-8")
    pack(here, tmp_path / "emoji.tar")
    unpack(tmp_path / "emoji.tar", there)
    for name in (*TEXTS, "sprites.npy"):
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    assert EmojiCorpus(there).fingerprint == EmojiCorpus(here).fingerprint


@pytest.mark.parametrize("cut", [0, 100, 0.5])
def test_a_damaged_file_names_itself(tmp_path, cut):
    here = make_corpus(tmp_path / "here")
    for name in TEXTS[1:]:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("{}", encoding="utf-8")
    pack(here, tmp_path / "emoji.tar")
    data = (tmp_path / "emoji.tar").read_bytes()
    (tmp_path / "emoji.tar").write_bytes(data[: cut if isinstance(cut, int) else int(cut * len(data))])
    with pytest.raises(InputError, match="emoji.tar is not a packed emoji corpus"):
        unpack(tmp_path / "emoji.tar", tmp_path / "there")
    assert not (tmp_path / "there" / "sprites.npy").exists()
