"""`Studio`: what the page, its endpoints and its MCP tools ask for, each with a visitor's name.

Every method checks what it is given, holds the model, keeps to the visitor's budget and puts files into the store. What it
raises is an InputError or a ModelError whose text is for the visitor; what nobody expected is in the log.
"""

import errno
import inspect
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_core import image_tokenizer
from dalle_core.augment import Progress, augment, cut_prompts, names_in
from dalle_core.augment import archive as zip_data_set
from dalle_core.compare import Axis, Cell, plan
from dalle_core.errors import InputError, ModelError
from dalle_core.pictures import enlarge, png, save_png
from dalle_core.pipeline import QUESTION, Label
from dalle_core.prompts import Row
from dalle_core.recipe import Drawn, drawn, read_recipe
from dalle_core.request import DrawingRequest, number, text
from dalle_core.studio.budgets import Budgets
from dalle_core.studio.grid import Grid
from dalle_core.studio.holder import ModelHolder
from dalle_core.studio.pool import Picture, archive, ranked, read_entry
from dalle_core.studio.store import Store
from dalle_core.studio.uploads import checked, open_picture
from dalle_core.vocabulary import MAX_UNKNOWN

UPDATE_EVERY = 0.5  # seconds between two updates without a preview; each takes cores from the drawing
MAX_LABELS = 2000
MAX_PROMPTS, MAX_PICTURES = 200, 1000  # of a data set in one go; the command has no such bounds
ANY_TOP_K = 10**6  # where it is another model's codebook that bounds it
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """How far a drawing is. What is None did not change."""

    line: str = ""  # what goes on before the first token: a model is loaded
    index: int = 0  # tokens drawn, of `total`
    total: int = 0
    elapsed: float = 0.0  # seconds
    seed: int | None = None  # on the first update after the prompt was read, and on the last
    cut: tuple = ()  # (which prompt, what the model reads, what it does not), where something was cut
    unknown: tuple = ()  # (a word of the prompt that the model does not know, the nearest ones that it does)
    previews: list[Image.Image] | None = None
    pictures: list[Picture] | None = None  # on the last one, best first


@dataclass(frozen=True)
class GridUpdate:
    """How far an X/Y grid is."""

    grid: Grid
    total: int  # cells
    elapsed: float  # seconds
    seed: int | None  # of all cells; None: they have their own
    line: str = ""  # what goes on besides: a model is loaded
    finished: bool = False  # whether a cell has just been finished


@contextmanager
def sentences(what: str):
    """Turns what nobody expected into an InputError with a sentence; the log has the traceback."""
    try:
        yield
    except (InputError, ModelError):
        raise
    except OSError as error:
        log.exception("%s failed", what)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError("The server's disk is full. Try again later.") from None
        raise InputError("The server could not write or read its files; its log says why. Try again later.") from None
    except Exception:
        log.exception("%s failed", what)
        raise InputError(f"{what} failed. The server's log says why; try again.") from None


