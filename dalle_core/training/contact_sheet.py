"""Contact sheets: pictures with their captions below them, to look at with one's own eyes.

`python -m dalle_core.training.contact_sheet` draws the best of 16 candidates for each of `plain_prompts.txt`: sixty prompts
as people type them, ten in Chinese, some about things that an emoji model does not know. They were written before the
model that they test had drawn anything, and stay as they are.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw
from tqdm import tqdm

import dalle_core
from dalle_core.compare import font
from dalle_core.training.drawing import add_drawing_arguments, draw_each

PLAIN_PROMPTS = Path(__file__).with_name("plain_prompts.txt")
SIDE = 144  # pixels of a picture on a sheet
LETTERS, LINES = 13, 3  # pixels high, of a caption


def lines(caption: str, width: int, letters) -> list[str]:
    """A caption in at most LINES lines of `width` pixels; what does not fit ends in an ellipsis."""
    found, rest = [], caption
    while rest and len(found) < LINES:
        end = len(rest)
        while end > 1 and letters.getlength(rest[:end]) > width:
            space = rest.rfind(" ", 0, end)
            end = space if space > 0 else end - 1
        found.append(rest[:end].strip())
        rest = rest[end:].strip()
    if rest:
        found[-1] = found[-1][:-1] + "…"
    return found


def captioned(strips: list[tuple[list[Image.Image], str]], across: int) -> Image.Image:
    """Strips of pictures, each strip with its caption below, `across` of them side by side. Letters that no font of the
    system has are drawn as boxes. Raises ValueError when there are none."""
    if not strips:
        raise ValueError("there are no pictures to show")
    letters, gap = font(LETTERS), 8
    width = max(len(images) for images, _ in strips) * SIDE
    height = SIDE + LINES * (LETTERS + 4) + gap
    rows = -(-len(strips) // across)
    page = Image.new("RGB", (min(across, len(strips)) * (width + gap), rows * height), "white")
    pen = ImageDraw.Draw(page)
    for number, (images, caption) in enumerate(strips):
        left, top = number % across * (width + gap), number // across * height
        for place, image in enumerate(images):
            page.paste(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left + place * SIDE, top))
        for line, words in enumerate(lines(caption, width, letters)):
            pen.text((left + 2, top + SIDE + 2 + line * (LETTERS + 4)), words, fill="black", font=letters)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the best candidate of each prompt of a file, on one sheet.")
    parser.add_argument("--model", default="emoji", help="a name, folder or Hub id (%(default)s)")
    parser.add_argument("--prompts", type=Path, default=PLAIN_PROMPTS, help="one a line (default: the sixty of this)")
    parser.add_argument("--candidates", type=int, default=16, help="of which the best is shown (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/plain_prompts.png"), help="(%(default)s)")
    add_drawing_arguments(parser)
    args = parser.parse_args()
    pipe = dalle_core.load(args.model)
    prompts = [line for line in args.prompts.read_text(encoding="utf-8").split("\n") if line.strip()]
    asked = ({"prompt": prompt, "num_candidates": args.candidates, "seed": args.seed} for prompt in prompts)
    drawn = draw_each(pipe, asked, args.at_once)
    strips = [([next(drawn).candidates[0].image], prompt) for prompt in tqdm(prompts, unit="prompt")]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    captioned(strips, 10).save(args.out)
    print(f"{args.out}: the best of {args.candidates} for each of {len(strips)} prompts")


if __name__ == "__main__":
    main()
