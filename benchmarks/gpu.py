"""What drawing costs on a GPU, in the shapes of DALL·E mini, DALL·E mega and Janus-Pro 1B, with random weights.

Regime: the model's usual dtype on the card, `SlotEngine`, nothing else running, no network. "greedy": how many of the first
tokens are those that the plain path draws on the CPU in float32 (mini in full; of the others the first four layers). "rows":
ms a token of so many unguided candidates, the mean of all but the first few of a picture, beside the time that the card needs
to read the weights and the keys and values of a token once, at a bandwidth that is measured first (a copy of 1 GiB, read and
written). "guided": nine candidates as a page draws them, two rows each. "min_dalle": min-dalle's own loop in mini's shapes and
the same dtype, nine candidates, tokens alone. "page": mini with a VQGAN of 256 x 256 pixels and CLIP ViT-B/32, guided;
"preview_s" and "ranked_s" from the call to the first preview and to sixteen ranked pictures; eight people who ask for four
candidates each, one after the other and at once. "mini compiled": with its layers compiled, as `app.py --compile`. Everything
is drawn once before it is timed, as graphs are captured then. A part that fails says why, and the others go on. Less than
eight minutes on a small card: what would begin after six is left out. mega's encoder has two layers. Ends in one JSON line.
`--device cpu --tiny` tries in seconds that all of it runs; its figures say nothing.
"""

import argparse
import gc
import json
import threading
import time
import traceback
from types import SimpleNamespace

import torch
from diffusers import VQModel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from benchmarks.embedded import cpu_name
from dalle_core.engine import Engine, SamplingSettings, generate
from dalle_core.pipeline import DallePipeline
from dalle_core.priors.bart import BartPrior
from dalle_core.priors.llama import LlamaPrior
from dalle_core.slots import SlotEngine
from dalle_core.text_tokenizer import train_text_tokenizer
from dalle_core.training.clip import new_clip, new_image_processor

SECONDS = 360  # after which nothing new is begun
SKIPPED = 8  # tokens at a picture's beginning that are not timed
BART = {"text_vocab_size": 50264, "text_length": 64, "image_vocab_size": 16384, "image_length": 256, "pad_token_id": 0}
SHAPES = {
    "mini": (
        BartPrior,
        BART
        | {"encoder_layers": 12, "decoder_layers": 12, "num_heads": 16, "hidden_size": 1024, "ffn_size": 2730}
        | {"embedded_image_tokens": 16385, "start_token_id": 16384},
    ),
    "mega": (
        BartPrior,
        BART
        | {"encoder_layers": 2, "decoder_layers": 24, "num_heads": 32, "hidden_size": 2048, "ffn_size": 4096}
        | {"embedded_image_tokens": 16416, "start_token_id": 16415},
    ),
    "janus-pro-1b": (
        LlamaPrior,
        {"text_vocab_size": 102400, "text_length": 256, "image_vocab_size": 16384, "image_length": 576, "num_layers": 24}
        | {"num_heads": 16, "num_kv_heads": 16, "hidden_size": 2048, "ffn_size": 5632, "code_size": 8},
    ),
}
GUIDED = {"mini": (256, 16.0), "mega": (256, 16.0), "janus-pro-1b": (0, 5.0)}  # top-k, guidance scale
TINY_BART = {"text_vocab_size": 200, "image_vocab_size": 64, "image_length": 16, "hidden_size": 32, "num_heads": 2} | {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_size": 48,
    "embedded_image_tokens": 65,
    "start_token_id": 64,
}
TINY_LLAMA = {"text_vocab_size": 200, "text_length": 70, "image_vocab_size": 64, "image_length": 16, "hidden_size": 32} | {
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "ffn_size": 48,
}