class Studio:
    """One for a page. on_gpu(function): a ZeroGPU Space lends a GPU to what it wraps, elsewhere it returns the function."""

    def __init__(self, holder: ModelHolder, store: Store, budgets: Budgets | None = None, on_gpu: Callable = lambda f: f):
        self.holder, self.store, self.budgets = holder, store, budgets or Budgets()
        self._computing = on_gpu(self._compute_here)

    # ------------------------------------------------------------ drawing

    def draw(
        self, visitor: str, request: DrawingRequest, source: str | None = None, preview_every: int = 0, save_recipe: bool = True
    ) -> Iterator[Update]:
        """Streams one drawing with the model `source` (None: the one that is loaded). Closing it stops the work."""
        started = shown_at = time.monotonic()
        with sentences("Drawing"):
            if source is not None and source != self.holder.source:  # another visitor may have changed it
                for line in self.holder.use(source):
                    yield Update(line=line)
            with self.holder.hold(source) as pipe:
                request = request.checked(pipe.limits, pipe.defaults)
                preview_every = number("preview_every", preview_every, pipe.limits)
                seed = secrets.randbelow(2**32) if request.seed is None else request.seed
                cut, unknown = cuts(pipe, request), tuple(pipe.unknown_words(request.prompt))
                previews = pipe.grid_size**2 // preview_every if preview_every else 0
                self.budgets.spend(visitor, candidates=request.num_candidates, previews=previews * request.num_candidates)
                with self.budgets.running(visitor) as clock:
                    steps = self._compute("stream", **arguments(request, seed), preview_every=preview_every)
                    with closing(steps):
                        yield Update(seed=seed, cut=cut, unknown=unknown)
                        for step in steps:
                            clock.check()
                            if step.generation is not None:
                                break
                            now = time.monotonic()
                            if step.previews is not None or now - shown_at > UPDATE_EVERY:
                                shown_at = now
                                yield Update("", step.index, step.total, now - started, None, cut, unknown, step.previews)
                found = drawn(step.generation, pipe.name, pipe.revision, request.varied)
                images = [candidate.image for candidate in step.generation.candidates]
                pictures = self._save(visitor, found, images, save_recipe)
        yield Update("", step.total, step.total, time.monotonic() - started, seed, cut, unknown, pictures=ranked(pictures))

    def draw_again(
        self, visitor: str, entry: str, source: str | None = None, save_recipe: bool = True
    ) -> Iterator[tuple[int, list[Picture]]]:
        """An entry of the history, decoded from its tokens: yields (how many there are, the pictures so far), the whole ranked
        pool last."""
        with sentences("Opening it"), self.holder.hold(source) as pipe:
            entry_id, found = read_entry(entry, pipe.name, pipe.revision, pipe.limits)
            self.budgets.spend(visitor, candidates=len(found))
            pictures = []
            with self.budgets.running(visitor) as clock:
                for one in found:
                    clock.check()
                    image = self._decode(one.tokens)
                    pictures += self._save(visitor, [one], [image], save_recipe)
                    if len(pictures) < len(found):
                        yield len(found), pictures
            yield len(found), ranked([replace(picture, pool=entry_id) for picture in pictures])

    def open_saved(self, visitor: str, path: str | None) -> Picture:
        """A PNG that was saved here: its picture, drawn again from its tokens. Raises InputError as `recipe.read_recipe`."""
        with sentences("Opening it"), self.holder.hold() as pipe:
            found = self._recipe(pipe, open_picture(self.file(path)))
            self.budgets.spend(visitor, candidates=1)
            [picture] = ranked(self._save(visitor, [found], [self._decode(found.tokens)], True))
            return picture

    def tile(self, visitor: str, picture: Picture) -> tuple[Image.Image, Path]:
        """(the seamless tile of a picture, as a file too). The file has no recipe: dropped on the page, it would come back as
        the picture and not as the tile."""
        with sentences("The tile"), self.holder.hold():
            self.check_model(picture)
            self.budgets.spend(visitor, candidates=1)
            [tile] = self._compute("tile", picture.drawn.tokens)
            tile, folder = enlarge(tile), self.store.folder(visitor)
            path = folder / picture.file_name().replace(".png", "_tile.png")
            tile.save(path)
            return tile, path

    def compare(self, visitor: str, x: Axis, y: Axis, request: DrawingRequest) -> Iterator[GridUpdate]:
        """Streams an X/Y grid of a request: each cell is the best of its candidates by CLIP; where neither the request nor an
        axis names a seed, all cells share a new one. Closing it stops the work."""
        started = time.monotonic()
        with sentences("Drawing"):
            if request.seed is None and "seed" not in (x.name, y.name):
                request = replace(request, seed=secrets.randbelow(2**32))
            cells, candidates = self._checked_cells(plan(x, y, request))
            self.budgets.spend(visitor, candidates=candidates)
            seed = None if "seed" in (x.name, y.name) else request.seed
            grid, folder = Grid(x, y, {}), self.store.folder(visitor)

            def update(**changes) -> GridUpdate:
                return GridUpdate(grid, len(cells), time.monotonic() - started, seed, **changes)

            with self.store.hold(folder), self.budgets.running(visitor) as clock:
                for cell in cells:
                    yield update()
                    if cell.source != self.holder.source:
                        for line in self.holder.use(cell.source):
                            yield update(line=line)
                    with closing(self._draw_cell(visitor, cell, folder)) as steps:
                        for picture in steps:
                            clock.check()
                            if picture is None:
                                yield update()  # a place to stop
                    grid = grid.and_(cell, picture)
                    yield update(finished=True)

    def check_model(self, picture: Picture) -> None:
        """Raises InputError when the picture was drawn by another model than the one that is loaded."""
        request = picture.drawn.request
        if (request.model, request.revision) != (self.holder.loaded.name, self.holder.loaded.revision):
            raise InputError(f"This picture was drawn by the model {request.model!r}; choose that model first.")

    # ------------------------------------------------------------ files, made when they are asked for

    def download(self, visitor: str, picture: Picture | None, save_recipe: bool = True) -> Path:
        """The picture as a PNG for people: enlarged, with its recipe if that is wanted."""
        with sentences("The download"):
            if picture is None:
                raise InputError("Choose a picture first.")
            return self.store.write(visitor, picture.file_name(), picture.enlarged(save_recipe))

    def download_all(self, visitor: str, pictures: list[Picture], save_recipe: bool = True) -> Path:
        """A zip of a pool."""
        with sentences("The download"):
            if not pictures:
                raise InputError("Draw something first.")
            folder = self.store.folder(visitor)
            path = folder / pictures[0].file_name(len(pictures)).replace(".png", ".zip")
            with self.store.hold(folder):
                archive(pictures, path, save_recipe)
            return path

    def download_sheet(self, visitor: str, grid: Grid | None) -> Path:
        """A grid as one labelled PNG."""
        with sentences("The download"):
            return self.store.write(visitor, "grid.png", png(_drawn(grid).sheet(), None))

    def download_json(self, visitor: str, grid: Grid | None) -> Path:
        """What each cell of a grid was drawn from."""
        with sentences("The download"):
            return self.store.write(visitor, "grid.json", _drawn(grid).to_json().encode())

    # ------------------------------------------------------------ pictures in

    def file(self, path: str | None) -> Path:
        """A file that a visitor hands in: an upload, or one of the store's own. Raises InputError for any other."""
        return checked(path, self.store.root, *self.store.also)

    def square(self, path: str | None) -> Image.Image:
        """What the image tokenizer sees of an uploaded picture: a centred square in the model's size."""
        with sentences("Reading the picture"), self.holder.hold() as pipe:
            return pipe.square(open_picture(self.file(path)))

    def encode(self, visitor: str, image: Image.Image) -> list[list[int]]:
        """A picture's tokens [grid][grid], by the image tokenizer."""
        with sentences("Reading the picture"), self.holder.hold():
            self.budgets.spend(visitor, candidates=1)
            [tokens] = self._compute("encode", image)
            return tokens.tolist()

    def decode(self, visitor: str, tokens) -> Image.Image:
        """The picture of tokens [grid, grid]. Raises InputError for other shapes or numbers."""
        with sentences("Drawing"), self.holder.hold():
            self.budgets.spend(visitor, candidates=1)
            return self._decode(tokens)

    def tokens_of(self, visitor: str, path: str | None) -> list[list[int]]:
        """A picture's tokens: those it was drawn from, when its recipe names them and nobody has changed it since; else what
        the image tokenizer makes of it, which comes close."""
        image = open_picture(self.file(path))
        with sentences("Reading the picture"), self.holder.hold() as pipe:
            self.budgets.spend(visitor, candidates=1)
            try:
                tokens = self._recipe(pipe, image).tokens
                drawn, given = enlarge(self._decode(tokens)), enlarge(image_tokenizer.flat(image))
                # Another machine's decoder rounds a little differently.
                if drawn.size == given.size and abs(np.asarray(drawn, np.int16) - np.asarray(given, np.int16)).max() <= 8:
                    return tokens.tolist()
            except InputError:
                pass
            [tokens] = self._compute("encode", image)
            return tokens.tolist()

    def recognise(self, visitor: str, path: str | None, labels: list[str] | None = None) -> list[Label]:
        """What a picture shows, most likely first; labels None: all that the model knows by name."""
        with sentences("Recognising"), self.holder.hold():
            image = open_picture(self.file(path))
            if labels is not None and len(labels) > MAX_LABELS:
                raise InputError(f"These are {len(labels):,} labels; {MAX_LABELS:,} are the most.")
            self.budgets.spend(visitor, labels=len(labels or ()))
            with self.budgets.running(visitor):
                [found] = self._compute("recognise", image, labels)
            return found

    def describe(self, visitor: str, path: str | None, question: str) -> Iterator[str]:
        """Streams the answer to a question about a picture, the whole of it again each time. Closing it stops the work."""
        with sentences("Answering"), self.holder.hold():
            question = text("question", question or "").strip() or QUESTION
            image = open_picture(self.file(path))
            with self.budgets.running(visitor) as clock, closing(self._compute("describing", image, question)) as answers:
                for answer in answers:
                    clock.check()
                    yield answer

    # ------------------------------------------------------------ data sets

    def unknown_words(self, prompts: Iterable[str]) -> tuple[tuple[str, list[str]], ...]:
        """The first words of the prompts that the model does not know, each with the nearest ones that it does."""
        with sentences("Reading the prompts"), self.holder.hold() as pipe:
            found = {}
            for prompt in prompts:
                found |= dict(pipe.unknown_words(prompt))
                if len(found) >= MAX_UNKNOWN:
                    break
            return tuple(found.items())[:MAX_UNKNOWN]

    def cut_prompts(self, rows: list[Row]) -> int:
        """How many of the prompts are longer than the model reads."""
        with sentences("Reading the prompts"), self.holder.hold() as pipe:
            return cut_prompts(pipe, rows)

    def augment(
        self, visitor: str, rows: list[Row], seed: int, threshold: float | None = None
    ) -> Iterator[tuple[Progress, Path]]:
        """Draws a data set into a folder of the store: yields (progress, folder)."""
        total = data_set_size(rows)
        with sentences("Drawing"), self.holder.hold():
            self.budgets.spend(visitor, candidates=total)
            folder = self.store.folder(visitor)
            out = folder / "pictures"
            with self.store.hold(folder), self.budgets.running(visitor) as clock:
                try:
                    with closing(self._compute(augment, rows, out, seed, threshold)) as steps:
                        for progress in steps:
                            clock.check()
                            yield progress, out
                except InputError as error:
                    if isinstance(error.__cause__, OSError):
                        raise error.__cause__ from None  # the core's sentence is for a command: it names the folder
                    raise

    def kept(self, out: Path) -> int:
        """The pictures of a data set so far."""
        with sentences("The data set"), self.store.hold(out):
            return len(names_in(out))

    def zip_data_set(self, out: Path, seed: int) -> tuple[Path, int]:
        """(a zip of a data set as far as it has come, beside it; the number of its pictures)."""
        with sentences("The zip"), self.store.hold(out):
            path = out.parent / f"augmented_seed{seed}.zip"
            return path, zip_data_set(out, path)

    # ------------------------------------------------------------ inside

    def _compute(self, work: str | Callable, *args, **kwargs) -> Iterator:
        """What the loaded pipeline's method `work`, or the function `work` of a pipeline, yields; a single value is yielded
        once. The caller holds the model. On a ZeroGPU Space this runs in a process of its own, which knows the model since
        it was forked: arguments and values are pickled."""
        return self._computing(work, *args, **kwargs)

    def _compute_here(self, work, *args, **kwargs):
        pipe = self.holder.held()
        result = getattr(pipe, work)(*args, **kwargs) if isinstance(work, str) else work(pipe, *args, **kwargs)
        if not inspect.isgenerator(result):
            yield result
            return
        with closing(result):
            yield from result

    def _checked_cells(self, cells: list[Cell]) -> tuple[list[Cell], int]:
        """(the cells, each with its model; the candidates of all). Raises InputError or ModelError for what is known to fail
        before the first one is drawn."""
        with self.holder.hold() as pipe:
            cells, candidates = [replace(cell, source=cell.source or self.holder.source) for cell in cells], 0
            for cell in cells:
                self.holder.check(cell.source)
                here = cell.source == self.holder.source
                limits = pipe.limits if here else replace(pipe.limits, codebook_size=ANY_TOP_K)
                request = cell.request.checked(limits, pipe.defaults)
                if here:
                    pipe.stream(**arguments(request, 0)).close()
                candidates += request.num_candidates
            return cells, candidates

    def _draw_cell(self, visitor: str, cell: Cell, folder: Path) -> Iterator[Picture | None]:
        """Yields None now and then, and the best candidate last."""
        with self.holder.hold(cell.source) as pipe:
            request, shown_at = cell.request.checked(pipe.limits, pipe.defaults), time.monotonic()
            with closing(self._compute("stream", **arguments(request, request.seed))) as steps:
                for step in steps:
                    if time.monotonic() - shown_at > UPDATE_EVERY:
                        shown_at = time.monotonic()
                        yield None
            best = drawn(step.generation, pipe.name, pipe.revision)[:1]
            [picture] = self._save(visitor, best, [step.generation.candidates[0].image], True, folder)
        yield picture

    def _decode(self, tokens) -> Image.Image:
        [image] = self._compute("decode", tokens)
        return image

    def _recipe(self, pipe, image: Image.Image) -> Drawn:
        text = image.info.get("dalle")
        if not isinstance(text, str):
            raise InputError("This picture carries no recipe: only PNG files saved by this page do.")
        return read_recipe(text, pipe.name, pipe.revision, pipe.limits)

    def _save(
        self, visitor: str, found: list[Drawn], images: list[Image.Image], save_recipe: bool, folder: Path | None = None
    ) -> list[Picture]:
        """Every candidate as a PNG in the model's own size, in a folder of the store; None: a new one."""
        folder = folder or self.store.folder(visitor)

        def save(one: Drawn, image: Image.Image) -> Picture:
            return Picture(one, str(save_png(image, one.to_json(), folder, save_recipe)))

        with self.store.hold(folder), ThreadPoolExecutor() as threads:
            return list(threads.map(save, found, images))


