"""The pipeline: seeds, forced tokens, previews, ranking, and what bad input gets."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import dalle_core
from dalle_core import InputError, memory, pipeline
from dalle_core.text_tokenizer import encode_prompts, fit_prompt, train_text_tokenizer


def by_index(generation):
    return {candidate.index: candidate for candidate in generation.candidates}


def same(a, b) -> bool:
    return torch.equal(a.tokens, b.tokens) and np.array_equal(np.array(a.image), np.array(b.image))


def test_candidate_i_is_the_same_picture_whatever_the_batch(own_pipeline):
    pipe = own_pipeline
    arguments = dict(prompt="a red fox", seed=11, guidance_scale=2.0, rerank=False)
    whole = by_index(pipe(num_candidates=16, **arguments))
    alone = by_index(pipe(num_candidates=1, **arguments))
    assert same(alone[0], whole[0])
    for chunk in (1, 3, 16):
        pipe.chunk_size = chunk
        again = by_index(pipe(num_candidates=16, **arguments))
        assert all(same(again[i], whole[i]) for i in range(16))
    assert len({tuple(c.tokens.flatten().tolist()) for c in whole.values()}) == 16


def test_seeds(tiny_pipeline):
    pipe = tiny_pipeline
    zero, again, one = (pipe("a fox", num_candidates=2, seed=seed) for seed in (0, 0, 1))
    assert zero.seed == 0 and same(by_index(zero)[1], by_index(again)[1])
    assert not same(by_index(zero)[0], by_index(one)[0])
    assert not same(by_index(zero)[0], by_index(zero)[1])
    drawn = pipe("a fox", num_candidates=1)
    assert same(pipe("a fox", num_candidates=1, seed=drawn.seed).candidates[0], drawn.candidates[0])
    assert pipe("a fox", num_candidates=1, seed=2**63 - 1).seed == 2**63 - 1


def test_best_come_first_with_their_scores(tiny_pipeline):
    generation = tiny_pipeline("a red fox", num_candidates=8, seed=1)
    scores = [candidate.score for candidate in generation.candidates]
    assert scores == sorted(scores, reverse=True) and all(-1 <= score <= 1 for score in scores)
    plain = tiny_pipeline("a red fox", num_candidates=8, seed=1, rerank=False)
    assert [candidate.index for candidate in plain.candidates] == list(range(8))
    assert all(candidate.score is None for candidate in plain.candidates)


def test_defaults_fill_what_is_left_out(tiny_pipeline):
    generation = tiny_pipeline("a fox", seed=1)
    assert len(generation.candidates) == 4 and generation.settings == tiny_pipeline.defaults
    assert generation.candidates[0].image.size == (64, 64) == (tiny_pipeline.image_size,) * 2


def test_forced_tokens_come_back_untouched(tiny_pipeline):
    tokens = torch.arange(16).reshape(4, 4)
    before = tokens.clone()
    keep = torch.zeros(4, 4, dtype=torch.bool)
    keep[0], keep[2, 1] = True, True
    generation = tiny_pipeline("a fox", num_candidates=5, seed=3, image_tokens=tokens, keep=keep)
    for candidate in generation.candidates:
        assert torch.equal(candidate.tokens[keep], tokens[keep])
    assert len({tuple(c.tokens[~keep].tolist()) for c in generation.candidates}) == 5
    assert torch.equal(tokens, before)
    everything = tiny_pipeline("a fox", num_candidates=1, image_tokens=tokens, keep=torch.ones(4, 4, dtype=torch.bool))
    assert torch.equal(everything.candidates[0].tokens, tokens)


def test_guidance_one_equals_unguided_and_top_k_one_equals_greedy(tiny_pipeline):
    def draw(**arguments):
        return by_index(tiny_pipeline("a fox", num_candidates=2, seed=5, rerank=False, **arguments))[1].tokens

    assert torch.equal(draw(guidance_scale=1.0, negative_prompt="a banana"), draw(guidance_scale=1.0))
    assert torch.equal(draw(top_k=1), draw(temperature=0))
    assert not torch.equal(draw(guidance_scale=4.0), draw(guidance_scale=1.0))
    assert not torch.equal(draw(guidance_scale=4.0, negative_prompt="a banana"), draw(guidance_scale=4.0))


def test_steps_count_tokens_and_previews_grow(tiny_pipeline):
    steps = list(tiny_pipeline.stream("a fox", num_candidates=3, seed=2, preview_every=4))
    assert [step.index for step in steps] == [3 * i for i in range(1, 17)] and {step.total for step in steps} == {48}
    shown = [step.previews for step in steps if step.previews is not None]
    assert len(shown) == 4 and all(len(previews) == 3 for previews in shown)
    top = np.array(shown[0][0])
    assert (top[24:] == top[-1, -1]).all() and not (top[:12] == top[-1, -1]).all()  # one of four rows is drawn
    assert all(step.generation is None for step in steps[:-1]) and steps[-1].generation is not None


def test_closing_the_stream_stops_the_work(own_pipeline):
    calls = []
    own_pipeline.prior.head.register_forward_hook(lambda *_: calls.append(1))
    stream = own_pipeline.stream("a fox", num_candidates=2)
    next(stream), next(stream)
    stream.close()
    assert len(calls) == 2


def test_out_of_memory_halves_the_chunk_and_keeps_what_is_finished(own_pipeline):
    expected = by_index(own_pipeline("a fox", num_candidates=12, seed=4))
    decode, chunks = own_pipeline.prior.decode, []

    def scarce(steps):
        if sum(len(ids) for ids, _, _ in steps) > 16:
            chunks.append(len(steps[0][0]))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(steps)

    own_pipeline.prior.decode = scarce
    generation = own_pipeline("a fox", num_candidates=40, seed=4)
    assert chunks == [40, 20] and len(generation.candidates) == 40
    assert all(same(by_index(generation)[i], expected[i]) for i in range(12))

    def nothing(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    own_pipeline.prior.decode = nothing
    with pytest.raises(InputError, match="not enough memory"):
        own_pipeline("a fox", num_candidates=4)


def test_out_of_memory_in_pixels_and_in_ranking_halves_too(own_pipeline, monkeypatch):
    expected = own_pipeline("a fox", num_candidates=12, seed=4).candidates
    decode, score, seen = pipeline.images.decode, pipeline.clip_rerank.scores, []

    def scarce_pixels(model, tokens):
        seen.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, tokens)

    def scarce_scores(clip, processor, tokenizer, prompt, images):
        if len(images) > 5:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.93 GB)")
        return score(clip, processor, tokenizer, prompt, images)

    monkeypatch.setattr(pipeline.images, "decode", scarce_pixels)
    monkeypatch.setattr(pipeline.clip_rerank, "scores", scarce_scores)
    found = own_pipeline("a fox", num_candidates=12, seed=4).candidates
    assert seen == [12, 6, 3, 3, 6, 3, 3] and [c.index for c in found] == [c.index for c in expected]
    assert all(torch.equal(a.tokens, b.tokens) and a.image == b.image for a, b in zip(found, expected, strict=True))

    def nothing(model, tokens):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline.images, "decode", nothing)
    with pytest.raises(InputError, match="even one candidate: .* are free on cpu"):
        own_pipeline("a fox", num_candidates=4)
    monkeypatch.setattr(pipeline.images, "decode", lambda model, tokens: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        own_pipeline("a fox", num_candidates=4)


def test_two_threads_draw_what_one_draws(tiny_pipeline):
    def draw(seed, results):
        results[seed] = by_index(tiny_pipeline("a fox", num_candidates=4, seed=seed, guidance_scale=2.0))

    alone, together = {}, {}
    for seed in range(3):
        draw(seed, alone)
    threads = [threading.Thread(target=draw, args=(seed, together)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(alone[seed][i], together[seed][i]) for seed in range(3) for i in range(4))


def test_threads_share_the_text_tokenizer():
    tokenizer = train_text_tokenizer(["a red fox", "a fox and a banana on a purple background"] * 5, 120)
    prompts = ["a fox", "a fox and a banana on a purple background " * 3]
    expected = [(encode_prompts(tokenizer, [p], 8).tolist(), fit_prompt(tokenizer, p, 8)) for p in prompts]
    assert [len(row) for ids, _ in expected for row in ids] == [8, 8] and expected[1][0][0][-1] == tokenizer.eos_token_id
    failures = []

    def work():
        for _ in range(100):
            got = [(encode_prompts(tokenizer, [p], 8).tolist(), fit_prompt(tokenizer, p, 8)) for p in prompts]
            if got != expected:
                failures.append(got)

    def guarded():
        try:
            work()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_save_and_load_is_exact(tiny_pipeline, saved):
    loaded = dalle_core.load(saved, packed=False)  # arranging the weights rounds otherwise
    a, b = (pipe("a red fox", num_candidates=4, seed=9, guidance_scale=3.0) for pipe in (tiny_pipeline, loaded))
    for one, other in zip(a.candidates, b.candidates, strict=True):
        assert same(one, other) and one.score == other.score
    assert loaded.name == "tiny" and loaded.examples == tiny_pipeline.examples
    assert dalle_core.DallePipeline.from_pretrained(saved).defaults == tiny_pipeline.defaults


def test_a_folder_that_names_the_prior_s_module_of_before_opens(tiny_pipeline, saved):
    path = saved / "model_index.json"
    text = path.read_text(encoding="utf-8")
    assert "dalle_core.priors.gpt" in text
    path.write_text(text.replace("dalle_core.priors.gpt", "dalle_core.gpt_prior"), encoding="utf-8")
    assert dalle_core.load(saved).defaults == dalle_core.DallePipeline.from_pretrained(saved).defaults == tiny_pipeline.defaults


def test_previews_that_take_seconds_are_rare_and_late(monkeypatch):
    """A token takes half a second, a preview 0.02 seconds a drawn cell: as a large model on a CPU."""
    now = [0.0]
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pace, shown = pipeline.PreviewPace(), []
    for position in range(1, 577):
        now[0] += 0.5
        if position % 24 == 0 and pace.allows(position):
            with pace.timed(position):
                now[0] += 0.02 * position
            shown.append(position)
    assert 3 <= len(shown) < 10 and shown[-1] > 300 and all(a < b for a, b in zip(shown, shown[1:]))
    assert sum(0.02 * position for position in shown) < 0.12 * now[0]
    quick = pipeline.PreviewPace()
    for position in range(24, 577, 24):
        assert quick.allows(position)
        with quick.timed(position):
            now[0] += 0.0005 * position


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": " \n\t"}, "prompt is empty"),
        ({"prompt": "\x00\x00"}, "prompt is empty"),
        ({"prompt": "ΩЖ𓂀"}, "none of the characters"),
        ({"prompt": 7}, "must be text"),
        ({"negative_prompt": "Ж"}, "negative prompt 'Ж'"),
        ({"negative_prompt": "\x00"}, "negative prompt"),
        ({"num_candidates": 0}, "num_candidates is '0'"),
        ({"num_candidates": -1}, "num_candidates"),
        ({"num_candidates": 10**6}, "from 1 to 64"),
        ({"num_candidates": 2.5}, "whole number"),
        ({"num_candidates": True}, "num_candidates"),
        ({"temperature": math.nan}, "temperature is 'nan'"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_k": 65}, "from 0 to 64"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p is '0'"),
        ({"top_p": 1.1}, "top_p"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"seed": "seven"}, "seed is 'seven'"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "9223372036854775807"),
        ({"preview_every": -1}, "preview_every"),
        ({"keep": torch.ones(4, 4, dtype=torch.bool)}, "go together"),
        ({"image_tokens": torch.zeros(4, 4, dtype=torch.long)}, "go together"),
        ({"image_tokens": torch.zeros(3, 4, dtype=torch.long), "keep": torch.ones(4, 4, dtype=torch.bool)}, "shape"),
        ({"image_tokens": torch.full((4, 4), 64), "keep": torch.ones(4, 4, dtype=torch.bool)}, "0 to 63"),
        ({"image_tokens": torch.full((4, 4), -1), "keep": torch.ones(4, 4, dtype=torch.bool)}, "0 to 63"),
        ({"image_tokens": [["a"] * 4] * 4, "keep": torch.ones(4, 4, dtype=torch.bool)}, "grid of numbers"),
        ({"image_tokens": [[1], [1, 2]], "keep": torch.ones(4, 4, dtype=torch.bool)}, "grid of numbers"),
        ({"image_tokens": [[2**70] * 4] * 4, "keep": torch.ones(4, 4, dtype=torch.bool)}, "grid of numbers"),
        (
            {"image_tokens": torch.zeros(4, 4, dtype=torch.complex64), "keep": torch.ones(4, 4, dtype=torch.bool)},
            "whole numbers",
        ),
        ({"image_tokens": torch.full((4, 4), 64, dtype=torch.uint16), "keep": torch.ones(4, 4, dtype=torch.bool)}, "0 to 63"),
        ({"image_tokens": torch.zeros(4, 4), "keep": torch.ones(4, 4, dtype=torch.bool)}, "whole numbers"),
        ({"image_tokens": torch.zeros(4, 4, dtype=torch.long), "keep": torch.ones(4, 4)}, "boolean"),
    ],
)
def test_bad_input_is_named_before_anything_is_drawn(tiny_pipeline, arguments, named):
    with pytest.raises(InputError, match=named):
        tiny_pipeline.stream(**({"prompt": "a fox"} | arguments))  # not iterated: the check comes first


def test_long_and_strange_prompts(tiny_pipeline):
    long = tiny_pipeline("a fox and a banana " * 50_000, num_candidates=1)  # about a million characters
    assert long.dropped_prompt.startswith("and a banana") and len(long.used_prompt) < 60 and len(long.prompt) == 20_000
    assert long.prompt.startswith(long.used_prompt)
    assert tiny_pipeline.fit_prompt("a fox") == ("a fox", "")
    used, dropped = tiny_pipeline.fit_prompt("a fox and a banana on a purple background")
    assert f"{used} {dropped}" == "a fox and a banana on a purple background"
    for text in ("a fo\x00x", "🦊 a fox", "a fox ثعلب", "A RED FOX"):
        assert len(tiny_pipeline(text, num_candidates=1).candidates) == 1


# ---------------------------------------------------------------- several at once


def test_concurrent_drawings_divide_what_is_free(own_pipeline, monkeypatch):
    """Each plans with what those before it left, until they have ended, are closed or have failed."""
    size = memory.candidate_bytes(own_pipeline.prior.config, 4, 1)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 40 * size)
    prefill, chunks = own_pipeline.prior.prefill, []

    def noted(text_ids, copies, image_ids=None):
        chunks.append(copies)
        return prefill(text_ids, copies, image_ids)

    own_pipeline.prior.prefill = noted
    streams = [own_pipeline.stream("a fox", num_candidates=20, guidance_scale=1.0) for _ in range(4)]
    for stream in streams:
        next(stream)
    alone = int(40 * memory.RESERVE / 2)
    assert chunks[0] == alone and sorted(chunks, reverse=True) == chunks and sum(chunks) < 40 and chunks[1] < 12

    streams[0].close()
    list(streams[1])
    decode = own_pipeline.prior.decode
    own_pipeline.prior.decode = lambda steps: 1 / 0
    for stream in streams[2:]:
        with pytest.raises(ZeroDivisionError):
            list(stream)
    own_pipeline.prior.decode = decode
    chunks.clear()
    next(own_pipeline.stream("a fox", num_candidates=20, guidance_scale=1.0))
    assert chunks == [alone]


def test_others_draw_between_the_parts_of_a_recognition(own_pipeline):
    """1,600 labels and 400 likelihoods: never more than one small part before a pass that is waiting."""
    events, begun = [], threading.Event()
    text_model, decode, forward = own_pipeline.clip.text_model, own_pipeline.prior.decode, own_pipeline.prior.forward
    text_model.register_forward_hook(lambda *_: events.append("part"))

    def noted_decode(steps):
        events.append("pass")
        begun.set()
        return decode(steps)

    def noted_forward(*args):
        events.append("part")
        return forward(*args)

    own_pipeline.prior.decode, own_pipeline.prior.forward = noted_decode, noted_forward
    own_pipeline.engine.AHEAD = 10**6  # the drawing is always waiting for its next pass
    stop = threading.Event()

    def draw():
        while not stop.is_set():
            own_pipeline("a fox", num_candidates=1, rerank=False)

    def recognise():
        try:
            assert begun.wait(timeout=30)
            labels = [f"a fox {i}" for i in range(1600)]
            found = own_pipeline.recognise(Image.new("RGB", (64, 64), "red"), labels, deep=400)
            assert len(found) == 1600 and sum(label.log_likelihood is not None for label in found) == 400
        finally:
            stop.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(draw), pool.submit(recognise)]:
            done.result(timeout=120)
    assert events.count("part") == 100
    between = "".join("p" if event == "part" else " " for event in events).split()
    assert len(between) > 60  # most parts stand alone: a drawing that begins anew misses its turn now and then
    assert max(map(len, between)) <= 4


# ---------------------------------------------------------------- half precision


def test_in_bfloat16_pictures_are_read_and_ranked_as_in_float32(saved):
    """Loaded in it, or changed to it: tokens and places are the same."""
    exact = dalle_core.load(saved, packed=False)
    changed = dalle_core.load(saved, packed=False).to(torch.bfloat16)
    smaller = changed, dalle_core.load(saved, dtype=torch.bfloat16), dalle_core.load(saved, dtype=torch.float16, packed=False)
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(40)]
    labels = [f"{colour} {thing}" for colour in ("a red", "two", "noto") for thing in ("fox", "apples", "banana", "狐狸")]

    def read(pipe):
        places = [[label.text for label in pipe.recognise(picture, labels, deep=0)] for picture in pictures[:10]]
        return torch.stack([pipe.encode(picture) for picture in pictures]), places

    tokens, places = read(exact)
    for pipe in smaller:
        decoder = pipe.image_tokenizer.decoder.conv_in.weight.dtype
        assert pipe.prior.dtype.itemsize == 2 and decoder == (
            torch.bfloat16 if pipe.prior.dtype == torch.bfloat16 else torch.float32
        )
        assert (read(pipe)[0] == tokens).float().mean() > 0.995
        assert read(pipe)[1] == places
        assert pipe("a fox", num_candidates=2).candidates[0].score is not None
