"""What a drawing on Create is asked for with: prompt, seed, settings and model; how links and models fill them in."""

import json
import secrets
from dataclasses import dataclass

import gradio as gr

from dalle_core import InputError, ModelError
from dalle_core.request import MAX_PROMPT, DrawingRequest
from dalle_core.studio.links import NAMES, read_query
from dalle_core.studio.studio import Studio
from demo import progress
from demo.handlers import QUIET, checked_later, log, parse_seed
from demo.models import facts, labelled
from demo.tabs import sampling
from demo.tabs.sampling import USUAL

MAX_PROMPTS = 16  # in one go


@dataclass
class Controls:
    prompt: gr.Textbox
    generate: gr.Button
    stop: gr.Button
    examples: gr.Dataset
    num_candidates: gr.Slider
    seed: gr.Textbox
    keep_seed: gr.Checkbox
    model: gr.Dropdown
    about: gr.HTML
    negative_prompt: gr.Textbox
    temperature: gr.Slider
    top_k: gr.Slider
    top_p: gr.Slider
    guidance_scale: gr.Slider
    preview_every: gr.Slider
    save_recipe: gr.Checkbox
    drawn: gr.State  # the seed in the box when it was drawn at random, not typed
    loaded: gr.Textbox  # name and revision of the model, for the page's script

    @property
    def restored(self) -> list:
        """What a saved picture sets."""
        return [self.prompt, self.negative_prompt, self.seed, self.keep_seed, *self.sliders, self.drawn]

    @property
    def sliders(self) -> list:
        return [self.num_candidates, self.temperature, self.top_k, self.top_p, self.guidance_scale]

    @property
    def inputs(self) -> set:
        return {*self.restored, self.preview_every, self.model, self.save_recipe}

    @property
    def of_model(self) -> list:
        """What differs from model to model."""
        return [self.model, self.about, *self.sliders, self.preview_every, self.examples, self.loaded]

    def fitted(self, studio: Studio) -> dict:
        """`of_model` as the loaded model needs it."""
        loaded, defaults = studio.holder.loaded, studio.holder.loaded.defaults
        return {
            self.model: gr.update(choices=labelled(studio.holder), value=studio.holder.source),
            self.about: facts(loaded),
            self.num_candidates: gr.update(value=defaults["num_candidates"], maximum=loaded.limits.max_candidates),
            self.preview_every: gr.update(value=loaded.preview_every, maximum=loaded.limits.grid_size**2),
            self.examples: gr.Dataset(samples=[[text] for text in loaded.examples]),
            self.loaded: json.dumps([loaded.name, loaded.revision]),
        } | dict(zip(self.sliders[1:], sampling.fitted(loaded)))

    def requests(self, values: dict) -> list[DrawingRequest]:
        """What is asked for, a request for each line of the prompt. Raises InputError."""
        lines = [line.strip() for line in (values[self.prompt] or "")[:MAX_PROMPT].splitlines() if line.strip()] or [""]
        if len(lines) > MAX_PROMPTS:
            raise InputError(f"These are {len(lines)} prompts, one per line; up to {MAX_PROMPTS} are drawn in one go.")
        seed = parse_seed(values[self.seed], values[self.keep_seed], values[self.drawn])
        numbers = {
            name: values[getattr(self, name)] for name in ("num_candidates", "temperature", "top_k", "top_p", "guidance_scale")
        }
        return [DrawingRequest(line, (values[self.negative_prompt] or "").strip(), seed=seed, **numbers) for line in lines]

    def restore(self, request: DrawingRequest, seed: int) -> dict:
        """The controls as they were when something was drawn."""
        settings = request.settings
        ends = {name: gr.update(value=settings[name], maximum=max(end, settings[name])) for name, end in USUAL.items()}
        numbers = {getattr(self, name): value for name, value in (settings | ends).items()}
        return numbers | {
            self.prompt: request.prompt,
            self.negative_prompt: request.negative_prompt,
            self.seed: str(seed),
            self.keep_seed: True,
            self.drawn: "",
        }


def build(studio: Studio) -> Controls:
    """The controls of the loaded model."""
    loaded, defaults = studio.holder.loaded, studio.holder.loaded.defaults
    with gr.Row(elem_id="prompt-row"):
        prompt = gr.Textbox(
            label="Prompt",
            show_label=False,
            placeholder="Describe a picture (Shift+Enter: another one)",
            elem_id="prompt",
            scale=8,
            lines=1,
            max_lines=8,
            autofocus=True,
            max_length=MAX_PROMPT,
        )
        # Stop comes into view before Generate, which stays where it is: a second click hits the same button.
        stop = gr.Button("Stop", elem_id="stop", elem_classes="stop", scale=1, min_width=90, interactive=False)
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=1, min_width=120)
    examples = gr.Dataset(
        components=[prompt],
        samples=[[text] for text in loaded.examples],
        type="values",
        elem_id="examples",
        elem_classes="notranslate",
        show_label=False,
        layout="gallery",
        samples_per_page=24,
    )
    with gr.Row(elem_id="settings-row"):
        candidates = gr.Slider(
            1, loaded.limits.max_candidates, defaults["num_candidates"], step=1, label="Candidates", elem_id="candidates"
        )
        with gr.Row(elem_id="seed-row"):
            seed = gr.Textbox(
                label="Seed", value="", placeholder="new each time", elem_id="seed", min_width=120, max_lines=1, scale=3
            )
            dice = gr.Button("New seed", elem_id="dice", min_width=110, scale=1)
            keep_seed = gr.Checkbox(False, label="Lock seed", elem_id="keep-seed", min_width=130, scale=1)
    folded = advanced(studio)
    checked_later(candidates)
    dice.click(lambda: (str(secrets.randbelow(2**32)), True), None, [seed, keep_seed], queue=False, api_visibility="private")
    identity = gr.Textbox(
        json.dumps([loaded.name, loaded.revision]), elem_id="loaded", elem_classes="offstage", show_label=False
    )
    return Controls(prompt, generate, stop, examples, candidates, seed, keep_seed, *folded, gr.State(""), identity)


