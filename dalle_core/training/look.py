"""What a prior under training is worth so far: its loss on pictures that it never sees, what it draws for their captions."""

import torch
from tqdm import tqdm

from dalle_core import image_tokenizer
from dalle_core.pipeline import DallePipeline
from dalle_core.training import processes
from dalle_core.training.evaluate import sheet
from dalle_core.training.loop import Loop

HELD_OUT = 512  # pictures of all kinds together, at most
AT_A_TIME = 32
PROMPTS, CANDIDATES = 6, 4  # of the sheet of samples


class Look:
    """`look(loss)` logs held_out_KIND, nats a token, of each kind of held-out pictures, and keeps a sheet of samples: a real
    picture a row, then what is drawn for its caption, best first where there is a CLIP. Of the averaged weights."""

    def __init__(self, loop: Loop, pipe: DallePipeline, dataset, reader, seed: int):
        self.loop, self.pipe, self.seed = loop, pipe, seed
        self.kinds, self.shown = {}, []
        kinds = dataset.held_out_kinds
        for kind in kinds:
            items = dataset.held_out(kind, HELD_OUT // len(kinds))
            if items:
                images, captions = zip(*items)
                self.kinds[kind] = reader.ids(list(captions)), self._tokens(images)
                self.shown += items[: max(1, PROMPTS // len(kinds))]

    def _tokens(self, images) -> torch.Tensor:
        """Pictures -> tokens [B, h * w], on the CPU."""
        parts = [images[i : i + AT_A_TIME] for i in range(0, len(images), AT_A_TIME)]
        model, device = self.pipe.image_tokenizer, self.loop.device
        tokens = [image_tokenizer.encode(model, image_tokenizer.to_pixels(part).to(device)).cpu() for part in parts]
        return torch.cat(tokens).flatten(1)

    def __call__(self, loss) -> None:
        with self.loop.averaged("prior") as prior:
            prior.eval()
            figures = self.figures(prior, loss)
            if self.loop.first and self.shown and not self.loop.sharded:  # where all processes would have to draw
                self.loop.picture("samples", sheet(self.samples()))
            prior.train()
        if figures:
            self.loop.log(**figures)

    def start(self, loss) -> None:
        """Says what a trained model is worth on these pictures before it learns them."""
        figures = self.figures(self.loop.module("prior").eval(), loss)
        self.loop.print("\n".join(f"{name}: {value:.3f} nats a token, before training" for name, value in figures.items()))

    def figures(self, prior, loss) -> dict:
        return {f"held_out_{kind}": self.held_out(prior, loss, *pair) for kind, pair in self.kinds.items()}

    @torch.no_grad()
    def held_out(self, prior, loss, text_ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The mean over all of them; each process computes a share, under FSDP the same, as each pass needs all."""
        rank, count = (0, 1) if self.loop.sharded else self.loop.part
        total = torch.zeros((), device=self.loop.device)
        for ids, row in zip(text_ids[rank::count].split(AT_A_TIME), tokens[rank::count].split(AT_A_TIME)):
            with self.loop.autocast():
                total += loss(prior, ids.to(self.loop.device), row.to(self.loop.device)).float() * len(ids)
        return (processes.sum_(total) if count > 1 else total) / len(tokens)

    def samples(self) -> list[list]:
        rows = []
        for image, caption in tqdm(self.shown, desc="samples", leave=False, mininterval=5):
            found = self.pipe(caption, num_candidates=CANDIDATES, seed=self.seed).candidates
            rows.append([image, *(candidate.image for candidate in found)])
        return rows
