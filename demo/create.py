"""The Create tab: a prompt, a grid of candidates drawn before one's eyes, ranked by CLIP."""

import json
import logging
import secrets
from contextlib import closing

import gradio as gr
import torch

from dalle_core import InputError, ModelError
from demo import history, pool, run, tile, vote
from demo.gpu import on_gpu
from demo.models import Models, labelled
from demo.models import facts as model_facts
from demo.permalink import NAMES, read_query
from demo.pictures import enlarge, new_folder, preview_grid, save_png
from demo.pool import RANKED, SAMPLED, facts, gallery_items, in_order
from demo.run import MAX_PROMPT, parse_seed, preview_every, said
from demo.uploads import read_recipe

MAX_PROMPTS = 16  # in one go
SETTINGS = ("num_candidates", "temperature", "top_k", "top_p", "guidance_scale")
EMPTY = '<div class="empty">Your candidates appear here, best first.<br>Try one of the examples above.</div>'
log = logging.getLogger(__name__)


def half(seed: int, grid: int) -> torch.Tensor:
    """Which tokens a variation keeps [grid, grid]: every second one, at random."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    keep = torch.zeros(grid * grid, dtype=torch.bool)
    keep[torch.randperm(grid * grid, generator=generator)[: grid * grid // 2]] = True
    return keep.view(grid, grid)


def build(models: Models, demo: gr.Blocks, together: int) -> None:
    """Adds the tab's components and events to the Blocks being built; `together` people may draw at once."""
    pipe = models.pipe  # as it is when the page is built; handlers ask `models`
    defaults = pipe.defaults
    kept = gr.State([])  # of the finished grid on show: dicts of path, rank, score, seed, index; best first
    path = gr.State(None)  # of the chosen picture
    drawn = gr.State("")  # the seed in the box when it was drawn at random, not typed

    with gr.Row(elem_id="prompt-row"):
        prompt = gr.Textbox(
            label="Prompt", show_label=False, placeholder="What shall be drawn? Several prompts: one a line (Shift+Enter)",
            elem_id="prompt", scale=8, lines=1, max_lines=8, autofocus=True, max_length=MAX_PROMPT,
        )  # fmt: skip
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=1, min_width=120)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=90, interactive=False)
    examples = gr.Dataset(
        components=[prompt], samples=[[text] for text in pipe.examples], type="values", elem_id="examples",
        elem_classes="notranslate", show_label=False, layout="gallery", samples_per_page=24,
    )  # fmt: skip
    with gr.Row():
        candidates = gr.Slider(
            1, pipe.max_candidates, defaults["num_candidates"], step=1, label="Candidates", elem_id="candidates"
        )
        with gr.Row(elem_id="seed-row"):
            seed = gr.Textbox(
                label="Seed", value="", placeholder="new each time", elem_id="seed", min_width=120, max_lines=1, scale=3
            )
            dice = gr.Button("New seed", elem_id="dice", min_width=110, scale=1)
            keep_seed = gr.Checkbox(False, label="Keep it", elem_id="keep-seed", min_width=100, scale=1)
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        with gr.Row(elem_id="model-row"):
            model = gr.Dropdown(
                labelled(models.choices, models.source, pipe), value=models.source, label="Model", elem_id="model", scale=1, min_width=200, filterable=False,
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
        for slider in (candidates, temperature, top_k, top_p, guidance, every):
            run.bounded(slider)
        save_recipe = gr.Checkbox(
            True, label="Save the recipe in the PNG", elem_id="save-recipe",
            info="Prompt, settings and tokens: dropped on this page, the picture restores them.",
        )  # fmt: skip

    progress = gr.HTML("", elem_id="status")
    notice = gr.HTML("", elem_id="notice")
    with gr.Row():
        with gr.Column(scale=3):
            with gr.Row(elem_id="order-row"):
                order = gr.Radio(
                    [RANKED, SAMPLED], value=RANKED, show_label=False, label="Order", elem_id="order", container=False, scale=3
                )
                best = gr.Slider(
                    1, pipe.max_candidates, pipe.max_candidates, step=1, label="Show the best", elem_id="best", scale=2,
                    min_width=200, buttons=[],
                )  # fmt: skip
                rejected = gr.Checkbox(False, label="The rejected", elem_id="rejected", scale=1, min_width=120)
            gr.HTML(EMPTY, elem_id="nothing-yet")
            previews = gr.HTML("", label="Previews", elem_id="previews")
            gallery = gr.Gallery(
                columns=4, format="png", object_fit="contain", allow_preview=False, show_label=False, height="auto",
                label="Candidates", elem_id="gallery", elem_classes="ranked", buttons=[],
            )  # fmt: skip
        with gr.Column(scale=2, min_width=300), gr.Column(elem_id="detail"):
            chosen = gr.Image(
                show_label=False, label="Chosen picture", elem_id="chosen", format="png", interactive=False,
                buttons=["fullscreen"], height="auto", alt_text="Chosen picture",
            )  # fmt: skip
            table = gr.HTML("", elem_id="facts")
            with gr.Row():
                download = gr.DownloadButton("Download PNG", variant="primary", elem_id="download")
                download_all = gr.DownloadButton("Download all", elem_id="download-all")
            with gr.Row():
                vary = gr.Button("Variations", elem_id="vary")
                to_complete = gr.Button("Complete it", elem_id="to-complete")
            with gr.Row():
                more = gr.Button("More", elem_id="more")
                use_settings = gr.Button("Use its settings", elem_id="use-settings")
            with gr.Row():
                copy_link = gr.Button("Copy link", elem_id="copy-link")
                to_tile = gr.Button("Seamless tile", elem_id="to-tile")
            gr.HTML('<div id="copied" role="status"></div>')
            tile.build(models, to_tile, kept, path)
    vote.build(kept)
    with gr.Row(elem_id="open-row"):
        saved = gr.UploadButton("Open a picture that was saved here", file_types=[".png"], elem_id="open-saved", size="sm")
    gr.HTML(history.FOLD)
    # What the page's script and the server hand each other.
    entry = gr.Textbox(elem_id="entry", elem_classes="offstage", show_label=False)
    loaded = gr.Textbox(json.dumps([pipe.name, pipe.revision]), elem_id="loaded", elem_classes="offstage", show_label=False)
    linked = gr.Textbox(elem_id="linked", elem_classes="offstage", show_label=False)
    asked_for = gr.Textbox(elem_id="asked-for", elem_classes="offstage", show_label=False)
    reopen = gr.Button(elem_id="history-open", elem_classes="offstage")
    use_prompt = gr.Button(elem_id="history-prompt", elem_classes="offstage")

    inputs = [prompt, negative, candidates, seed, keep_seed, temperature, top_k, top_p, guidance, every, order, drawn, model,
              save_recipe]  # fmt: skip
    shown = {
        "gallery": gallery, "previews": previews, "kept": kept, "seed": seed, "progress": progress, "notice": notice,
        "chosen": chosen, "table": table, "download": download, "download_all": download_all, "stop": stop, "drawn": drawn,
        "path": path, "entry": entry, "best": best, "rejected": rejected,
    }  # fmt: skip

    def update(**changes):
        """The values of `shown`: what is named changes, the rest stays."""
        return [changes.get(name, gr.skip()) for name in shown]

    def grid(items, order, archive, **more):
        """`update` with a whole pool on show, its best one chosen."""
        first = items[0]
        ranks = "ranked" if order == RANKED else []
        return update(
            gallery=gr.update(value=gallery_items(items, order), elem_classes=ranks), kept=items, previews="",
            chosen=first["path"], path=first["path"], table=facts(first, items), download=first["path"], download_all=str(archive),
            best=gr.update(maximum=max(len(items), 2), value=len(items)),  # Gradio makes no slider from 1 to 1
            rejected=False, **more,
        )  # fmt: skip

    @on_gpu(60)
    def draw(prompt, negative, candidates, seed, keep_seed, temperature, top_k, top_p, guidance, every, order, drawn, model,
             save_recipe=True):  # fmt: skip
        """Streams the grid of each prompt, one a line. Outputs: gallery, seed, status and details of the best candidate."""
        try:
            asked = parse_seed(seed, keep_seed, drawn)
            settings = {"negative_prompt": (negative or "").strip()[:MAX_PROMPT], "temperature": temperature, "top_p": top_p,
                        "num_candidates": candidates, "top_k": top_k, "guidance_scale": guidance,
                        "preview_every": every}  # fmt: skip
            lines = [line.strip() for line in (prompt or "")[:MAX_PROMPT].splitlines() if line.strip()] or [""]
            if len(lines) > MAX_PROMPTS:
                raise InputError(f"These are {len(lines)} prompts, one a line; up to {MAX_PROMPTS} are drawn in one go.")
        except (InputError, TypeError, ValueError) as error:
            raise run.sentence(error) from None
        *others, last = lines
        for line in others:
            yield from draw_one(line, asked, settings, model, order, save_recipe)
        said = f"{len(lines)} prompts were drawn. This is the last; the others are in the history below."
        after = f'<div class="notice">{said}</div>' if others else ""
        yield from draw_one(last, asked, settings, model, order, save_recipe, after=after)

    def draw_one(text, asked, settings, model, order, save_recipe, before=(), after=""):
        """One prompt; the new candidates join those of the pool `before`, which stays on show meanwhile. `after`: HTML that
        the notice ends with."""
        seen = False
        with closing(run.draw(models, model, gallery.GRADIO_CACHE, text, asked, save_recipe, **settings)) as steps:
            for step in steps:
                changes = {}
                if step.seed is not None and not before:
                    changes = {"seed": str(step.seed), "notice": step.cut}
                    if asked is None:
                        changes["drawn"] = str(step.seed)
                if step.previews is not None and not before:
                    changes["previews"] = preview_grid(step.previews)
                    if not seen:  # from here on the grid before is gone
                        seen = True
                        changes |= {"gallery": [], "kept": [], "chosen": None}
                if step.items is None:
                    yield update(progress=step.line, **changes)
        packed = [item | {"tokens": history.pack(item["tokens"])} for item in step.items]
        items = pool.ranked([*before, *packed])
        try:
            archive = pool.archive(items, gallery.GRADIO_CACHE, save_recipe)
        except OSError as error:
            raise gr.Error(f"The pictures could not be zipped: {error.strerror or error}.", print_exception=False) from None
        # The notice again: a client of the endpoint reads only this last update.
        yield grid(items, order, archive, notice=step.cut + after, progress=step.line, entry=history.to_entry(items),
                   stop=gr.update(interactive=False))  # fmt: skip

    @on_gpu(60)
    def draw_like(prompt, negative, candidates, seed, keep_seed, temperature, top_k, top_p, guidance, every, order, drawn,
                  model, save_recipe, items, path):  # fmt: skip
        """Variations: half of the chosen picture's tokens are kept."""
        try:
            like = next(item for item in items if item["path"] == path)
            if like["request"]["model"] != models.pipe.name:
                raise InputError(f"This picture was drawn by the model {like['request']['model']!r}; choose that model first.")
            asked = parse_seed(seed, keep_seed, drawn)
            settings = {"negative_prompt": (negative or "").strip()[:MAX_PROMPT], "temperature": temperature, "top_p": top_p,
                        "num_candidates": candidates, "top_k": top_k, "guidance_scale": guidance,
                        "preview_every": every, "image_tokens": history.unpack(like["tokens"], models.pipe),
                        "keep": half(like["seed"] if asked is None else asked, models.pipe.grid_size)}  # fmt: skip
        except (InputError, TypeError, ValueError) as error:
            raise run.sentence(error) from None
        except StopIteration:
            raise gr.Error("Choose a picture first.", print_exception=False) from None
        text = like["request"]["prompt"] if "\n" in (prompt or "").strip() else prompt  # several prompts: the picture's own
        yield from draw_one(text, asked, settings, model, order, save_recipe)

    @on_gpu(60)
    def draw_more(items, model, order, save_recipe):
        """More candidates of the pool's own prompt and settings, with the next seed."""
        if not items:
            raise gr.Error("Draw something first.", print_exception=False)
        request = items[0]["request"]
        count = request["settings"]["num_candidates"]
        if request["model"] != models.pipe.name:
            name = request["model"]
            raise gr.Error(f"These were drawn by the model {name!r}; choose that model first.", print_exception=False)
        if request["varied"]:
            raise gr.Error("For more variations, choose a picture and press Variations.", print_exception=False)
        if len(items) + count > pool.MAX_POOL:
            raise gr.Error(f"A pool holds up to {pool.MAX_POOL} candidates: generate a new one.", print_exception=False)
        following = max(int(item["seed"]) for item in items) + 1
        if following >= 2**63:
            raise gr.Error("There is no seed after this one: choose a smaller one.", print_exception=False)
        settings = request["settings"] | {"negative_prompt": request["negative_prompt"]}
        yield from draw_one(request["prompt"], following, settings, model, order, save_recipe, before=items)

    @on_gpu(30)
    def open_entry(text, model, order, save_recipe):
        """An entry of the history, drawn again from its tokens."""
        try:
            with models.drawing(model) as pipe:
                found = history.read_entry(text, pipe)
                total, request = len(found["candidates"]), found["request"]
                for items in history.draw_again(found, pipe, gallery.GRADIO_CACHE, save_recipe):
                    yield update(progress=said(f"Drawing {len(items)} of {total} again"), stop=gr.update(interactive=True)) + [
                        gr.skip()] * len(restored)  # fmt: skip
        except (InputError, ModelError) as error:
            raise run.sentence(error) from None
        except Exception:
            log.exception("opening an entry failed")
            raise gr.Error("Opening it failed. The server's log says why.", print_exception=False) from None
        line = said(f"{total} candidates from the history")
        yield grid(items, order, pool.archive(items, gallery.GRADIO_CACHE, save_recipe), progress=line, notice="",
                   seed=str(items[0]["seed"]), drawn="", stop=gr.update(interactive=False)) + [
            request["prompt"], request["negative_prompt"], *(request["settings"][name] for name in SETTINGS),
        ]  # fmt: skip

    restored = [prompt, negative, candidates, temperature, top_k, top_p, guidance]
    outputs = list(shown.values())
    drawing = dict(
        fn=draw, inputs=inputs, outputs=outputs, show_progress="minimal", show_progress_on=progress,
        concurrency_id="sampling", concurrency_limit=together, trigger_mode="once",
    )  # fmt: skip
    run.stoppable([generate.click, prompt.submit, examples.click, vary.click, more.click], stop)
    clicked = gr.on([generate.click, prompt.submit], api_visibility="private", **drawing)
    run.endpoint(draw, inputs, outputs, "generate", concurrency_id="sampling", concurrency_limit=together)
    filled = examples.click(lambda sample: sample[0], examples, prompt, api_visibility="private", queue=False)
    from_example = filled.then(api_visibility="private", **drawing)
    varied = vary.click(api_visibility="private", **drawing | {"fn": draw_like, "inputs": [*inputs, kept, path]})
    grown = more.click(
        api_visibility="private", **drawing | {"fn": draw_more, "inputs": [kept, model, order, save_recipe]}
    )
    reopened = reopen.click(
        api_visibility="private", js="(...values) => [dalleHistory.asked(), ...values.slice(1)]",
        **drawing | {"fn": open_entry, "inputs": [asked_for, model, order, save_recipe], "outputs": [*outputs, *restored]},
    )  # fmt: skip
    for event in (clicked, from_example, varied, grown, reopened):
        for ended in (event.then, event.failure):  # `then` alone does not come after an error
            ended(run.ended, progress, [progress, stop], queue=False, show_progress="hidden", api_visibility="private")
    stop.click(None, cancels=[clicked, from_example, varied, grown, reopened], queue=False, api_visibility="private")

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
            gr.update(choices=labelled(models.choices, models.source, pipe), value=models.source), model_facts(models.source, pipe),
            gr.update(value=defaults["num_candidates"], maximum=pipe.max_candidates), defaults["temperature"],
            gr.update(value=defaults["top_k"], maximum=pipe.codebook_size), defaults["top_p"], defaults["guidance_scale"],
            gr.update(value=preview_every(pipe), maximum=pipe.grid_size**2),
            gr.Dataset(samples=[[text] for text in pipe.examples]), json.dumps([pipe.name, pipe.revision]),
        ]  # fmt: skip

    controls = [model, about, candidates, temperature, top_k, top_p, guidance, every, examples, loaded]
    model.select(
        change, model, [progress, *controls], show_progress="minimal", show_progress_on=progress,
        trigger_mode="once", api_visibility="private",
    )  # fmt: skip
    built_with = models.source
    opened = demo.load(  # for a page opened after a change
        lambda: fitted() if models.source != built_with and models.pipe else [gr.skip()] * len(controls), None, controls,
        queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip

    def follow_link(request: gr.Request):
        """The values in the page's address, as JSON for the page to fill in."""
        parameters, pipe = dict(request.query_params), models.pipe
        if pipe is None or not {"prompt", "negative", "seed", *NAMES} & set(parameters):
            return gr.skip()
        found, ignored = read_query(parameters, pipe)
        if ignored:
            gr.Warning(f"The link's values of {', '.join(ignored)} are not allowed here and were ignored.")
        if parameters.get("model", pipe.name) != pipe.name:
            gr.Warning("The link was made with another model: the pictures will differ unless you choose it under Advanced.")
        return json.dumps(found)

    link_sets = [prompt, negative, seed, keep_seed, candidates, temperature, top_k, top_p, guidance]
    opened.then(
        follow_link, None, linked, queue=False, show_progress="hidden", api_visibility="private"
    ).then(
        # In the browser, where nothing can be typed between reading and writing: what was typed already stays.
        None, [*link_sets, linked], link_sets, api_visibility="private", show_progress="hidden",
        js="""(prompt, negative, seed, keep, candidates, temperature, top_k, top_p, guidance, text) => {
          const now = [prompt, negative, seed, keep, candidates, temperature, top_k, top_p, guidance];
          if (!text || prompt) return now;
          const link = JSON.parse(text);
          return [link.prompt ?? prompt, link.negative ?? negative, link.seed ?? seed, "seed" in link || keep,
            link.candidates ?? candidates, link.temperature ?? temperature, link.top_k ?? top_k, link.top_p ?? top_p,
            link.guidance ?? guidance];
        }""",
    )  # fmt: skip
    demo.load(None, loaded, None, js="(model) => { dalleHistory.use(model); }", api_visibility="private")
    loaded.change(None, loaded, None, js="(model) => { dalleHistory.use(model); }", api_visibility="private")
    entry.change(None, entry, None, js="(text) => { dalleHistory.save(text); }", api_visibility="private")
    use_prompt.click(None, None, prompt, js="() => dalleHistory.asked()", api_visibility="private")
    copy_link.click(None, None, None, js="() => { dalleHistory.copyLink(); }", api_visibility="private")

    def settings_of(items, path):
        """The controls as they were when the chosen picture was drawn."""
        item = next((item for item in items if item["path"] == path), None)
        if item is None:
            raise gr.Error("Choose a picture first.", print_exception=False)
        request = item["request"]
        numbers = (request["settings"][name] for name in SETTINGS)
        return [request["prompt"], request["negative_prompt"], str(item["seed"]), True, *numbers]

    use_settings.click(
        settings_of, [kept, path], [prompt, negative, seed, keep_seed, candidates, temperature, top_k, top_p, guidance],
        queue=False, show_progress="hidden", api_visibility="private",
    )  # fmt: skip

    dice.click(
        lambda: (str(secrets.randbelow(2**32)), True), None, [seed, keep_seed], queue=False, api_visibility="private"
    )

    def reorder(items, order, best, rejected):
        if not items:
            return gr.skip()
        ranks = "ranked" if order == RANKED and not rejected else []
        return gr.update(value=gallery_items(items, order, best, rejected), elem_classes=ranks)

    gr.on(
        [order.input, best.input, rejected.input], reorder, [kept, order, best, rejected], gallery, queue=False,
        show_progress="hidden", trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip

    def choose(items, order, best, rejected, event: gr.SelectData):
        listed = in_order(items, order, best, rejected)
        if event.index >= len(listed):  # still being drawn, or stopped before the end
            return [gr.skip()] * 4
        candidate = listed[event.index]
        return candidate["path"], facts(candidate, items), candidate["path"], candidate["path"]

    gallery.select(
        choose, [kept, order, best, rejected], [chosen, table, download, path], queue=False, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip

    @on_gpu(30)
    def restore(file):
        """A saved picture -> the controls that drew it, and the picture itself, drawn from its tokens."""
        pipe = models.pipe
        try:
            recipe = read_recipe(file, pipe)
            image = enlarge(pipe.decode(torch.tensor(recipe["tokens"])))
        except InputError as error:
            raise run.sentence(error) from None
        folder = new_folder(gallery.GRADIO_CACHE)
        picture = str(save_png(image, recipe | {"model": pipe.name, "revision": pipe.revision}, folder))
        score = recipe["score"] if isinstance(recipe["score"], float) else None
        numbers = recipe["settings"]
        request = {"model": pipe.name, "revision": pipe.revision, "prompt": recipe["prompt"],
                   "negative_prompt": recipe["negative_prompt"], "settings": {name: numbers[name] for name in SETTINGS},
                   "varied": recipe["varied"]}  # fmt: skip
        item = {"path": picture, "rank": 1, "score": score, "seed": recipe["seed"], "index": recipe["index"],
                "tokens": history.pack(recipe["tokens"]), "request": request}  # fmt: skip
        [item] = pool.ranked([item])
        return [
            recipe["prompt"], recipe["negative_prompt"], numbers["num_candidates"], str(recipe["seed"]), True,
            numbers["temperature"], numbers["top_k"], numbers["top_p"], numbers["guidance_scale"],
            gallery_items([item], RANKED), "", [item],
            picture, facts(item, [item]), picture, picture, picture,
        ]  # fmt: skip

    dropped = saved.upload(
        restore, saved,
        [prompt, negative, candidates, seed, keep_seed, temperature, top_k, top_p, guidance, gallery, previews, kept, chosen, table,
         download, download_all, path],
        api_visibility="private",
    )  # fmt: skip
    return to_complete, path, prompt, save_recipe, dropped
