"""Endpoints for programs, which are an assistant's tools (MCP) as well: typed values in, data out, pictures as addresses.

An endpoint has the name of its method; its description, and those of its arguments, are read from the docstring.
"""

import base64
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal, TypedDict, get_args, get_origin
from urllib.parse import unquote

import gradio as gr
from gradio.data_classes import FileData
from gradio.route_utils import get_api_call_path, get_root_url
from gradio_client.utils import encode_file_path, is_http_url_like, python_type_to_json_schema

from dalle_core import InputError
from dalle_core.compare import AXES, axis, best
from dalle_core.pictures import png, psnr
from dalle_core.pipeline import QUESTION
from dalle_core.prompts import rows_of
from dalle_core.request import SETTINGS, DrawingRequest, number, text
from dalle_core.studio.fetch import fetched
from dalle_core.studio.grid import Grid
from dalle_core.studio.pool import Picture
from dalle_core.studio.studio import UPDATE_EVERY, Studio, Update
from demo.pictures import data_uri
from demo.public import visitor

MAX_LIST = 2000  # labels or prompts


class Candidate(TypedDict):
    url: str  # of a PNG in the model's own size, which holds its recipe
    score: float | None  # CLIP's cosine with the prompt
    seed: int
    index: int  # in the order of sampling
    tokens: list[list[int]]


class Settings(TypedDict):
    prompt: str
    negative_prompt: str
    num_candidates: int
    seed: int
    temperature: float
    top_k: int
    top_p: float
    guidance_scale: float
    model: str
    revision: str


class Drawing(TypedDict):
    """An event of a drawing; each has all of these."""

    status: Literal["drawing", "done"]
    index: int  # tokens drawn
    total: int  # tokens to draw
    seconds_left: float | None  # None: not known yet
    previews: list[str]  # unfinished pictures as data URIs
    candidates: list[Candidate]  # when done: best first
    settings: Settings | None  # when done: what it was drawn with
    unread: dict[str, str]  # "prompt", "negative prompt", "prompt, for CLIP" -> its end, where less is read than was given
    unknown: dict[str, list[str]]  # words of the prompt that the model does not know -> the nearest ones that it does


class Reconstruction(TypedDict):
    url: str
    tokens: list[list[int]]
    psnr: float  # dB


class Decoded(TypedDict):
    url: str


class Recognised(TypedDict):
    label: str
    score: float  # CLIP's cosine with the picture
    probability: float  # CLIP's, among all the labels
    log_likelihood: float | None  # nats a token, of the picture's tokens given the label


class DataSet(TypedDict):
    """An event of a data set that is drawn; each has all of these."""

    status: Literal["drawing", "done"]
    drawn: int
    kept: int
    total: int
    seconds_left: float | None
    seed: int
    url: str | None  # when done: of the zip; None: nothing was kept


class Cell(TypedDict):
    column: int
    row: int
    arguments: Settings
    url: str
    score: float | None
    index: int


class Comparison(TypedDict):
    """An event of an X/Y grid; each has all of these."""

    status: Literal["drawing", "done"]
    total: int  # cells
    seconds_left: float | None
    cells: list[Cell]  # so far
    best: list[int] | None  # column and row of the cell with the highest score
    url: str | None  # when done: of the whole grid as one labelled picture


class Model(TypedDict):
    name: str
    revision: str
    state: Literal["ready", "loading", "failed"]
    licence: str
    image_size: int
    grid_size: int
    codebook_size: int
    limits: dict[str, list[float]]
    defaults: dict[str, float]
    examples: list[str]
    labels: list[str]


