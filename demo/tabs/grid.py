"""The grid of Create: previews while a pool is drawn, then the pool, ranked; which of it is shown, and in what order."""

import gradio as gr

from dalle_core.studio.pool import Picture
from dalle_core.studio.studio import Studio
from demo.handlers import QUIET
from demo.pictures import RANKED, SAMPLED, gallery_items, in_order
from demo.tabs import chosen as chosen_column

EMPTY = '<div class="empty">Your pictures appear here, those that fit best first.<br>Try one of the examples.</div>'


class Grid:
    """The components, the chosen picture's column among them."""

    def __init__(self, studio: Studio, save_recipe: gr.Checkbox):
        most = studio.holder.loaded.limits.max_candidates
        self.kept = gr.State([])  # the pool on show, best first
        with gr.Row():
            with gr.Column(scale=3):
                with gr.Row(elem_id="order-row", elem_classes="unused") as self.order_row:
                    self.order = gr.Radio(
                        [RANKED, SAMPLED],
                        value=RANKED,
                        show_label=False,
                        label="Order",
                        elem_id="order",
                        container=False,
                        scale=3,
                    )
                    self.best = gr.Slider(
                        1, max(most, 2), most, step=1, label="Show the best", elem_id="best", scale=2, min_width=200, buttons=[]
                    )
                    self.rejected = gr.Checkbox(False, label="Show the rest", elem_id="rejected", scale=1, min_width=120)
                self.empty = gr.HTML(EMPTY, elem_id="empty")
                self.previews = gr.HTML("", label="Previews", elem_id="previews")
                self.gallery = gr.Gallery(
                    columns=4,
                    format="png",
                    object_fit="contain",
                    allow_preview=False,
                    show_label=False,
                    height="auto",
                    label="Candidates",
                    elem_id="gallery",
                    elem_classes="unused",
                    buttons=[],
                )
            with gr.Column(scale=2, min_width=300):
                self.chosen = chosen_column.build(studio, self.kept, save_recipe)
        self._events()

    @property
    def outputs(self) -> list:
        return [
            self.order_row,
            self.best,
            self.rejected,
            self.empty,
            self.previews,
            self.gallery,
            self.kept,
            *self.chosen.outputs,
        ]

    def show(self, pictures: list[Picture], order: str) -> dict:
        """A whole pool on show, its best one chosen."""
        return {
            self.gallery: gr.update(value=gallery_items(pictures, order), elem_classes=["ranked"] if order == RANKED else []),
            self.kept: pictures,
            self.previews: "",
            self.empty: gr.update(elem_classes="unused"),
            self.order_row: gr.update(elem_classes=[]),
            self.rejected: False,
            self.best: gr.update(maximum=max(len(pictures), 2), value=len(pictures)),  # Gradio makes no slider from 1 to 1
        } | self.chosen.show(pictures[0], pictures)

    def clear(self) -> dict:
        """What was on show is gone, for previews of the next pool."""
        unused = gr.update(elem_classes="unused")
        return {self.gallery: unused, self.empty: unused, self.order_row: unused, self.kept: []} | self.chosen.hide()

    def _events(self) -> None:
        chosen, shown = self.chosen, [self.kept, self.order, self.best, self.rejected]

        def reorder(kept, order, best, rejected):
            if not kept:
                return gr.skip()
            ranks = "ranked" if order == RANKED and not rejected else []
            return gr.update(value=gallery_items(kept, order, best, rejected), elem_classes=ranks)

        def choose(event: gr.SelectData, kept, order, best, rejected):
            listed = in_order(kept, order, best, rejected)
            if not isinstance(event.index, int) or not 0 <= event.index < len(listed):  # still being drawn, or stopped
                return {chosen.picture: gr.skip()}
            return chosen.show(listed[event.index], kept)

        gr.on(
            [self.order.input, self.best.input, self.rejected.input],
            reorder,
            shown,
            self.gallery,
            trigger_mode="always_last",
            **QUIET,
        )
        self.gallery.select(choose, shown, chosen.outputs, **QUIET)