class Bench:
    def __init__(self, device: torch.device, tiny: bool):
        self.device, self.tiny, self.began = device, tiny, time.perf_counter()
        self.dtype = torch.float32
        if device.type == "cuda":
            exact = torch.cuda.is_bf16_supported(including_emulation=False)
            self.dtype = torch.bfloat16 if exact else torch.float16
        self.found = {"device": self.name(), "dtype": str(self.dtype).removeprefix("torch.")}

    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu_name()

    def part(self, name: str, work) -> None:
        """Notes what work() finds, or why it finds nothing."""
        if time.perf_counter() - self.began > SECONDS:
            self.found.setdefault("left_out", []).append(name)
            return
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        try:
            self.found[name] = work()
        except Exception as error:
            traceback.print_exc()
            self.found[name] = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
        if self.device.type == "cuda" and isinstance(self.found[name], dict):
            self.found[name]["peak_gb"] = round(torch.cuda.max_memory_allocated(self.device) / 1e9, 2)
        print(f"{name}: {time.perf_counter() - start:.1f} s, {json.dumps(self.found[name])}", flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def prior(self, name: str, layers: int | None = None, on: str | None = None) -> BartPrior | LlamaPrior:
        """Of random weights, the same for the same device; layers: only so many."""
        cls, sizes = SHAPES[name]
        if self.tiny:
            sizes = sizes | (TINY_BART if cls is BartPrior else TINY_LLAMA)
        if layers:
            key = "decoder_layers" if cls is BartPrior else "num_layers"
            sizes = sizes | {key: min(layers, sizes[key])}
        torch.manual_seed(0)
        with torch.device(on or self.device):
            return cls(**sizes).eval().requires_grad_(False)

    def engine(self, prior) -> SlotEngine:
        return SlotEngine(prior, 16 if self.tiny else None)

    # The parts

    def bandwidth(self) -> float:
        """GB/s of a copy, read and written."""
        x = torch.ones(2**18 if self.tiny else 2**28, device=self.device)
        y, times = torch.empty_like(x), []
        for _ in range(10):
            self.wait()
            start = time.perf_counter()
            y.copy_(x)
            self.wait()
            times.append(time.perf_counter() - start)
        return round(2 * x.nbytes / min(times) / 1e9, 1)

    def greedy(self, name: str) -> dict:
        """How many of the first tokens are those of the plain path on the CPU, in float32."""
        plain = self.prior(name, None if name == "mini" else 4, on="cpu")
        length = plain.config.image_length
        count = min(length, 64)
        uniforms, settings = torch.zeros(2, length), SamplingSettings(temperature=0.0, guidance_scale=3.0)
        keep = torch.arange(length) >= count
        rest = torch.zeros(length, dtype=torch.long), keep, length
        *_, expected = generate(Engine(plain), *prompts(plain), uniforms, settings, *rest)
        prior = plain.to(self.device)
        ids = [part.to(self.device) for part in prompts(prior)]
        *_, found = generate(self.engine(prior), *ids, uniforms, settings, *rest)
        same = (found.cpu() == expected)[:, :count].all(0)
        return {"tokens": count, "same_until": int(same.long().cumprod(0).sum())}

    def tokens(self, name: str, compiled: bool = False) -> dict:
        prior = self.prior(name).to(self.dtype)
        if compiled and not self.tiny:  # a minute
            prior.compile_repeated_blocks(dynamic=True)
        engine = self.engine(prior)
        found = {"weights_gb": round(read_weights(prior) * self.dtype.itemsize / 1e9, 3), "slots": engine.slots.rows}
        found["rows"] = [self.timed(engine, rows, 0, 1.0) for rows in ((1, 4) if self.tiny else (1, 4, 16, 64))]
        found["guided"] = self.timed(engine, 2 if self.tiny else 9, *GUIDED[name])
        return found

    def timed(self, engine: SlotEngine, candidates: int, top_k: int, scale: float) -> dict:
        prior = engine.prior
        rows = candidates * (1 if scale == 1 else 2)
        if rows > engine.slots.rows:
            return {"rows": rows, "error": f"there are {engine.slots.rows} slots"}
        self.draw(engine, candidates, top_k, scale)
        ms = self.draw(engine, candidates, top_k, scale)
        limit = bytes_a_token(prior, rows) / (self.found["gb_s"] * 1e9) * 1000
        found = {"rows": rows, "ms_a_token": round(ms, 3), "limit_ms": round(limit, 3), "times": round(ms / limit, 2)}
        return found | {"tokens_s": round(candidates / ms * 1000)}

    def draw(self, engine: SlotEngine, candidates: int, top_k: int, scale: float) -> float:
        """Milliseconds a token of all candidates."""
        length = engine.prior.config.image_length
        ids = [part.to(self.device) for part in prompts(engine.prior)]
        uniforms = torch.rand(candidates, length, dtype=torch.float64)
        steps = generate(engine, *ids, uniforms, SamplingSettings(1.0, top_k, 1.0, scale), every=length)
        for _ in range(SKIPPED + 1):
            next(steps)
        start = time.perf_counter()
        *_, tokens = steps
        tokens.cpu()
        return (time.perf_counter() - start) / (length - 1 - SKIPPED) * 1000

    def pipeline(self) -> DallePipeline:
        torch.manual_seed(0)
        tokenizer, levels = train_text_tokenizer(["a red fox", "two apples on a table"] * 5, 120), 4 if self.tiny else 5
        channels = (32,) * levels if self.tiny else (128, 128, 256, 256, 512)
        with torch.device(self.device):
            pictures = VQModel(
                down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
                up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
                block_out_channels=channels,
                layers_per_block=1 if self.tiny else 2,
                latent_channels=16 if self.tiny else 256,
                vq_embed_dim=16 if self.tiny else 256,
                num_vq_embeddings=64 if self.tiny else 16384,
                sample_size=16 * 2 ** (levels - 1),
            )
            clip = new_clip(tokenizer, 32, 16, width=32) if self.tiny else CLIPModel(CLIPConfig())
        processor = new_image_processor(32) if self.tiny else CLIPImageProcessorPil()
        for part in (pictures, clip):
            part.eval()
        top_k, scale = GUIDED["mini"]
        defaults = {"top_k": min(top_k, 32) if self.tiny else top_k, "guidance_scale": scale}
        pipe = DallePipeline(pictures, tokenizer, self.prior("mini"), clip, processor, defaults=defaults)
        pipe.to(self.device).to(self.dtype)
        if self.device.type != "cuda":
            pipe.engine = self.engine(pipe.prior)
        return pipe

    def page(self) -> dict:
        pipe = self.pipeline()
        return {"previews": self.previews(pipe), "visitors": self.visitors(pipe)}

    def previews(self, pipe: DallePipeline) -> dict:
        def once() -> tuple[float, float]:
            start, first = time.perf_counter(), None
            count, every = (4, 4) if self.tiny else (16, 32)
            for step in pipe.stream("a red fox", num_candidates=count, seed=0, preview_every=every):
                if first is None and step.previews is not None:
                    first = time.perf_counter() - start
            return first, time.perf_counter() - start

        once()
        first, ranked = once()
        return {"preview_s": round(first, 3), "ranked_s": round(ranked, 3)}

    def visitors(self, pipe: DallePipeline) -> dict:
        def ask(seed: int) -> None:
            pipe("a red fox", num_candidates=2 if self.tiny else 4, seed=seed, rerank=False)

        def at_once() -> float:
            start = time.perf_counter()
            threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return time.perf_counter() - start

        at_once(), ask(0)
        start = time.perf_counter()
        for seed in range(8):
            ask(seed)
        alone = time.perf_counter() - start
        last = at_once()
        found = {"one_after_the_other_s": round(alone, 3), "at_once_s": round(last, 3), "throughput": round(alone / last, 2)}
        return found | {"sizes_captured": len(pipe.engine.slots.graphs.graphs) if pipe.engine.slots.graphs else 0}

    def min_dalle(self) -> dict:
        """Tokens of nine candidates by min-dalle's own loop."""
        threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
        try:  # importing it changes both
            from min_dalle import MinDalle
            from min_dalle.models import DalleBartDecoder, DalleBartEncoder
        finally:
            torch.set_num_threads(threads)
            torch.set_grad_enabled(gradients)

        layers, width, heads, ffn = (1, 32, 2, 48) if self.tiny else (12, 1024, 16, 2730)
        model = MinDalle.__new__(MinDalle)  # its constructor asks the Hub
        model.device, model.dtype, model.is_reusable, model.is_verbose = str(self.device), self.dtype, True, False
        model.text_token_count, model.layer_count, model.embed_count = 64, layers, width
        model.tokenizer = SimpleNamespace(tokenize=lambda text, is_verbose: [0, 500, 501, 502, 2])
        model.detokenizer = SimpleNamespace(forward=lambda is_seamless, tokens: tokens.cpu())  # waits for them
        with torch.device(self.device):
            model.encoder = DalleBartEncoder(layers, width, heads, 50264, 64, ffn, str(self.device)).to(self.dtype).eval()
            model.decoder = DalleBartDecoder(16384, width, heads, ffn, layers, str(self.device)).to(self.dtype).eval()
        times = []
        with torch.no_grad():
            for _ in range(1 if self.tiny else 2):
                start = time.perf_counter()
                list(
                    model.generate_raw_image_stream("a red fox", 1, 1 if self.tiny else 3, top_k=256, supercondition_factor=16)
                )
                times.append(time.perf_counter() - start)
        return {"ms_a_token": round(times[-1] / 256 * 1000, 3)}


def prompts(prior) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [1, T] of a prompt of 20 words and of the null prompt, as the prior reads them."""
    length = prior.config.text_length if isinstance(prior, BartPrior) else 24
    text, null = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, length, dtype=torch.long)
    text[0, :20], null[0, :2] = torch.arange(3, 23), torch.tensor([1, 2])
    return text, null


def read_weights(prior) -> int:
    """Numbers in the matrices that a token's step reads whole."""
    left_out = ("embedding", "position", "encoder", "cross_attn.kv")
    names = [(name, p) for name, p in prior.named_parameters() if p.ndim == 2]
    return sum(p.numel() for name, p in names if not any(part in name for part in left_out))


def bytes_a_token(prior, rows: int) -> float:
    """What a step reads at least, at a picture's middle: the matrices, and each row's keys and values."""
    config, bart = prior.config, isinstance(prior, BartPrior)
    layers, heads = (config.decoder_layers, config.num_heads) if bart else (config.num_layers, config.num_kv_heads)
    positions = config.image_length / 2 + (config.text_length if bart else 24)
    width = config.hidden_size // config.num_heads * heads
    return (read_weights(prior) + 2 * layers * rows * positions * width) * prior.dtype.itemsize


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What drawing costs on a GPU.")
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try that all of it runs")
    args = parser.parse_args(argv)
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no CUDA device here; --device cpu --tiny tries that all of it runs.")
    bench = Bench(args.device, args.tiny)
    bench.part("gb_s", bench.bandwidth)
    for name in SHAPES:
        bench.part(f"{name} greedy", lambda name=name: bench.greedy(name))
    bench.part("mini", lambda: bench.tokens("mini"))
    bench.part("min_dalle", bench.min_dalle)
    bench.part("page", bench.page)
    bench.part("mega", lambda: bench.tokens("mega"))
    bench.part("janus-pro-1b", lambda: bench.tokens("janus-pro-1b"))
    bench.part("mini compiled", lambda: bench.tokens("mini", compiled=True))
    print(json.dumps(bench.found))
    if any(isinstance(value, dict) and "error" in value for value in bench.found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