class Endpoints:
    """Its public methods are the endpoints."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def generate(
        self,
        request: gr.Request,
        prompt: str,
        negative_prompt: str = "",
        num_candidates: int | None = None,
        seed: int | str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        preview_every: int = 0,
    ) -> Iterator[Drawing]:
        """Draws pictures of a prompt and ranks them by how well CLIP finds that they fit, best first. Streams progress; the
        last event has status "done", the candidates with the addresses of their PNGs, and the settings that were used. The
        tool `model` tells what the model can draw, its defaults and its limits.

        Args:
            prompt: What to draw, such as "a red fox".
            negative_prompt: What the pictures should not show; it needs a guidance_scale other than 1.
            num_candidates: How many pictures to draw. Default: the model's own.
            seed: From 0 to 2**63 - 1, as a number or as digits. The same seed and settings draw the same. Default: a new one.
            temperature: From 0 (always the likeliest token) to 100; higher is more varied. Default: the model's own.
            top_k: Draw only from this many of the likeliest tokens; 0: from all. Default: the model's own.
            top_p: Draw only from the likeliest tokens that make up this share, above 0 to 1 (all). Default: the model's own.
            guidance_scale: How closely to follow the prompt, 0 to 100; 1 is unguided. Default: the model's own.
            preview_every: Show unfinished pictures each time this many tokens are drawn; 0: never.
        """
        asked = DrawingRequest(prompt, negative_prompt, num_candidates, seed, temperature, top_k, top_p, guidance_scale)
        yield from self._drawing(request, asked, preview_every)

    def complete(
        self,
        request: gr.Request,
        prompt: str,
        picture: FileData = None,
        tokens: list[list[int]] | None = None,
        rows: int | None = None,
        keep: list[list[bool]] | None = None,
        negative_prompt: str = "",
        num_candidates: int | None = None,
        seed: int | str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        preview_every: int = 0,
    ) -> Iterator[Drawing]:
        """Keeps a part of a picture and draws the rest anew, by a prompt. Needs a picture or its tokens, and rows or keep.
        Streams the same events as `generate`.

        Args:
            prompt: What the whole picture shall show.
            picture: The picture; its centred square is used. A PNG that was drawn here has its own tokens.
            tokens: In place of a picture: its tokens, as rows of whole numbers, such as a candidate has.
            rows: How many rows of tokens are kept, from the top.
            keep: In place of rows: for each token whether it is kept, as rows of true and false.
            negative_prompt: What the pictures should not show; it needs a guidance_scale other than 1.
            num_candidates: How many pictures to draw. Default: the model's own.
            seed: From 0 to 2**63 - 1, as a number or as digits. The same seed and settings draw the same. Default: a new one.
            temperature: From 0 (always the likeliest token) to 100; higher is more varied. Default: the model's own.
            top_k: Draw only from this many of the likeliest tokens; 0: from all. Default: the model's own.
            top_p: Draw only from the likeliest tokens that make up this share, above 0 to 1 (all). Default: the model's own.
            guidance_scale: How closely to follow the prompt, 0 to 100; 1 is unguided. Default: the model's own.
            preview_every: Show unfinished pictures each time this many tokens are drawn; 0: never.
        """
        if (picture is None) == (tokens is None):
            raise InputError("Give a picture or its tokens: one of them.")
        if (rows is None) == (keep is None):
            raise InputError("Give rows or keep: one of them says which part of the picture stays.")
        limits = self.studio.holder.loaded.limits
        if keep is None:
            first = number("rows", rows, limits)
            keep = [[row < first] * limits.grid_size for row in range(limits.grid_size)]
        if tokens is None:
            tokens = self.studio.tokens_of(visitor(request), self._file(request, picture))
        asked = DrawingRequest(
            prompt, negative_prompt, num_candidates, seed, temperature, top_k, top_p, guidance_scale, tokens, keep
        )
        yield from self._drawing(request, asked, preview_every)

    def reconstruct(self, request: gr.Request, picture: FileData) -> Reconstruction:
        """Turns a picture into tokens and back: what the model can see of it. Answers with the address of the result, the
        tokens (rows of whole numbers) and the PSNR in dB, by which the result differs from the picture's centred square.

        Args:
            picture: The picture.
        """
        caller, path = visitor(request), self._file(request, picture)
        square = self.studio.square(path)
        tokens = self.studio.encode(caller, square)
        decoded = self.studio.decode(caller, tokens)
        file = self.studio.store.write(caller, "reconstruction.png", png(decoded, None))
        return shown(request, {"url": address(request, file), "tokens": tokens, "psnr": psnr(square, decoded)})

    def decode(self, request: gr.Request, tokens: list[list[int]]) -> Decoded:
        """The picture that tokens stand for. Answers with the address of its PNG.

        Args:
            tokens: Rows of whole numbers, as a candidate of `generate` has them.
        """
        caller = visitor(request)
        decoded = self.studio.decode(caller, tokens)
        file = self.studio.store.write(caller, "decoded.png", png(decoded, None))
        return shown(request, {"url": address(request, file)})

    def recognise(self, request: gr.Request, picture: FileData, labels: list[str] | None = None) -> list[Recognised]:
        """Says what a picture shows: each label's CLIP score and probability, most likely first, and for the first dozen
        how likely the picture is to the model that draws, given the label.

        Args:
            picture: The picture.
            labels: What it might show, such as ["a fox", "two apples"]. Default: all that the model knows by name.
        """
        names = None if labels is None else texts("labels", labels)
        found = self.studio.recognise(visitor(request), self._file(request, picture), names)
        return shown(
            request,
            [
                {"label": one.text, "score": one.score, "probability": one.probability, "log_likelihood": one.log_likelihood}
                for one in found
            ],
        )

    def describe(self, request: gr.Request, picture: FileData, question: str = QUESTION) -> Iterator[str]:
        """Answers a question about a picture in words, if the model that is loaded can. Streams the answer as far as it is
        written; the last event is the whole of it.

        Args:
            picture: The picture.
            question: What is asked, in English or Chinese.
        """
        with closing(self.studio.describe(visitor(request), self._file(request, picture), question)) as answers:
            for answer in answers:
                yield shown(request, answer)

    def compare(
        self,
        request: gr.Request,
        prompt: str,
        x: Literal[tuple(AXES)],
        x_values: list,
        y: Literal[tuple(AXES)] | None = None,
        y_values: list | None = None,
        negative_prompt: str = "",
        num_candidates: int | None = None,
        seed: int | str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
    ) -> Iterator[Comparison]:
        """Draws an X/Y grid: one prompt with one or two things varied, each cell the best of its candidates by CLIP. Streams
        progress; the last event has status "done", all cells, and the address of the grid as one labelled picture.

        Args:
            prompt: What to draw, such as "a red fox".
            x: What the columns vary.
            x_values: Its values, one a column. Of "prompt": words; the first of them stands in the prompt and is replaced.
            y: What the rows vary. Default: nothing, so that there is one row.
            y_values: Its values, one a row.
            negative_prompt: What the pictures should not show; it needs a guidance_scale other than 1.
            num_candidates: How many pictures to draw for each cell. Default: the model's own.
            seed: From 0 to 2**63 - 1, as a number or as digits; the same for all cells. Default: a new one.
            temperature: From 0 (always the likeliest token) to 100; higher is more varied. Default: the model's own.
            top_k: Draw only from this many of the likeliest tokens; 0: from all. Default: the model's own.
            top_p: Draw only from the likeliest tokens that make up this share, above 0 to 1 (all). Default: the model's own.
            guidance_scale: How closely to follow the prompt, 0 to 100; 1 is unguided. Default: the model's own.
        """
        limits, caller, finished = self.studio.holder.loaded.limits, visitor(request), 0
        asked = DrawingRequest(prompt, negative_prompt, num_candidates, seed, temperature, top_k, top_p, guidance_scale)
        across, below = (axis(name, values, limits) for name, values in ((x, x_values), (y, y_values)))
        with closing(self.studio.compare(caller, across, below, asked)) as updates:
            for update in updates:
                finished += update.finished
                left = round(update.elapsed / finished * (update.total - finished), 1) if finished else None
                found = {"status": "drawing", "total": update.total, "seconds_left": left, **grid(request, update.grid)}
                yield shown(request, found)
        url = address(request, self.studio.download_sheet(caller, update.grid))
        yield shown(request, found | {"status": "done", "url": url})

    def augment(
        self,
        request: gr.Request,
        prompts: list[str],
        count: int = 4,
        threshold: float | None = None,
        seed: int | str | None = None,
    ) -> Iterator[DataSet]:
        """Draws a data set to train on: several pictures of each prompt, those kept that fit it. Streams progress; the last
        event has status "done" and the address of a zip of PNGs with a metadata.jsonl (the "imagefolder" convention).

        Args:
            prompts: What to draw, such as ["a red fox", "two apples"].
            count: How many pictures to draw of each prompt.
            threshold: The least CLIP score of a picture that is kept, from -1 to 1. Default: all are kept.
            seed: Of the whole set, from 0 to 2**63 - 1, as a number or as digits. Default: a new one.
        """
        limits, started = self.studio.holder.loaded.limits, time.monotonic()
        rows = rows_of(texts("prompts", prompts), number("count", count, limits))
        least = None if threshold is None else number("threshold", threshold, limits)
        base = secrets.randbelow(2**32) if seed is None else number("seed", seed, limits)
        shown_at = started - UPDATE_EVERY
        with closing(self.studio.augment(visitor(request), rows, base, least)) as steps:
            for progress, folder in steps:
                event = {"status": "drawing", "drawn": progress.drawn, "kept": progress.kept, "total": progress.total}
                now, share = time.monotonic(), (progress.drawn + progress.part) / progress.total
                if now - shown_at > UPDATE_EVERY:
                    shown_at = now
                    left = round((now - started) * (1 / share - 1), 1) if share else None
                    yield shown(request, event | {"seconds_left": left, "seed": base, "url": None})
        zipped, kept = self.studio.zip_data_set(folder, base)
        url = address(request, zipped) if kept else None
        yield shown(request, event | {"status": "done", "seconds_left": 0.0, "seed": base, "url": url})

    def model(self, request: gr.Request) -> Model:
        """What is known of the model that draws: its name, revision and licence, the size of its pictures (pixels a side)
        and of their grid of tokens, the lowest and highest value of each argument, its defaults, prompts that it draws
        well, and the labels that it knows by name."""
        holder, loaded = self.studio.holder, self.studio.holder.loaded
        names = (*SETTINGS, "seed", "preview_every", "rows", "count", "threshold")
        return shown(
            request,
            {
                "name": loaded.name,
                "revision": loaded.revision,
                "state": holder.state,
                "licence": loaded.licence,
                "image_size": loaded.image_size,
                "grid_size": loaded.limits.grid_size,
                "codebook_size": loaded.limits.codebook_size,
                "limits": {name: list(loaded.limits.range(name)) for name in names},
                "defaults": loaded.defaults,
                "examples": loaded.examples,
                "labels": loaded.labels,
            },
        )

    def _drawing(self, request: gr.Request, asked: DrawingRequest, preview_every: int) -> Iterator[Drawing]:
        unread, unknown = {}, {}
        with closing(self.studio.draw(visitor(request), asked, preview_every=preview_every)) as updates:
            for update in updates:
                unread |= {which: rest for which, _, rest in update.cut}
                unknown |= dict(update.unknown)
                yield shown(request, drawing(request, update) | {"unread": unread, "unknown": unknown})

    def _file(self, request: gr.Request, picture: FileData) -> str:
        """The path of a picture: as it came, for the studio to judge; of one of ours; of what a data: URL holds; or of what is
        fetched from the web. Raises InputError."""
        path = picture.get("path") if isinstance(picture, dict) else picture
        if not isinstance(path, str):
            raise InputError("A picture must be a file that was uploaded, or the address of one.")
        ours, caller, budgets = address(request, ""), visitor(request), self.studio.budgets
        if path.startswith(ours):
            return unquote(path[len(ours) :])
        if path.startswith("data:"):
            content = inline(path)
        elif is_http_url_like(path):
            with budgets.running(caller):  # an address that is slow to answer holds a place of the queue
                content = fetched(path)
        else:
            return path
        budgets.spend(caller, upload_bytes=len(content))
        return str(self.studio.store.write(caller, "picture", content))


def build(studio: Studio, together: int) -> None:
    """Adds the endpoints to the page that is being built; what computes is among the drawings that go on at once."""
    endpoints = Endpoints(studio)
    computing = (
        endpoints.generate,
        endpoints.complete,
        endpoints.reconstruct,
        endpoints.decode,
        endpoints.recognise,
        endpoints.describe,
        endpoints.compare,
        endpoints.augment,
    )
    for method in computing:
        _add(method, concurrency_id="sampling", concurrency_limit=together)
    _add(endpoints.model, concurrency_limit=together)


def _add(method, **limits) -> None:
    index = gr.api(method, **limits)["id"]
    added = gr.context.Context.root_block.fns[index]
    for component in added.inputs:
        component.async_move_resource_to_block_cache = _as_it_is
        component._api_info.pop("required", None)  # of a file's fields, which MCP would leave on what it calls a string
    returned = method.__annotations__["return"]
    if get_origin(returned) is Iterator:
        returned = get_args(returned)[0]
    added.outputs[0]._api_info = python_type_to_json_schema(returned)


async def _as_it_is(path: str) -> str:
    """In place of a component's own, which would download any address in any argument, however large."""
    return path