def advanced(studio: Studio) -> tuple:
    """The fold of what few people change: the components of `Controls` from `model` to `save_recipe`."""
    loaded = studio.holder.loaded
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        with gr.Row(elem_id="model-row"):
            model = gr.Dropdown(
                labelled(studio.holder),
                value=loaded.source,
                label="Model",
                elem_id="model",
                scale=1,
                min_width=200,
                filterable=False,
                interactive=len(studio.holder.choices) > 1,
            )
            about = gr.HTML(facts(studio.holder.loaded), elem_id="about-model")
        negative = gr.Textbox(
            label="Negative prompt",
            value="",
            info="What the picture should not show; needs a guidance scale above 1.",
            elem_id="negative",
            max_lines=1,
            max_length=MAX_PROMPT,
        )
        with gr.Row():
            temperature, top_k, top_p, guidance = sampling.sliders(loaded, "create")
        every = gr.Slider(
            0,
            loaded.limits.grid_size**2,
            loaded.preview_every,
            step=1,
            label="Preview every",
            info="Tokens between two previews; 0 is never.",
        )
        save_recipe = gr.Checkbox(
            True,
            label="Save the recipe in the PNG",
            elem_id="save-recipe",
            info="The PNG then holds prompt, settings and tokens: drop it on this page, and all of them come back.",
        )
    checked_later(every)
    return model, about, negative, temperature, top_k, top_p, guidance, every, save_recipe


def choose_model(studio: Studio, controls: Controls, demo: gr.Blocks, status: gr.HTML) -> gr.events.Dependency:
    """The picker loads a model; all pages that are opened later show it. Returns the event after which a page is fitted."""

    def change(source):
        try:
            for line in studio.holder.use(source):
                yield {status: progress.line(line)}
        except (InputError, ModelError) as error:
            gr.Warning(str(error), duration=15)
        except Exception:
            log.exception("loading failed")
            gr.Warning("Loading failed. The server's log says why.", duration=15)
        trouble = studio.holder.trouble
        yield {status: progress.line(trouble) if trouble else ""} | controls.fitted(studio)

    built_with = studio.holder.loaded

    def opened():
        """For a page that is opened after a change."""
        trouble = studio.holder.trouble
        shown = {status: progress.line(trouble)} if trouble else {status: gr.skip()}
        return shown if studio.holder.loaded is built_with else shown | controls.fitted(studio)

    controls.model.select(
        change,
        controls.model,
        [status, *controls.of_model],
        show_progress="minimal",
        show_progress_on=status,
        trigger_mode="once",
        api_visibility="private",
    )
    return demo.load(opened, None, [status, *controls.of_model], **QUIET)


def follow_links(studio: Studio, controls: Controls, opened: gr.events.Dependency) -> None:
    """A page that is opened with a link's parameters shows them."""
    linked = gr.Textbox(elem_id="linked", elem_classes="offstage", show_label=False)

    def follow(request: gr.Request):
        """The values in the page's address, as JSON for the page to fill in."""
        parameters, loaded = dict(request.query_params), studio.holder.loaded
        if not set(NAMES) & set(parameters):
            return gr.skip()
        found, ignored = read_query(parameters, loaded.limits)
        if ignored:
            gr.Warning(f"The link's values of {', '.join(ignored)} are not allowed here and were ignored.")
        if parameters.get("model", loaded.name) != loaded.name:
            gr.Warning("The link was made with another model: the pictures will differ unless you choose it under Advanced.")
        return json.dumps(found)

    sets = [controls.prompt, controls.negative_prompt, controls.seed, controls.keep_seed, *controls.sliders]
    opened.then(follow, None, linked, **QUIET).then(
        # In the browser, where nothing can be typed between reading and writing: what was typed already stays.
        None,
        [*sets, linked],
        sets,
        api_visibility="private",
        show_progress="hidden",
        js="""(prompt, negative, seed, keep, candidates, temperature, top_k, top_p, guidance, text) => {
          const now = [prompt, negative, seed, keep, candidates, temperature, top_k, top_p, guidance];
          if (!text || prompt) return now;
          const link = JSON.parse(text);
          const wide = (value, end) => (value > end ? { __type__: "update", value, maximum: value } : value);
          return [link.prompt ?? prompt, link.negative ?? negative, link.seed ?? seed, "seed" in link || keep,
            link.candidates ?? candidates, wide(link.temperature ?? temperature, 2), link.top_k ?? top_k, link.top_p ?? top_p,
            wide(link.guidance ?? guidance, 16)];
        }""",
    )
