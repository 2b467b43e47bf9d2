"""Janus-Pro 1B in its full shapes with random weights: loading, memory, and seconds a token, against transformers' generate.

Regime: a folder in transformers' layout (4.2 GB of bfloat16) is written once to `--folder` and converted by this project's own
`load`; then each measurement runs in a process of its own, one after the other, guided (two rows a candidate), at 1 and at 4
candidates, on all threads. "load_s" and "loaded_gib" are of `load` from the converted copy, "peak_gib" of the whole process.
A token's time is the mean of `--tokens` tokens after a prompt of 24 ids and the first token, that of transformers is of its
generate, with as many tokens and with one (in float32 and bfloat16; it has no int8). "limit_ms" is the larger of reading all
bytes of a pass once and of computing it, at rates that are measured first (see benchmarks.limit). The first greedy tokens of
both sides must be the same in float32 before anything is timed. float32 needs 16 GiB of memory, and transformers' as much.
Nothing else should be running. Ends in one JSON line, with "times_transformers" (theirs to ours) and "times_limit" (ours to the
limit) at its end.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).parent.parent
DTYPES, CANDIDATES, GREEDY = ("float32", "bfloat16", "int8"), (1, 4), 8
PROMPT_IDS = [100000, *range(500, 522), 100003]  # 24: BOS, words, the mark that begins an image
BOS, PAD, IMAGE = 100000, 100002, 100003


def peer_model(dtype: torch.dtype):
    """transformers' own, in the published shapes, with the same random weights each time."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    text = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 102400,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 16384,
    }
    torch.manual_seed(0)
    config = JanusConfig(text_config=text, tie_word_embeddings=False)
    model = JanusForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    model.model.generation_head.vision_head.weight.data.mul_(20)  # far from uniform
    generation = model.generation_config
    generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = BOS, 100001, PAD
    generation.generation_kwargs = {"boi_token_id": IMAGE}
    return model.to(dtype)


def write(folder: Path) -> None:
    """The weights, and a tokenizer of as many words as the published one has, with its marks."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    from dalle_core.checkpoints import janus

    model = peer_model(torch.bfloat16)
    model.save_pretrained(folder)
    vocab = {f"w{i}": i for i in range(BOS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [janus.BOS, janus.EOS, janus.PAD, janus.IMAGE, janus.IMAGE_END, janus.PLACEHOLDER, janus.USER, janus.ASSISTANT]
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    tokenizer.save(str(folder / "tokenizer.json"))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.inference_mode()
def ours(args) -> dict:
    import dalle_core
    from dalle_core.engine import SamplingSettings, generate
    from dalle_core.sampling import candidate_uniforms

    start = time.perf_counter()
    pipe = dalle_core.load(args.folder, "cpu", getattr(torch, args.dtype), clip="none")
    loaded, resident = time.perf_counter() - start, psutil.Process().memory_info().rss
    ids = torch.tensor([PROMPT_IDS])
    null = torch.tensor([[BOS] + [PAD] * (len(PROMPT_IDS) - 2) + [IMAGE]])

    def draw(candidates: int, settings: SamplingSettings, count: int):
        uniforms = torch.stack([candidate_uniforms(0, i, 576) for i in range(candidates)])
        steps = generate(pipe.engine, ids, null, uniforms, settings)
        tokens = next(steps)  # after the prompt
        start = time.perf_counter()
        for _ in range(count - 1):
            tokens = next(steps)
        steps.close()
        return tokens[0, :count].tolist(), (time.perf_counter() - start) / (count - 1)

    greedy, _ = draw(1, SamplingSettings(temperature=0.0, guidance_scale=5.0), GREEDY)
    if args.only_greedy:
        return {"greedy": greedy}
    token_ms = {n: 1000 * draw(n, SamplingSettings(guidance_scale=5.0), args.tokens)[1] for n in CANDIDATES}
    return {"load_s": loaded, "loaded_gib": resident / 2**30, "token_ms": token_ms, "peak_gib": peak_gib()}


@torch.inference_mode()
def theirs(args) -> dict:
    model = peer_model(getattr(torch, args.dtype))
    ids = torch.tensor([PROMPT_IDS])

    def draw(candidates: int, count: int, **settings):
        rows = ids.repeat(candidates, 1)
        model.model.vision_model.config.num_image_tokens = count
        return model.generate(
            rows, attention_mask=torch.ones_like(rows), generation_mode="image", guidance_scale=5.0, use_cache=True, **settings
        )

    if args.only_greedy:
        return {"greedy": draw(1, GREEDY, do_sample=False)[0].tolist()}

    def seconds(candidates: int, count: int) -> float:
        start = time.perf_counter()
        draw(candidates, count, do_sample=True, top_k=0)
        return time.perf_counter() - start

    token_ms = {}
    for candidates in CANDIDATES:
        seconds(candidates, 1)  # the first call makes more than later ones do
        prompt = seconds(candidates, 1)
        token_ms[candidates] = 1000 * (seconds(candidates, args.tokens) - prompt) / (args.tokens - 1)
    return {"token_ms": token_ms, "peak_gib": peak_gib()}


@torch.inference_mode()
def limits(args) -> dict:
    """Milliseconds a token that this machine allows, for each dtype and number of candidates."""
    from benchmarks.limit import best_of
    from dalle_core.int8 import Int8Linear

    big, square = torch.ones(64_000_000), torch.randn(2048, 2048)
    bandwidth = 4 * len(big) / best_of(big.sum, 10)
    half, layer = square.bfloat16(), Int8Linear(torch.nn.Linear(2048, 2048, bias=False))
    works = {"float32": lambda: square @ square, "bfloat16": lambda: half @ half, "int8": lambda: layer(square)}
    weights, numbers = 1_275_000_000, 2 * 24 * 2048  # of a pass; of keys and values a row and position
    found = {}
    for dtype, work in works.items():
        rate, size = 2 * 2048**3 / best_of(work, 10), {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
        cached = 2 if dtype == "bfloat16" else 4
        for candidates in CANDIDATES:
            reading = (weights * size + 2 * candidates * 48 * numbers * cached) / bandwidth  # at about 48 positions
            found[f"{dtype} {candidates}"] = 1000 * max(reading, 2 * candidates * 2 * weights / rate)
    return found


def apart(args, side: str, *more: str) -> dict:
    """One side's result, from a process of its own."""
    given = ["--folder", str(args.folder), "--tokens", str(args.tokens)]
    command = [sys.executable, "-m", "benchmarks.janus", "--side", side, *given, *more]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    return json.loads(run.stdout.strip().splitlines()[-1])