def drawing(request: gr.Request, update: Update) -> dict:
    """What a `Drawing` has of an update; the rest is `unread` and `unknown`."""
    found = {
        "status": "drawing",
        "index": update.index,
        "total": update.total,
        "seconds_left": None,
        "previews": [data_uri(image) for image in update.previews or ()],
        "candidates": [],
        "settings": None,
    }
    if update.index:
        found["seconds_left"] = round(update.elapsed / update.index * (update.total - update.index), 1)
    if update.pictures is not None:
        found["status"] = "done"
        found["candidates"] = [
            {
                "url": address(request, picture.path),
                "score": one.score,
                "seed": one.seed,
                "index": one.index,
                "tokens": one.tokens.tolist(),
            }
            for picture in update.pictures
            for one in [picture.drawn]
        ]
        found["settings"] = settings(update.pictures[0])
    return found


def grid(request: gr.Request, drawn: Grid) -> dict:
    """What a `Comparison` has of a grid."""
    cells = [
        {
            "column": column,
            "row": row,
            "arguments": settings(picture),
            "url": address(request, picture.path),
            "score": picture.drawn.score,
            "index": picture.drawn.index,
        }
        for (column, row), picture in sorted(drawn.pictures.items(), key=lambda item: item[0][::-1])
    ]
    winner = best(drawn.scores)
    return {"cells": cells, "best": winner and list(winner), "url": None}


