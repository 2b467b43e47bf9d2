"""One description of a drawing: what one way in accepts, all accept."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalle_core import InputError
from dalle_core.recipe import Drawn, drawn, pack, read_recipe, unpack
from dalle_core.request import MAX_PROMPT, DrawingRequest, Limits, from_json, number
from dalle_core.studio.links import query, read_query
from dalle_core.studio.pool import Picture, ranked, read_entry, to_entry
from demo.pictures import RANKED, SAMPLED, in_order, label
from demo.tabs.chosen import plot

LIMITS = Limits(max_candidates=16, grid_size=4, codebook_size=64)  # of a public page
DEFAULTS = {"num_candidates": 4, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.0}


def made(**changes) -> Drawn:
    """A candidate that was drawn somewhere, perhaps with other limits than LIMITS."""
    numbers = DEFAULTS | {name: changes.pop(name) for name in list(changes) if name in DEFAULTS}
    request = DrawingRequest("a red fox", "a cat", model="tiny", revision="r1", **numbers)
    place = {"seed": 7, "index": 3, "score": 0.25} | changes
    return Drawn(request, tokens=torch.arange(16).view(4, 4), **place)


def link_of(one: Drawn) -> dict:
    return dict(pair.split("=", 1) for pair in query(one).split("&"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_scale": 20.0},
        {"guidance_scale": 100.0},
        {"temperature": 100.0},
        {"temperature": 0.0},
        {"top_p": 0.001},
        {"top_k": 64},
    ],
)
def test_what_python_draws_comes_back_through_every_way_in(settings, tiny_pipeline):
    tiny_pipeline.stream("a red fox", **settings).close()  # Python accepts it
    one = made(**settings)
    again = read_recipe(json.dumps(one.to_json()), "tiny", "r1", LIMITS)
    assert again.request.settings == one.request.settings and (again.seed, again.index, again.score) == (7, 3, 0.25)
    assert again.tokens.equal(one.tokens) and not again.varied
    _, [entry] = read_entry(to_entry(ranked([Picture(one, "")])), "tiny", "r1", LIMITS)
    assert entry.request.settings == one.request.settings and entry.tokens.equal(one.tokens)
    found, ignored = read_query(link_of(one), LIMITS)
    assert ignored == [] and found["guidance"] == one.request.guidance_scale and found["seed"] == "7"
    assert DrawingRequest("a fox", **settings).checked(LIMITS, DEFAULTS).settings == one.request.settings


def test_candidate_18_of_20_comes_back_on_a_page_that_draws_16():
    one = made(num_candidates=20, index=18)
    again = read_recipe(json.dumps(one.to_json()), "tiny", "r1", LIMITS)
    assert again.index == 18 and again.request.num_candidates == 16
    _, [entry] = read_entry(to_entry(ranked([Picture(one, "")])), "tiny", "r1", LIMITS)
    assert entry.index == 18
    found, ignored = read_query(link_of(one), LIMITS)
    assert found["candidates"] == 16 and ignored == []
    with pytest.raises(InputError, match="num_candidates is '20'; it must be a whole number from 1 to 16"):
        one.request.checked(LIMITS, DEFAULTS)  # to draw it is another matter


def test_recipes_entries_and_links_of_before_still_open():
    recipe = {
        "model": "tiny",
        "revision": "r1",
        "varied": False,
        "prompt": "a fox",
        "negative_prompt": "",
        "seed": 2**62,
        "index": 0,
        "score": 0.1,
        "settings": DEFAULTS,
        "tokens": torch.zeros(4, 4).long().tolist(),
    }
    assert read_recipe(json.dumps(recipe), "tiny", "r1", LIMITS).seed == 2**62
    del recipe["negative_prompt"], recipe["varied"]
    assert read_recipe(json.dumps(recipe), "tiny", "r1", LIMITS).request.negative_prompt == ""
    entry = {
        "version": 1,
        "id": "a1b2",
        "model": "tiny",
        "revision": "r1",
        "prompt": "a fox",
        "negative_prompt": "",
        "varied": True,
        "settings": DEFAULTS,
        "candidates": [{"seed": str(2**63 - 1), "index": 5, "score": None, "tokens": pack(torch.ones(4, 4).long())}],
    }
    name, [one] = read_entry(json.dumps(entry), "tiny", "r1", LIMITS)
    assert name == "a1b2" and one.seed == 2**63 - 1 and one.varied and one.tokens.eq(1).all()
    found, ignored = read_query(
        {
            "prompt": "a fox",
            "seed": "41",
            "candidates": "4",
            "temperature": "0.8",
            "top_k": "0",
            "top_p": "1",
            "guidance": "1.5",
            "model": "tiny",
        },
        LIMITS,
    )
    assert ignored == [] and found == {
        "prompt": "a fox",
        "seed": "41",
        "candidates": 4,
        "temperature": 0.8,
        "top_k": 0,
        "top_p": 1.0,
        "guidance": 1.5,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 1.5},
        {"seed": True},
        {"seed": "1e3"},
        {"index": -1},
        {"index": "3"},
        {"index": 10**6},
        {"score": "0.1"},
        {"score": math.nan},
        {"score": 2},
        {"settings": {}},
        {"settings": None},
        {"settings": DEFAULTS | {"top_p": 0}},
        {"settings": DEFAULTS | {"temperature": -1}},
        {"settings": DEFAULTS | {"temperature": True}},
        {"prompt": 3},
        {"prompt": None},
        {"prompt": "x" * (MAX_PROMPT + 1)},
        {"tokens": [[1]]},
        {"tokens": "x"},
        {"tokens": [[64] * 4] * 4},
        {"tokens": [[-1] * 4] * 4},
        {"tokens": [[1.5] * 4] * 4},
        {"tokens": None},
        {"tokens": [[True] * 4] * 4},
    ],
)
def test_forged_recipes_are_refused(changes):
    with pytest.raises(InputError, match="damaged"):
        read_recipe(json.dumps(made().to_json() | changes), "tiny", "r1", LIMITS)


ENTRY = json.loads(to_entry(ranked([Picture(made(), ""), Picture(made(index=4), "")])))


@pytest.mark.parametrize(
    "changes",
    [
        {"candidates": []},
        {"candidates": 3},
        {"candidates": [{}]},
        {"candidates": [None]},
        {"candidates": ENTRY["candidates"][:1] * 2},
        {"candidates": ENTRY["candidates"] * 200},
        {"prompt": ""},
        {"prompt": 3},
        {"prompt": "a" * 20_001},
        {"settings": {}},
        {"settings": []},
        {"id": "../x"},
        {"id": "<b>"},
        {"model": None},
        {"settings": DEFAULTS | {"num_candidates": "x"}},
    ],
)
def test_forged_entries_are_refused(changes):
    with pytest.raises(InputError, match="damaged"):
        read_entry(json.dumps(ENTRY | changes), "tiny", "r1", LIMITS)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": "!"},
        {"tokens": ""},
        {"tokens": 3},
        {"tokens": pack(torch.full((4, 4), 64))},
        {"tokens": pack(torch.zeros(1, 1))},
        {"seed": "-1"},
        {"seed": str(2**63)},
        {"seed": "9" * 5000},
        {"index": -1},
        {"index": True},
        {"score": "0.3"},
        {"score": float("nan")},
        {"score": 7},
        {"score": True},
    ],
)
def test_forged_candidates_are_refused(changes):
    rows = [ENTRY["candidates"][0] | changes, ENTRY["candidates"][1]]
    with pytest.raises(InputError, match="damaged"):
        read_entry(json.dumps(ENTRY | {"candidates": rows}), "tiny", "r1", LIMITS)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, None, 3, "x" * 3_000_000])
def test_what_is_no_entry_is_refused(text):
    with pytest.raises(InputError, match="damaged"):
        read_entry(text, "tiny", "r1", LIMITS)


def test_a_link_with_impossible_values_names_them():
    wrong = {
        "seed": "-1",
        "candidates": "1e9",
        "temperature": "nan",
        "top_k": "1.5",
        "top_p": "",
        "guidance": "<b>",
        "other": "x",
    }
    assert read_query(wrong, LIMITS) == ({}, ["seed", "candidates", "temperature", "top_k", "top_p", "guidance"])


def test_pools_merge_and_show_the_best_or_the_rejected():
    pool = ranked([Picture(made(index=index, score=index / 10), "") for index in range(4)])
    merged = ranked([*pool, *(Picture(made(seed=9, index=index, score=index / 10 - 0.01), "") for index in range(4))])
    assert [picture.rank for picture in merged] == list(range(1, 9)) and {picture.pool for picture in merged} == {pool[0].pool}
    assert len({label(picture) for picture in merged}) == 8 and "seed 9" in "".join(map(label, merged))
    assert "seed" not in label(pool[0]) and label(pool[0]) == "#1 · 0.300"
    assert in_order(merged, RANKED, 4) == merged[:4] and in_order(merged, RANKED, 4, True) == merged[4:]
    assert in_order(merged, RANKED, 8, True) == []
    assert [(one.drawn.seed, one.drawn.index) for one in in_order(merged, SAMPLED)] == [
        (s, i) for s in (7, 9) for i in range(4)
    ]
    assert plot(merged, merged[0]).count("<line") == 8 and plot(merged[:1], merged[0]) == ""


@pytest.mark.parametrize(
    "model, revision, said", [("other", "r1", "choose that model first"), ("tiny", "r2", "another version")]
)
def test_another_model_s_picture_says_so(model, revision, said):
    with pytest.raises(InputError, match=said):
        read_recipe(json.dumps(made().to_json()), model, revision, LIMITS)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["model", "prompt", "settings", "tokens", "seed", "index", "candidates", "id", "revision"]),
                inner,
            )
        ),
        max_leaves=20,
    )
)
def test_whatever_a_file_holds_it_is_a_sentence(value):
    for read in (read_recipe, read_entry):
        with pytest.raises(InputError):
            read(json.dumps(value), "tiny", "r1", LIMITS)
    for text in ("", "{", "[" * 100_000, "null", "1" * 5000, '{"model": NaN}'):
        with pytest.raises(InputError):
            read_recipe(text, "tiny", "r1", LIMITS)


@given(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=30) | st.lists(st.integers()))
def test_a_number_is_within_its_limits_or_a_sentence(value):
    for name in (*DEFAULTS, "seed", "preview_every"):
        low, high = LIMITS.range(name)
        try:
            found = number(name, value, LIMITS)
        except InputError as error:
            assert name in str(error) and "must be" in str(error)
        else:
            assert low <= found <= high and not isinstance(value, bool)


def test_what_is_saved_is_what_was_asked(tiny_pipeline):
    generation = tiny_pipeline("a red fox", num_candidates=2, seed=5, temperature=0.7)
    first, second = drawn(generation, "tiny", "r1")
    request, varied = from_json(first.to_json(), LIMITS)
    assert request.settings == generation.settings and request.prompt == "a red fox" and not varied
    assert unpack(pack(second.tokens), LIMITS).equal(generation.candidates[1].tokens)
