"""The Create tab: a prompt, a grid of candidates drawn before one's eyes, ranked by CLIP."""

from contextlib import closing
from dataclasses import replace

import gradio as gr

from dalle_core import InputError
from dalle_core.request import MAX_SEED, half_kept
from dalle_core.studio.pool import MAX_POOL, ranked, to_entry
from dalle_core.studio.studio import Studio
from demo import progress
from demo.handlers import QUIET, stoppable
from demo.pictures import RANKED, preview_grid
from demo.public import visitor
from demo.tabs import controls as controls_rows
from demo.tabs import history, vote
from demo.tabs.grid import Grid


class Create:
    """The tab's components, and what happens on them."""

    def __init__(self, studio: Studio, demo: gr.Blocks, together: int):
        """Adds the tab to the Blocks being built; `together` people may draw at once."""
        self.studio = studio
        self.controls = controls_rows.build(studio)
        self.status, self.notice = gr.HTML("", elem_id="status"), gr.HTML("", elem_id="notice")
        self.grid = Grid(studio, self.controls.save_recipe)
        vote.build(self.grid.kept)
        with gr.Row(elem_id="open-row"):
            self.saved = gr.UploadButton("Open a saved picture", file_types=[".png"], elem_id="open-saved", size="sm")
        gr.HTML(history.FOLD, elem_id="history-fold")
        opened = controls_rows.choose_model(studio, self.controls, demo, self.status)
        controls_rows.follow_links(studio, self.controls, opened)
        self._draw_events(together)
        self._open_events(demo)

    @property
    def outputs(self) -> list:
        controls = self.controls
        return [self.status, self.notice, *self.grid.outputs, self.entry, controls.seed, controls.drawn, controls.stop]

    # ------------------------------------------------------------ drawing

    def draw(self, request: gr.Request, values: dict):
        """The grid of each prompt, one per line."""
        asked = self.controls.requests(values)
        for number, one in enumerate(asked, 1):
            after = ""
            if number == len(asked) > 1:
                said = f"{len(asked)} prompts were drawn. This is the last; the others are in the history below."
                after = f'<div class="notice">{said}</div>'
            yield from self.draw_one(request, values, one, after=after)

    def draw_one(self, request, values, asked, before=(), after=""):
        """One prompt; the new candidates join those of the pool `before`, which stays on show meanwhile. `after`: HTML that
        the notice ends with."""
        controls, seen = self.controls, False
        steps = self.studio.draw(
            visitor(request), asked, values[controls.model], values[controls.preview_every], values[controls.save_recipe]
        )
        with closing(steps):
            for step in steps:
                shown = {self.status: progress.of(step)}
                if step.seed is not None and not before:
                    shown |= {controls.seed: str(step.seed), self.notice: progress.notices(step)}
                    if asked.seed is None:
                        shown[controls.drawn] = str(step.seed)
                if step.previews is not None and not before:
                    shown[self.grid.previews] = preview_grid(step.previews)
                    if not seen:  # from here on the grid before is gone
                        seen = True
                        shown |= self.grid.clear()
                if step.pictures is None:
                    yield shown
        pictures = ranked([*before, *step.pictures])
        yield (
            shown
            | self.grid.show(pictures, values[self.grid.order])
            | {
                self.notice: progress.notices(step) + after,
                self.entry: to_entry(pictures),
                controls.stop: gr.update(interactive=False),
            }
        )

    def draw_like(self, request: gr.Request, values: dict):
        """Variations: half of the chosen picture's tokens are kept."""
        picture = values[self.grid.chosen.picture]
        if picture is None:
            raise InputError("Choose a picture first.")
        self.studio.check_model(picture)
        [asked, *others] = self.controls.requests(values)
        seed = picture.drawn.seed if asked.seed is None else asked.seed
        keep = half_kept(seed, self.studio.holder.loaded.limits.grid_size)
        prompt = picture.drawn.request.prompt if others else asked.prompt  # several prompts: the picture's own
        yield from self.draw_one(request, values, replace(asked, prompt=prompt, image_tokens=picture.drawn.tokens, keep=keep))

    def draw_more(self, request: gr.Request, values: dict):
        """More candidates of the pool's own prompt and settings, with the next seed."""
        pool = values[self.grid.kept]
        if not pool:
            raise InputError("Draw something first.")
        first, asked = pool[0], pool[0].drawn.request
        self.studio.check_model(first)
        if first.drawn.varied:
            raise InputError("For more variations, choose a picture and press Variations.")
        if len(pool) + asked.num_candidates > MAX_POOL:
            raise InputError(f"Up to {MAX_POOL} candidates are kept together: press Generate for new ones.")
        following = max(picture.drawn.seed for picture in pool) + 1
        if following > MAX_SEED:
            raise InputError("There is no seed after this one: choose a smaller one.")
        yield from self.draw_one(request, values, replace(asked, seed=following), before=pool)

    def open_entry(self, request: gr.Request, values: dict):
        """An entry of the history, drawn again from its tokens."""
        again = self.studio.draw_again(
            visitor(request), values[self.asked_for], values[self.controls.model], values[self.controls.save_recipe]
        )
        with closing(again):
            for total, pictures in again:
                if len(pictures) < total:
                    line = progress.line(f"Drawing {len(pictures)} of {total} again")
                    yield {self.status: line, self.controls.stop: gr.update(interactive=True)}
        first = pictures[0].drawn
        yield (
            self.grid.show(pictures, values[self.grid.order])
            | self.controls.restore(first.request, first.seed)
            | {
                self.status: progress.line(f"{total} candidates from the history"),
                self.notice: "",
                self.controls.keep_seed: gr.skip(),
                self.controls.stop: gr.update(interactive=False),
            }
        )

    def _draw_events(self, together: int) -> None:
        controls, chosen = self.controls, self.grid.chosen
        # What the page's script and the server hand each other.
        self.entry = gr.Textbox(elem_id="entry", elem_classes="offstage", show_label=False)
        self.asked_for = gr.Textbox(elem_id="asked-for", elem_classes="offstage", show_label=False)
        reopen = gr.Button(elem_id="history-open", elem_classes="offstage")
        drawing = dict(
            inputs={*controls.inputs, self.grid.order, self.grid.kept, chosen.picture, self.asked_for},
            outputs=self.outputs,
            show_progress="minimal",
            show_progress_on=self.status,
            concurrency_id="sampling",
            concurrency_limit=together,
            trigger_mode="once",
            api_visibility="private",
        )
        stoppable(
            [controls.generate.click, controls.prompt.submit, controls.examples.click, chosen.vary.click, chosen.more.click],
            controls.stop,
        )
        filled = controls.examples.click(
            lambda sample: sample[0], controls.examples, controls.prompt, api_visibility="private", queue=False
        )
        reopening = drawing | {"outputs": list(dict.fromkeys([*self.outputs, *controls.restored]))}
        asked = reopen.click(None, None, self.asked_for, js="() => dalleHistory.asked()", api_visibility="private")
        events = [
            gr.on([controls.generate.click, controls.prompt.submit], self.draw, **drawing),
            filled.then(self.draw, **drawing),
            chosen.vary.click(self.draw_like, **drawing),
            chosen.more.click(self.draw_more, **drawing),
            asked.then(self.open_entry, **reopening),
        ]

        def finish(shown):
            return progress.stopped(shown), gr.update(interactive=False)

        for event in events:
            for ended in (event.then, event.failure):  # `then` alone does not come after an error
                ended(finish, self.status, [self.status, controls.stop], **QUIET)
        controls.stop.click(None, cancels=events, queue=False, api_visibility="private")
        self.entry.change(None, self.entry, None, js="(text) => { dalleHistory.save(text); }", api_visibility="private")

    # ------------------------------------------------------------ pictures and links that come back

    def _open_events(self, demo: gr.Blocks) -> None:
        controls = self.controls
        use_prompt = gr.Button(elem_id="history-prompt", elem_classes="offstage")

        def settings_of(picture):
            """The controls as they were when the chosen picture was drawn."""
            if picture is None:
                raise InputError("Choose a picture first.")
            return controls.restore(picture.drawn.request, picture.drawn.seed)

        def open_saved(request: gr.Request, file):
            """A saved picture: the controls that drew it, and the picture itself."""
            picture = self.studio.open_saved(visitor(request), file)
            restored = controls.restore(picture.drawn.request, picture.drawn.seed)
            return restored | self.grid.show([picture], RANKED) | {self.grid.order: RANKED}

        outputs = list(dict.fromkeys([*self.outputs, self.grid.order, *controls.restored]))
        self.opened = self.saved.upload(open_saved, self.saved, outputs, api_visibility="private")
        chosen = self.grid.chosen
        chosen.use_settings.click(settings_of, chosen.picture, controls.restored, **QUIET)
        for event in (demo.load, controls.loaded.change):
            event(None, controls.loaded, None, js="(model) => { dalleHistory.use(model); }", api_visibility="private")
        use_prompt.click(None, None, controls.prompt, js="() => dalleHistory.asked()", api_visibility="private")
