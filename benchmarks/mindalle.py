"""minDALL·E's prior against its own code: from the prompt's ids to 256 image tokens, with the same random weights.

Regime: the published shapes (1536 wide, 24 heads, 64 + 256 positions, 16,384 codes) at a depth that fits (`--layers`, 42
in the published model), float32 on the CPU with all threads, top-k 256, unguided, as minDALL·E samples. Each side runs
in a process of its own, one after the other. Before anything is timed the two must give the same greedy tokens. Needs
a clone of github.com/kakaobrain/minDALL-E (`--peer`), of which only the transformer and its sampling loop are read.
Nothing else should be running. Ends in one JSON line.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
TEXTS, WIDTH, HEADS, GREEDY = 16384, 1536, 24, 24
TEXT_IDS = list(range(7, 71))


def peer_transformer(peer: Path, layers: int):
    """(their Transformer1d with random weights, their sampling function)."""
    for name in ("dalle", "dalle.models", "dalle.models.stage2", "dalle.utils"):
        package = types.ModuleType(name)  # without running their __init__, which imports what is not needed
        package.__path__ = [str(peer / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.modules["omegaconf"] = types.SimpleNamespace(OmegaConf=dict)  # there for annotations only
    from dalle.models.stage2.transformer import Transformer1d
    from dalle.utils.sampling import sampling

    hparams = types.SimpleNamespace(
        embed_dim=WIDTH,
        n_layers=layers,
        n_dense_layers=layers,
        n_heads=HEADS,
        mlp_bias=True,
        attn_bias=True,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        gelu_use_approx=False,
        ctx_len_img=256,
        ctx_len_txt=64,
    )
    torch.manual_seed(0)
    model = Transformer1d(TEXTS, 16384, hparams).eval()
    model.head_img.weight.data.mul_(20)  # far from uniform
    return model, sampling


def theirs(args) -> dict:
    model, sampling = peer_transformer(args.peer, args.layers)
    if not args.checkpoint.exists():
        torch.save({"state_dict": model.state_dict()}, args.checkpoint)
    ids = torch.tensor([TEXT_IDS])
    greedy = sampling(model, ids, top_k=1, is_tqdm=False, use_fp16=False, max_seq_len=GREEDY)[0].tolist()
    if args.only_greedy:
        return {"greedy": greedy}
    start = time.perf_counter()
    sampling(model, ids.repeat(args.candidates, 1), top_k=256, is_tqdm=False, use_fp16=False)
    return {"greedy": greedy, "seconds": time.perf_counter() - start}


def ours(args) -> dict:
    from dalle_core.checkpoints import mindalle
    from dalle_core.checkpoints.tensors import read_torch
    from dalle_core.engine import Engine, SamplingSettings, generate
    from dalle_core.int8 import quantize
    from dalle_core.packed import pack
    from dalle_core.sampling import candidate_uniforms

    prior = mindalle.convert_prior(read_torch(args.checkpoint, "state_dict"), args.checkpoint.with_name("config.yaml"))
    pack(prior) if args.dtype == "float32" else quantize(prior)
    engine, ids = Engine(prior), torch.tensor([TEXT_IDS])
    greedy = generate(engine, ids, ids, torch.zeros(1, 256), SamplingSettings(temperature=0.0))
    for _ in range(GREEDY):
        tokens = next(greedy)
    greedy.close()
    uniforms = torch.stack([candidate_uniforms(1, i, 256) for i in range(args.candidates)])
    start = time.perf_counter()
    for _ in generate(engine, ids, ids, uniforms, SamplingSettings(top_k=256)):
        pass
    return {"greedy": tokens[0, :GREEDY].tolist(), "seconds": time.perf_counter() - start}


def main() -> None:
    sys.stdout.reconfigure(errors="backslashreplace")  # "·" in any locale
    parser = argparse.ArgumentParser(description="minDALL·E's shapes, against its own code.")
    parser.add_argument("--peer", type=Path, required=True, help="a clone of github.com/kakaobrain/minDALL-E")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--candidates", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=["float32", "best"], help="ours; best is int8")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--only-greedy", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        result = theirs(args) if args.side == "theirs" else ours(args)
        result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps(result))
        return

    from benchmarks.embedded import cpu_name

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(f"stage2: {{hparams: {{n_heads: {HEADS}}}}}\n", encoding="utf-8")

        def run(side: str, *more: str) -> dict:
            command = [
                sys.executable,
                "-m",
                "benchmarks.mindalle",
                "--side",
                side,
                "--checkpoint",
                f"{folder}/stage2_last.ckpt",
            ]
            command += ["--peer", str(args.peer), "--layers", str(args.layers), "--candidates", str(args.candidates), *more]
            out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout
            return json.loads(out.splitlines()[-1])

        expected = run("theirs", "--only-greedy")["greedy"]
        exact = run("ours")
        if exact["greedy"] != expected:
            raise SystemExit(f"The two do not agree:\n{exact['greedy']}\n{expected}")
        a = exact if args.dtype == "float32" else run("ours", "--dtype", "best")
        b = run("theirs")
    print(
        json.dumps(
            {
                "candidates": args.candidates,
                "layers": args.layers,
                "dtype": args.dtype,
                "speedup": round(b["seconds"] / a["seconds"], 2),
                "peak_memory_ratio": round(a["peak_gb"] / b["peak_gb"], 2),
                "ours_s": round(a["seconds"], 1),
                "mindalle_s": round(b["seconds"], 1),
                "cores": os.cpu_count(),
                "machine": cpu_name(),
            }
        )
    )


if __name__ == "__main__":
    main()
