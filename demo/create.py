"""The Create tab: a prompt, a grid of candidates drawn before one's eyes, ranked by CLIP."""

import html
import logging
import secrets
import tempfile
from contextlib import closing
from pathlib import Path

import gradio as gr
import torch

from dalle_core import InputError, ModelError
from demo import run
from demo.models import Models
from demo.models import facts as model_facts
from demo.models import labelled
from demo.pictures import enlarge, save_png
from demo.run import MAX_PROMPT, label, parse_seed, said
from demo.uploads import read_recipe

RANKED, SAMPLED = "CLIP's order", "Order of sampling"
DICE = str(Path(__file__).parent / "dice.svg")
EMPTY = '<div class="empty">Your candidates appear here, best first.<br>Try one of the examples above.</div>'
log = logging.getLogger(__name__)


def facts(kept: dict) -> str:
    """What is known of the chosen candidate, as a table."""
    score = "–" if kept["score"] is None else f"{kept['score']:.3f}"
    rows = {"CLIP score": score, "rank": kept["rank"], "seed": kept["seed"], "number": kept["index"]}
    cells = "".join(f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def in_order(kept: list[dict], order: str, best: int) -> list[dict]:
    """The `best` candidates by rank, in the order that is asked for."""
    shown = [candidate for candidate in kept if candidate["rank"] <= best]
    return sorted(shown, key=lambda candidate: candidate["rank" if order == RANKED else "index"])


def gallery_items(kept: list[dict], order: str, best: int) -> list[tuple[str, str]]:
    return [(candidate["path"], label(candidate)) for candidate in in_order(kept, order, best)]


def half(seed: int, grid: int) -> torch.Tensor:
    """Which tokens a variation keeps [grid, grid]: every second one, at random."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    keep = torch.zeros(grid * grid, dtype=torch.bool)
    keep[torch.randperm(grid * grid, generator=generator)[: grid * grid // 2]] = True
    return keep.view(grid, grid)


def preview_every(pipe) -> int:
    """Tokens between previews: two rows, but never where a preview takes seconds."""
    large = sum(p.numel() for p in pipe.image_tokenizer.parameters()) > 20_000_000
    return 0 if large and pipe.device.type == "cpu" else 2 * pipe.grid_size


def build(models: Models, demo: gr.Blocks, together: int) -> None:
    """Adds the tab's components and events to the Blocks being built; `together` people may draw at once."""
    pipe = models.pipe  # as it is when the page is built; handlers ask `models`
    defaults = pipe.defaults
    kept = gr.State([])  # of the finished grid on show: dicts of path, rank, score, seed, index; best first
    path = gr.State(None)  # of the chosen picture
    drawn = gr.State("")  # the seed in the box when it was drawn at random, not typed

    with gr.Row(elem_id="prompt-row"):
        prompt = gr.Textbox(
            label="Prompt", show_label=False, placeholder="What shall be drawn?", elem_id="prompt", scale=8, lines=1,
            max_lines=1, autofocus=True, max_length=MAX_PROMPT,
        )  # fmt: skip
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=1, min_width=120)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=90, interactive=False)
    examples = gr.Dataset(
        components=[prompt], samples=[[text] for text in pipe.examples], type="values", elem_id="examples",
        show_label=False, layout="gallery", samples_per_page=24,
    )  # fmt: skip
    with gr.Row():
        candidates = gr.Slider(
            1, pipe.max_candidates, defaults["num_candidates"], step=1, label="Candidates", elem_id="candidates"
        )
        with gr.Row(elem_id="seed-row"):
            seed = gr.Textbox(
                label="Seed", value="", placeholder="new each time", elem_id="seed", min_width=120, max_lines=1, scale=3
            )
            dice = gr.Button("New seed", icon=DICE, elem_id="dice", min_width=110, scale=1)
            keep_seed = gr.Checkbox(False, label="Keep it", elem_id="keep-seed", min_width=100, scale=1)
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        with gr.Row(elem_id="model-row"):
            model = gr.Dropdown(
                labelled(models.choices), value=models.source, label="Model", elem_id="model", scale=1, min_width=200, filterable=False,
                interactive=len(models.choices) > 1,
            )  # fmt: skip
            about = gr.HTML(model_facts(models.source, pipe), elem_id="about-model")
        negative = gr.Textbox(
            label="Negative prompt", value="", info="What guidance leads away from; needs a guidance scale above 1.",
            elem_id="negative", max_lines=1, max_length=MAX_PROMPT,
        )  # fmt: skip
        with gr.Row():
            temperature = gr.Slider(0, 2, defaults["temperature"], step=0.05, label="Temperature", info="0 is greedy")
            top_k = gr.Slider(0, pipe.codebook_size, defaults["top_k"], step=1, label="Top-k", info="0 keeps all")
            top_p = gr.Slider(0.05, 1, defaults["top_p"], step=0.01, label="Top-p", info="1 keeps all")
            guidance = gr.Slider(
                0, 16, defaults["guidance_scale"], step=0.25, label="Guidance scale", info="1 is unguided"
            )
            every = gr.Slider(
                0, pipe.grid_size**2, preview_every(pipe), step=1, label="Preview every", info="tokens; 0 is never"
            )

    progress = gr.HTML("", elem_id="status")
    notice = gr.HTML("", elem_id="notice")
    with gr.Row():
        with gr.Column(scale=3):
            with gr.Row(elem_id="order-row"):
                order = gr.Radio(
                    [RANKED, SAMPLED], value=RANKED, show_label=False, label="Order", elem_id="order", container=False, scale=3
                )
                most = gr.Slider(
                    1, pipe.max_candidates, pipe.max_candidates, step=1, label="Show the best", elem_id="best", scale=2
                )
            empty = gr.HTML(EMPTY)
            gallery = gr.Gallery(
                columns=4, format="png", object_fit="contain", allow_preview=False, show_label=False, height="auto",
                label="Candidates", elem_id="gallery", elem_classes="ranked", visible=False, buttons=[],
            )  # fmt: skip
        with gr.Column(scale=2, min_width=300), gr.Column(visible=False, elem_id="detail") as detail:
            chosen = gr.Image(
                show_label=False, label="Chosen picture", elem_id="chosen", format="png", interactive=False,
                buttons=["fullscreen"], height="auto",
            )  # fmt: skip
            table = gr.HTML("", elem_id="facts")
            with gr.Row():
                download = gr.DownloadButton("Download PNG", variant="primary", elem_id="download")
                download_all = gr.DownloadButton("Download all", elem_id="download-all")
            with gr.Row():
                vary = gr.Button("Variations", elem_id="vary")
                to_complete = gr.Button("Complete it", elem_id="to-complete")
    with gr.Row(elem_id="open-row"):
        saved = gr.UploadButton("Open a picture that was saved here", file_types=[".png"], elem_id="open-saved", size="sm")

    inputs = [prompt, negative, candidates, seed, keep_seed, temperature, top_k, top_p, guidance, every, order, drawn, model,
              most]  # fmt: skip
    outputs = [gallery, kept, seed, progress, notice, empty, detail, chosen, table, download, download_all, stop, drawn, path]

    def draw(prompt, negative, candidates, seed, keep_seed, temperature, top_k, top_p, guidance, every, order, drawn, model,
             most=64, like=None):  # fmt: skip
        """Streams the grid of one prompt. Outputs: gallery, seed, status and details of the best candidate.

        like: the path of a saved picture, of which half the tokens are kept.
        """
        changes = {}

        def update(**values):
            """The values of `outputs`: what is named changes, the rest stays."""
            changes.update(values)
            names = ("gallery", "kept", "seed", "progress", "notice", "empty", "detail", "chosen", "table", "download",
                     "download_all", "stop", "drawn", "path")  # fmt: skip
            row = [changes.get(name, gr.skip()) for name in names]
            changes.clear()
            return row

        try:
            asked = parse_seed(seed, keep_seed, drawn)
            numbers = {"num_candidates": int(candidates), "top_k": int(top_k), "preview_every": int(every)}
            if like is not None:
                recipe = read_recipe(like, models.pipe)
                keep = half(recipe["seed"] if asked is None else asked, models.pipe.grid_size)
                numbers |= {"image_tokens": torch.tensor(recipe["tokens"]), "keep": keep}
        except (InputError, TypeError, ValueError) as error:
            raise run.sentence(error) from None
        with closing(run.draw(
            models, model, gallery.GRADIO_CACHE, prompt, asked, negative_prompt=(negative or "").strip()[:MAX_PROMPT],
            temperature=temperature, top_p=top_p, guidance_scale=guidance, **numbers,
        )) as steps:  # fmt: skip
            for step in steps:
                if step.seed is not None:
                    changes |= {"seed": str(step.seed), "notice": step.cut}
                    if asked is None:
                        changes["drawn"] = str(step.seed)
                if step.previews is not None:
                    grid = gr.update(value=[(enlarge(image), "") for image in step.previews], visible=True)
                    # From here on the grid before is gone: what is shown cannot be chosen yet.
                    changes |= {"gallery": grid, "kept": [], "empty": gr.update(visible=False)}
                    changes |= {"detail": gr.update(visible=False)}
                if step.items is None:
                    yield update(progress=step.line)
        items, best = step.items, step.items[0]
        yield update(
            notice=step.cut,  # again: a client of the endpoint reads only this last update
            gallery=gr.update(
                value=gallery_items(items, order, most), visible=True, elem_classes="ranked" if order == RANKED else []
            ),
            kept=items,
            progress=step.line,
            empty=gr.update(visible=False),
            detail=gr.update(visible=True),
            chosen=best["path"],
            path=best["path"],
            table=facts(best),
            download=best["path"],
            download_all=str(step.archive),
            stop=gr.update(interactive=False),
        )

    def draw_like(*values):
        yield from draw(*values[:-1], like=values[-1])

    def finish(progress):
        return run.stopped(progress), gr.update(interactive=False)

    drawing = dict(
        fn=draw, inputs=inputs, outputs=outputs, show_progress="minimal", show_progress_on=progress,
        concurrency_id="sampling", concurrency_limit=together, trigger_mode="once",
    )  # fmt: skip
    # At once, not with the first token: a run that waits in the queue can be stopped too. Before `draw`: a
    # trigger's events start one after the other.
    gr.on(
        [generate.click, prompt.submit, examples.click, vary.click], None, None, stop, api_visibility="private",
        js="() => ({ __type__: 'update', interactive: true })",
    )  # fmt: skip
    clicked = gr.on([generate.click, prompt.submit], api_name="generate", **drawing)
    filled = examples.click(lambda sample: sample[0], examples, prompt, api_visibility="private", queue=False)
    from_example = filled.then(api_visibility="private", **drawing)
    varied = vary.click(api_visibility="private", **drawing | {"fn": draw_like, "inputs": [*inputs, path]})
    for event in (clicked, from_example, varied):
        event.then(finish, progress, [progress, stop], queue=False, show_progress="hidden", api_visibility="private")
    stop.click(None, cancels=[clicked, from_example, varied], queue=False, api_visibility="private")

    def change(source):
        """Loads a model; outputs: the status line, then the controls with its limits and defaults."""
        try:
            for line in models.use(source):
                yield [said(line)] + [gr.skip()] * len(controls)
        except ModelError as error:
            gr.Warning(str(error), duration=15)
        except Exception:
            log.exception("loading failed")
            gr.Warning("Loading failed. The server's log says why.", duration=15)
        yield ["", *fitted()]

    def fitted():
        """The controls as the loaded model needs them."""
        pipe, defaults = models.pipe, models.pipe.defaults
        return [
            gr.update(choices=labelled(models.choices), value=models.source), model_facts(models.source, pipe),
            gr.update(value=defaults["num_candidates"], maximum=pipe.max_candidates), defaults["temperature"],
            gr.update(value=defaults["top_k"], maximum=pipe.codebook_size), defaults["top_p"], defaults["guidance_scale"],
            gr.update(value=preview_every(pipe), maximum=pipe.grid_size**2),
            gr.Dataset(samples=[[text] for text in pipe.examples]),
        ]  # fmt: skip

    controls = [model, about, candidates, temperature, top_k, top_p, guidance, every, examples]
    model.select(
        change, model, [progress, *controls], show_progress="minimal", show_progress_on=progress,
        trigger_mode="once", api_visibility="private",
    )  # fmt: skip
    built_with = models.source
    demo.load(  # for a page opened after a change
        lambda: fitted() if models.source != built_with and models.pipe else [gr.skip()] * len(controls), None, controls,
        queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip

    dice.click(
        lambda: (str(secrets.randbelow(2**32)), True), None, [seed, keep_seed], queue=False, api_visibility="private"
    )

    def reorder(items, order, most):
        if not items:
            return gr.skip()
        return gr.update(value=gallery_items(items, order, most), elem_classes="ranked" if order == RANKED else [])

    gr.on(
        [order.change, most.release, most.change], reorder, [kept, order, most], gallery, queue=False, show_progress="hidden",
        trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip

    def choose(items, order, most, event: gr.SelectData):
        if not items:  # still being drawn, or stopped before the end
            return [gr.skip()] * 4
        candidate = in_order(items, order, most)[event.index]
        return candidate["path"], facts(candidate), candidate["path"], candidate["path"]

    gallery.select(
        choose, [kept, order, most], [chosen, table, download, path], queue=False, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip

    def restore(file):
        """A saved picture -> the controls that drew it, and the picture itself, drawn from its tokens."""
        pipe = models.pipe
        try:
            recipe = read_recipe(file, pipe)
            image = enlarge(pipe.decode(torch.tensor(recipe["tokens"])))
        except InputError as error:
            raise run.sentence(error) from None
        folder = Path(tempfile.mkdtemp(dir=gallery.GRADIO_CACHE))
        picture = str(save_png(image, recipe | {"model": pipe.name}, folder))
        score = recipe["score"] if isinstance(recipe["score"], float) else None
        item = {"path": picture, "rank": 1, "score": score, "seed": recipe["seed"], "index": recipe["index"]}
        numbers = recipe["settings"]
        return [
            recipe["prompt"], recipe["negative_prompt"], numbers["num_candidates"], str(recipe["seed"]), True,
            numbers["temperature"], numbers["top_k"], numbers["top_p"], numbers["guidance_scale"],
            gr.update(value=gallery_items([item], RANKED, 1), visible=True), [item], gr.update(visible=False),
            gr.update(visible=True), picture, facts(item), picture, picture, picture,
        ]  # fmt: skip

    saved.upload(
        restore, saved,
        [prompt, negative, candidates, seed, keep_seed, temperature, top_k, top_p, guidance, gallery, kept, empty, detail,
         chosen, table, download, download_all, path],
        api_visibility="private",
    )  # fmt: skip
    return to_complete, path, prompt
