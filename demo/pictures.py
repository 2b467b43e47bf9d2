"""Pictures as the page shows them."""

import base64
import io

from PIL import Image

from dalle_core.studio.pool import MAX_POOL, Picture

RANKED, SAMPLED = "Best first", "Generation order"
CLIP_SCORE = (
    "CLIP score: how well the picture fits the prompt, as CLIP judges, a model that compares pictures with words. Higher is "
    "better; compare it between pictures of one prompt."
)


def preview_grid(images: list[Image.Image]) -> str:
    """Unfinished pictures as HTML that holds them all: a file and a request for each would slow the drawing down."""
    cells = (f'<img alt="" decoding="sync" src="{data_uri(image)}">' for image in images)
    return f'<div class="preview-grid">{"".join(cells)}</div>'


def data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def label(picture: Picture) -> str:
    """The caption of a candidate; in a pool of several seeds it names the seed."""
    one = picture.drawn
    seed = f" · seed {one.seed}" if picture.several else ""
    if one.score is None:
        return f"{one.index + 1}{seed}"
    return f"#{picture.rank} · {one.score:.3f}{seed}"


def in_order(pool: list[Picture], order: str, best: int = MAX_POOL, rejected: bool = False) -> list[Picture]:
    """The `best` candidates by rank, or with `rejected` the others, in the order that is asked for."""
    shown = [picture for picture in pool if (picture.rank > best) == bool(rejected)]
    return shown if order == RANKED else sorted(shown, key=lambda picture: (picture.drawn.seed, picture.drawn.index))


def gallery_items(
    pool: list[Picture], order: str = RANKED, best: int = MAX_POOL, rejected: bool = False
) -> list[tuple[str, str]]:
    return [(picture.path, label(picture)) for picture in in_order(pool, order, best, rejected)]
