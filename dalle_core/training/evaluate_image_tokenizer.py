"""How well an image tokenizer restores what it has never seen: a JSON file and a picture.

For each kind of held-out pictures: PSNR at full and at half size, SSIM, the perceptual distance, how many codes are in
use, and the time to decode. `python -m dalle_core.training.evaluate_image_tokenizer --help`
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel

from dalle_core import decoder, image_tokenizer
from dalle_core.errors import InputError
from dalle_core.training.data import add_data_arguments, open_from, some_held_out
from dalle_core.training.perceptual import PerceptualNetwork, feature_distance
from dalle_core.training.vqgan_losses import psnr, ssim


@torch.no_grad()
def figures(model: VQModel, network: PerceptualNetwork | None, images: list) -> tuple[dict, torch.Tensor]:
    """Means over `images` (PIL) of what is measured, and the reconstructions [B, 3, H, W]. Without `network`, without the
    perceptual distance."""
    pixels = image_tokenizer.to_pixels(images).to(model.device)
    tokens = torch.cat([image_tokenizer.encode(model, part) for part in pixels.split(16)])
    decoded = torch.cat([image_tokenizer.decode(model, part) for part in tokens.split(16)])
    pairs = zip(pixels.split(16), decoded.split(16))
    looks = {}
    if network is not None:
        looks = {"perceptual_distance": torch.cat([feature_distance(network(x), network(y)) for x, y in pairs]).mean().item()}
    share = torch.bincount(tokens.flatten(), minlength=model.config.num_vq_embeddings) / tokens.numel()
    return {
        "pictures": len(images),
        "psnr": psnr(pixels, decoded).mean().item(),
        "psnr_at_half_size": psnr(F.avg_pool2d(pixels, 2), F.avg_pool2d(decoded, 2)).mean().item(),
        "ssim": ssim(pixels, decoded).mean().item(),
        **looks,
        "codes": (share > 0).sum().item(),
        "perplexity": torch.special.entr(share).sum().exp().item(),
        "bits_a_token": torch.special.entr(share).sum().item() / torch.tensor(2.0).log().item(),
    }, decoded


def decode_seconds(model: VQModel, count: int = 16, repeats: int = 5) -> float:
    """Seconds to decode `count` pictures, the best of `repeats`."""
    side = model.config.sample_size * image_tokenizer.block_size(model) // image_tokenizer.downsampling(model)
    tokens = torch.randint(model.config.num_vq_embeddings, (count, side, side), device=model.device)
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        image_tokenizer.decode(model, tokens).cpu()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def sheet(originals: torch.Tensor, decoded: torch.Tensor, columns: int) -> torch.Tensor:
    """[n, 3, H, W] each, n a multiple of columns -> [1, 3, rows * H, 2 * columns * W]: each original beside its
    reconstruction."""
    pairs = torch.stack([originals, decoded], 1)  # [n, 2, 3, H, W]
    cells = pairs.unflatten(0, (-1, columns)).flatten(1, 2)  # [rows, 2 * columns, 3, H, W]
    return cells.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)[None]


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate an image tokenizer on held-out pictures: a JSON and a picture.")
    parser.add_argument("--image-tokenizer", type=Path, default=Path("runs/image_tokenizer/image_tokenizer"))
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, help="JSON, a .png beside it (evaluation.json beside the model)")
    parser.add_argument("--pictures", type=int, default=100, help="of each kind (%(default)s)")
    args = parser.parse_args()

    model = VQModel.from_pretrained(args.image_tokenizer).float().eval()
    size = model.config.sample_size * image_tokenizer.block_size(model)
    try:
        dataset = open_from(args, size)
        held_out = {kind: some_held_out(dataset, kind, args.pictures) for kind in dataset.held_out_kinds}
    except InputError as error:
        raise SystemExit(str(error)) from None
    network = PerceptualNetwork()
    result, shown = {"image_size": size, "threads": torch.get_num_threads()}, []
    for kind, items in held_out.items():
        images = [image for image, _ in items]
        result[kind], decoded = figures(model, network, images)
        shown.append((image_tokenizer.to_pixels(images)[:12], decoded[:12].cpu()))
    result["decode_16_seconds"] = decode_seconds(model)
    decoder.quicken(model)
    result["decode_16_seconds_quickened"] = decode_seconds(model)
    out = args.out or args.image_tokenizer / "evaluation.json"
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    originals, decoded = (torch.cat(part) for part in zip(*shown))
    picture = image_tokenizer.to_images(sheet(originals, decoded, 4))[0].quantize(256)  # half the size of a file
    picture.save(out.with_suffix(".png"), optimize=True)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