def _drawn(grid: Grid | None) -> Grid:
    if grid is None or not grid.pictures:
        raise InputError("Draw something first.")
    return grid


def data_set_size(rows: list[Row]) -> int:
    """How many pictures the rows ask for. Raises InputError for none, and for more than a page should draw; the command has
    no such bounds."""
    total = sum(row.count for row in rows)
    if not rows:
        raise InputError("There are no prompts: give at least one.")
    if len(rows) > MAX_PROMPTS or total > MAX_PICTURES:
        raise InputError(
            f"Up to {MAX_PROMPTS} prompts and {MAX_PICTURES:,} pictures are drawn in one go. These are {len(rows):,} and "
            f"{total:,}. For more, use the command: python -m dalle_core augment prompts.csv pictures"
        )
    return total


def arguments(request: DrawingRequest, seed: int) -> dict:
    """A checked request as the arguments of `DallePipeline.stream`."""
    names = ("prompt", "negative_prompt", "image_tokens", "keep")
    return {name: getattr(request, name) for name in names} | request.settings | {"seed": seed}


def cuts(pipe, request: DrawingRequest) -> tuple:
    """(which prompt, what the model reads of it, what it does not) of each prompt that is too long; last, what CLIP does not
    read of it, which ranks."""
    found = [("prompt", *pipe.fit_prompt(request.prompt))]
    if request.negative_prompt.strip():
        try:
            found.append(("negative prompt", *pipe.fit_prompt(request.negative_prompt)))
        except InputError:  # the pipeline says it better
            pass
    found.append(("prompt, for CLIP", *pipe.fit_for_clip(request.prompt)))
    return tuple(cut for cut in found if cut[2])
