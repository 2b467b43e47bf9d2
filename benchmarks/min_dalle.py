"""DALL·E mini against min-dalle 0.4.11: from the prompt's ids to pixels, with the same random weights.

Regime: DALL·E mini's full shapes (437 M parameters, VQGAN at 256 x 256), written to files as min-dalle writes them, then
read by each side in a process of its own, one after the other, float32 on the CPU with all threads, guidance 16, top-k
256, temperature 1. `--dtype best`: ours in whichever of float32, bfloat16 and int8 draws a few tokens, from the 129th
on, fastest here, in a process before ("tried_ms_a_token"). min-dalle runs its own `generate_raw_image_stream`, ours
`DallePipeline` without CLIP, which min-dalle does not have. Before anything is timed the two must give the same greedy
tokens in float32. Random weights take as long as trained ones. Nothing else should be running. Ends in one JSON line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROMPT, GREEDY = "the red fox and a cat", 24  # tokens that must agree
DTYPES, TRIED = ("float32", "bfloat16", "int8"), 8  # tokens of each, to find the fastest


def theirs(folder: Path, candidates: int) -> dict:
    import torch
    from min_dalle import MinDalle
    from min_dalle.models import DalleBartDecoder, DalleBartEncoder, VQGanDetokenizer
    from min_dalle.text_tokenizer import TextTokenizer

    model = MinDalle.__new__(MinDalle)  # its constructor asks the Hub
    model.device, model.dtype, model.is_reusable, model.is_verbose = "cpu", torch.float32, True, False
    model.text_token_count, model.layer_count, model.embed_count = 64, 12, 1024
    vocab = json.loads((folder / "vocab_mini.json").read_text(encoding="utf-8"))
    merges = (folder / "merges_mini.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    model.tokenizer = TextTokenizer(vocab, merges)
    model.encoder = DalleBartEncoder(12, 1024, 16, 50264, 64, 2730, "cpu").eval()
    model.decoder = DalleBartDecoder(16384, 1024, 16, 2730, 12, "cpu").eval()
    model.detokenizer = VQGanDetokenizer().eval()
    for part, file in (("encoder", "encoder_mini.pt"), ("decoder", "decoder_mini.pt"), ("detokenizer", "detoker.pt")):
        getattr(model, part).load_state_dict(torch.load(folder / file, weights_only=True), strict=False)

    ids = torch.ones(2, 64, dtype=torch.long)
    encoded = torch.tensor(model.tokenizer.tokenize(PROMPT))
    ids[0, :2], ids[1, : len(encoded)] = torch.tensor([0, 2]), encoded
    states, mask, cache = model.encoder.forward(ids), ids.not_equal(1)[:, None, None, :], torch.zeros(12, 4, 256, 1024)
    greedy, previous = [], torch.tensor([[16384]])
    for i in range(GREEDY):
        token, cache = model.decoder.sample_tokens(
            torch.tensor([1.0, 1.0, 16.0]),
            attention_mask=mask,
            encoder_state=states,
            attention_state=cache,
            prev_tokens=previous,
            token_index=torch.tensor([i]),
        )
        greedy.append(token.item())
        previous = token[:, None]
    del states, cache

    start = time.perf_counter()
    grid = round(candidates**0.5)
    list(model.generate_raw_image_stream(PROMPT, 1, grid, top_k=256, supercondition_factor=16))
    return {"greedy": greedy, "seconds": time.perf_counter() - start}


def ours(folder: Path, candidates: int, dtype: str) -> dict:
    import torch

    import dalle_core

    pipe = dalle_core.load(folder, device="cpu", dtype=getattr(torch, dtype), clip="none")
    keep = torch.zeros(16, 16, dtype=torch.bool)
    keep.view(-1)[GREEDY:] = True
    first = pipe(
        PROMPT, num_candidates=1, temperature=0.0, guidance_scale=16.0, image_tokens=torch.zeros(16, 16).long(), keep=keep
    )
    greedy = first.candidates[0].tokens.flatten()[:GREEDY].tolist()
    start = time.perf_counter()
    for step in pipe.stream(PROMPT, num_candidates=candidates, seed=1, guidance_scale=16.0, top_k=256, rerank=False):
        if step.index == step.total - candidates:
            tokens = time.perf_counter() - start
    return {"greedy": greedy, "seconds": time.perf_counter() - start, "tokens_s": tokens}


def tried(folder: Path, candidates: int) -> dict[str, float]:
    """Milliseconds a token in each dtype that this machine has."""
    import torch

    import dalle_core

    found = {}
    for dtype in DTYPES:
        try:
            pipe = dalle_core.load(folder, device="cpu", dtype=getattr(torch, dtype), clip="none")
        except dalle_core.ModelError:  # no 8-bit kernels
            continue
        half = torch.arange(256).view(16, 16) < 128  # a token in the middle costs what tokens cost on average
        steps = pipe.stream(
            PROMPT,
            num_candidates=candidates,
            seed=1,
            guidance_scale=16.0,
            top_k=256,
            rerank=False,
            image_tokens=torch.zeros(16, 16).long(),
            keep=half,
        )
        for _ in range(128 + TRIED):  # reads the prompt and what is kept, warms up
            next(steps)
        start = time.perf_counter()
        for _ in range(TRIED):
            next(steps)
        found[dtype] = round((time.perf_counter() - start) / TRIED * 1000, 1)
        steps.close()
        del pipe, steps  # before the next one is read
    return found


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # "·" in any locale
    parser = argparse.ArgumentParser(description="DALL·E mini's shapes, against min-dalle.")
    parser.add_argument("--candidates", type=int, default=9, choices=[1, 4, 9, 16])
    parser.add_argument("--dtype", default="float32", choices=[*DTYPES, "best"], help="ours; best: the fastest here")
    parser.add_argument("--side", choices=["ours", "theirs", "tried"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        if args.side == "tried":
            result = {"ms_a_token": tried(args.folder, args.candidates)}
        elif args.side == "theirs":
            result = theirs(args.folder, args.candidates)
        else:
            result = ours(args.folder, args.candidates, args.dtype)
        result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(result))
        return

    from benchmarks.embedded import cpu_name

    with tempfile.TemporaryDirectory() as folder:
        write = "from pathlib import Path; from tests.published import MinDalleFiles; "
        write += f"MinDalleFiles(Path({folder!r}), 1024, 2730, 12, 50264)"
        subprocess.run([sys.executable, "-c", write], cwd=ROOT, check=True)
        environment = os.environ | {"HF_HOME": f"{folder}/home", "HF_HUB_OFFLINE": "1"}

        def run(side: str, candidates: int, dtype: str = "float32") -> dict:
            command = [sys.executable, "-m", "benchmarks.min_dalle", "--side", side, "--folder", folder]
            command += ["--dtype", dtype, "--candidates", str(candidates)]
            out = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
            return json.loads(out.stdout.splitlines()[-1])

        first = run("ours", 1)  # converts the files, and must agree with theirs
        b = run("theirs", args.candidates)
        if b["greedy"] != first["greedy"]:
            raise SystemExit(f"The two do not agree:\n{first['greedy']}\n{b['greedy']}")
        dtype, more = args.dtype, {}
        if dtype == "best":
            speeds = run("tried", args.candidates)["ms_a_token"]
            dtype, more = min(speeds, key=speeds.get), {"tried_ms_a_token": speeds}
        a = run("ours", args.candidates, dtype)
    print(
        json.dumps(
            {
                "candidates": args.candidates,
                "dtype": dtype,
                "speedup": round(b["seconds"] / a["seconds"], 2),
                "peak_memory_ratio": round(a["peak_gb"] / b["peak_gb"], 2),
                "ours_s": round(a["seconds"], 1),
                "ours_ms_a_token": round(a["tokens_s"] / 255 * 1000, 1),
                "min_dalle_s": round(b["seconds"], 1),
                "ours_peak_gb": round(a["peak_gb"], 2),
                "min_dalle_peak_gb": round(b["peak_gb"], 2),
                "cores": os.cpu_count(),
                "machine": cpu_name(),
            }
            | more
        )
    )


if __name__ == "__main__":
    main()