def ratios(result: dict) -> dict:
    """How many times as long as ours transformers takes, and ours as long as the machine allows, for a token."""
    found = {"times_transformers": {}, "times_limit": {}}
    for dtype in DTYPES:
        for candidates, ours_ms in result.get(f"ours {dtype}", {}).get("token_ms", {}).items():
            name = f"{dtype} {candidates}"
            found["times_limit"][name] = ours_ms / result["limit_ms"][name]
            if theirs_ms := result.get(f"transformers {dtype}", {}).get("token_ms", {}).get(candidates):
                found["times_transformers"][name] = theirs_ms / ours_ms
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Janus-Pro 1B's shapes against transformers' generate and the machine.")
    parser.add_argument("--folder", type=Path, default=Path("runs/janus-random"), help="where the random weights lie (4.2 GB)")
    parser.add_argument("--tokens", type=int, default=24, help="that are timed (default: %(default)s of 576)")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--side", choices=["ours", "theirs", "limits", "write"], help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--only-greedy", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side == "write":
        write(args.folder)
        print("{}")
    elif args.side:
        print(json.dumps({"ours": ours, "theirs": theirs, "limits": limits}[args.side](args)))
    else:
        from benchmarks.embedded import cpu_name

        if not (args.folder / "tokenizer.json").exists():
            apart(args, "write")
        first = [apart(args, side, "--only-greedy")["greedy"] for side in ("ours", "theirs")]
        if first[0] != first[1]:
            raise SystemExit(f"The two sides draw different tokens: {first}")
        result = {"cpu": cpu_name(), "limit_ms": apart(args, "limits")}  # apart: a process's peak is at least its parent's
        for dtype in args.dtypes:
            result[f"ours {dtype}"] = apart(args, "ours", "--dtype", dtype)
            if dtype != "int8":
                result[f"transformers {dtype}"] = apart(args, "theirs", "--dtype", dtype)
        print(json.dumps(result | ratios(result)))


if __name__ == "__main__":
    main()
