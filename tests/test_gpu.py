"""What a GPU must do as the CPU does it: `pytest -m gpu` on a machine with one. The same tests run on the CPU every day, where
slots are used as on a GPU, without graphs."""

import json
from contextlib import nullcontext

import pytest
import torch

from benchmarks import gpu
from dalle_core.catalogue import _usual_dtype
from dalle_core.engine import SamplingSettings, generate
from dalle_core.slots import SlotEngine
from tests.conftest import make_pipeline
from tests.test_engine import FORCED, LENGTH, TEXT, in_threads, kinds, prior_of, uniforms_of
from tests.test_slots import draw_plainly, prompts_of

EVERYTHING = torch.zeros(LENGTH, dtype=torch.bool)
GREEDY = SamplingSettings(temperature=0.0, guidance_scale=3.0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no CUDA device here")
    return torch.device(request.param)


def on_device(kind: str, device: torch.device, dtype=torch.float32):
    return prior_of.__wrapped__(kind).to(device, dtype)


def draw_in_slots(engine, number, rows, sampling, keep=EVERYTHING) -> torch.Tensor:
    ids = [part.to(engine.prior.device) for part in prompts_of(engine.prior, number)]
    *_, tokens = generate(engine, *ids, uniforms_of(number, range(rows)), sampling, FORCED, keep)
    return tokens.cpu()


@kinds
def test_greedy_tokens_are_those_of_the_cpu_in_float32(kind, device):
    """Alone and in company, with forced tokens."""
    engine, found = SlotEngine(on_device(kind, device), rows=16), {}
    keeps = [EVERYTHING, torch.arange(LENGTH) < 4, torch.arange(LENGTH) % 3 == 1]

    def work(number):
        found[number] = draw_in_slots(engine, number, 2 + number, GREEDY, keeps[number])

    in_threads(*(lambda number=number: work(number) for number in range(3)))
    for number, keep in enumerate(keeps):
        assert torch.equal(found[number], draw_plainly(prior_of(kind), number, 2 + number, GREEDY, keep)), number


@kinds
def test_the_random_numbers_are_those_of_the_cpu(kind, device):
    """In float32 nearly every token is the same; a sum of probabilities rounds otherwise now and then."""
    sampling = SamplingSettings(0.9, 12, 0.95, 2.0)
    engine = SlotEngine(on_device(kind, device), rows=32)
    found = draw_in_slots(engine, 3, 16, sampling)
    assert (found == draw_plainly(prior_of(kind), 3, 16, sampling, EVERYTHING)).float().mean() > 0.95
    assert torch.equal(found, draw_in_slots(engine, 3, 16, sampling))  # and the same again


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@kinds
@torch.inference_mode()
def test_logits_in_half_precision_are_near_those_in_float32(kind, dtype, device):
    prior, places = on_device(kind, device, dtype), [2, 5]
    cache, images = prior.new_slots(2), torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
    for row, place in enumerate(places):
        prefilled, _ = prior.prefill(TEXT.to(device), 1, images[row, :place].to(device))
        cache.fill(torch.tensor([row], device=device), prefilled, 1, prefilled.start + place)
    ids = torch.tensor([4, 8], device=device)
    found = prior.decode_slots(ids, torch.tensor(places, device=device), cache, cache.lengths[-1]).float().cpu()
    exact = torch.stack([prior_of(kind)(TEXT, images[row : row + 1, : place + 1])[0, -1] for row, place in enumerate(places)])
    assert (found - exact).std() < 0.05 * exact.std()


def test_a_pipeline_draws_shows_and_ranks_there_what_it_does_on_the_cpu(device, tiny_pipeline):
    pipe = make_pipeline().to(device)
    if device.type == "cpu":
        pipe.engine = SlotEngine(pipe.prior, rows=16)
    assert isinstance(pipe.engine, SlotEngine)
    asked = {"num_candidates": 6, "seed": 4, "guidance_scale": 2.0, "temperature": 0.0, "preview_every": 4}
    *steps, last = pipe.stream("a red fox", **asked)
    plain = {one.index: one for one in tiny_pipeline("a red fox", **asked).candidates}
    assert sum(step.previews is not None for step in steps) == 3
    for candidate in last.generation.candidates:
        assert torch.equal(candidate.tokens, plain[candidate.index].tokens)
        assert abs(candidate.score - plain[candidate.index].score) < 1e-3
    picture = plain[0].image
    assert (pipe.encode(picture) == tiny_pipeline.encode(picture)).float().mean() > 0.95
    labels = ["a red fox", "two apples", "a banana"]
    assert [one.text for one in pipe.recognise(picture, labels)] == [
        one.text for one in tiny_pipeline.recognise(picture, labels)
    ]


@pytest.mark.parametrize(("has_it", "usual"), [(True, torch.bfloat16), (False, torch.float16)])
def test_cards_without_bfloat16_get_float16(has_it, usual, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it or including_emulation)
    assert _usual_dtype(torch.device("cuda")) == usual


def test_previews_and_leaving_disturb_nobody(device):
    pipe = make_pipeline().to(device)
    if device.type == "cpu":
        pipe.engine = SlotEngine(pipe.prior, rows=16)
    asked, found = {"num_candidates": 2, "guidance_scale": 2.0, "temperature": 0.0, "preview_every": 1}, {}
    alone = [pipe("two apples", seed=seed, **asked).candidates for seed in range(4)]

    def stay(seed):
        found[seed] = pipe("two apples", seed=seed, **asked).candidates

    def leave():
        steps = pipe.stream("a red fox", **asked)
        next(steps), next(steps), steps.close()

    in_threads(*(lambda seed=seed: stay(seed) for seed in range(4)), leave, leave)
    for seed in range(4):
        by_index = {one.index: one.tokens for one in found[seed]}
        assert all(torch.equal(one.tokens, by_index[one.index]) for one in alone[seed])
    assert pipe.engine.slots.free == pipe.engine.slots.rows


def test_the_benchmark_runs_to_its_end(device, capsys):
    gpu.main(["--device", str(device), "--tiny"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["rows"] for one in found["mini compiled"]["rows"]] == [1, 4]
    for name in gpu.SHAPES:
        assert found[f"{name} greedy"]["same_until"] == found[f"{name} greedy"]["tokens"] == 16
        assert [one["rows"] for one in found[name]["rows"]] == [1, 4] and found[name]["guided"]["ms_a_token"] > 0
    assert found["page"]["previews"]["preview_s"] < found["page"]["previews"]["ranked_s"]
    assert found["page"]["visitors"]["throughput"] > 0 and found["min_dalle"]["ms_a_token"] > 0