def settings(picture: Picture) -> dict:
    """What a picture was drawn with, as `Settings`."""
    used = picture.drawn.request
    return {
        "prompt": used.prompt,
        "negative_prompt": used.negative_prompt,
        **used.settings,
        "seed": picture.drawn.seed,
        "model": used.model,
        "revision": used.revision,
    }


def inline(url: str) -> bytes:
    """What a data: URL holds. Raises InputError."""
    try:
        return base64.b64decode(url.partition(";base64,")[2], validate=True)
    except ValueError:
        raise InputError("This data: URL is damaged: after “;base64,” it holds something else.") from None


def address(request: gr.Request, path: str | Path) -> str:
    """The absolute address of a file, by the way that the caller took to this page."""
    http = request.request
    root = get_root_url(http, get_api_call_path(http), http.app.root_path)
    return f"{root}/gradio_api/file={encode_file_path(str(path))}"


def texts(name: str, values) -> list[str]:
    """The values, if they are a list of texts. Raises InputError."""
    if not isinstance(values, list):
        raise InputError(f"{name} must be a list of texts.")
    if len(values) > MAX_LIST:
        raise InputError(f"{name} has {len(values):,} texts; {MAX_LIST:,} are the most.")
    return [text(f"Each of the {name}", value) for value in values]


def shown(request: gr.Request, value):
    """The value; to an assistant, the value as JSON: MCP would show it as Python writes it. Only MCP asks in this way."""
    return json.dumps(value) if "text/event-stream" in request.headers.get("accept", "") else value
