"""The model that comes with the project: it loads from its folder, and draws what it is asked for."""

import json
from pathlib import Path

import numpy as np
import pytest

import dalle_core
from dalle_core.training.emoji import BACKGROUNDS

FOLDER = Path(__file__).parent.parent / "assets" / "emoji"


@pytest.fixture(scope="module")
def pipe():
    return dalle_core.load("emoji")


def test_it_is_small_and_safe():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 64 * 2**20
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md", ".png"}


@pytest.mark.parametrize("background", ["purple", "green", "white"])
def test_it_paints_the_named_background(pipe, background):
    generation = pipe(f"a fox and a banana on a {background} background", num_candidates=4, seed=0)
    corner = np.array(generation.candidates[0].image)[:8, :8].reshape(-1, 3).mean(0)
    distance = {name: abs(corner - rgb).sum() for name, (_, rgb) in BACKGROUNDS.items()}
    assert min(distance, key=distance.get) == background


def test_chinese_and_english_names_lead_to_the_same_thing(pipe):
    """A strawberry is mostly red, whatever it is called; its background is what was asked for."""
    for prompt in ("a strawberry", "草莓"):
        pixels = np.array(pipe(prompt, num_candidates=8, seed=0).candidates[0].image).astype(int).reshape(-1, 3)
        drawn = pixels[abs(pixels - 255).sum(1) > 150]
        assert len(drawn) > 500 and drawn[:, 0].mean() > drawn[:, 1].mean() + 50 > drawn[:, 2].mean()


def test_a_candidate_is_the_same_picture_alone_and_among_others(pipe):
    many = {c.index: c for c in pipe("a fox", num_candidates=5, seed=3).candidates}
    alone = pipe("a fox", num_candidates=1, seed=3).candidates[0]
    assert np.array_equal(np.array(alone.image), np.array(many[0].image))


def test_a_tile_goes_on_at_its_edges(pipe):
    def seam(image):
        pixels = np.array(image).astype(float)
        return abs(pixels[:, 0] - pixels[:, -1]).mean() + abs(pixels[0] - pixels[-1]).mean()

    drawn = pipe("a fox and a banana on a purple background", num_candidates=4, seed=3).candidates
    tiles = [pipe.tile(candidate.tokens) for candidate in drawn]
    assert {tile.size for tile in tiles} == {(pipe.image_size,) * 2}
    assert sum(map(seam, tiles)) < 0.6 * sum(seam(candidate.image) for candidate in drawn)


def test_it_recognises_what_it_knows_by_name(pipe):
    assert len(pipe.config.labels) > 400
    image = pipe("a strawberry", num_candidates=8, seed=0).candidates[0].image
    assert "strawberry" in [label.text for label in pipe.recognise(image)[:10]]


def test_every_example_fits_and_draws(pipe):
    assert len(pipe.examples) >= 8
    for prompt in pipe.examples:
        assert pipe.fit_prompt(prompt) == (prompt, "")
    assert pipe(pipe.examples[0], num_candidates=1).candidates[0].image.size == (96, 96)


def test_its_evaluation_is_that_of_its_own_sampling_settings(pipe):
    evaluation = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["sampling"] == pipe.defaults
    for kind in ("style", "pairing"):
        assert set(evaluation[kind]["r_precision_best_of"]) == {"1", "4", "16", "64"}
