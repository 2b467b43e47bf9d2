"""The page: `create_demo(studio)` builds it, `launch_options()` says how it is served. Importing starts nothing."""

import os
from functools import partial
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at gradio's import: no look-ups at start-up
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))  # else each refusal sums up all events, in pandas
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
os.environ.setdefault("FORWARDED_ALLOW_IPS", "")  # read at the launch: `demo.public` says which proxies are trusted

import gradio as gr  # noqa: E402
from gradio.utils import get_upload_folder  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from dalle_core import DallePipeline  # noqa: E402
from dalle_core.studio.budgets import OWN, PUBLIC, Budgets  # noqa: E402
from dalle_core.studio.holder import ModelHolder  # noqa: E402
from dalle_core.studio.store import Store  # noqa: E402
from dalle_core.studio.studio import Studio  # noqa: E402
from demo import api, language, uploads  # noqa: E402
from demo.gpu import on_gpu, seconds  # noqa: E402
from demo.handlers import QUIET  # noqa: E402
from demo.link_preview import LinkPreview  # noqa: E402
from demo.look import CSS, HEAD, JS, header, theme  # noqa: E402
from demo.page import Page  # noqa: E402
from demo.public import Bounds  # noqa: E402
from demo.tabs import compare, complete, dataset, history, model, recognise, tokens, train, vote  # noqa: E402
from demo.tabs.create import Create  # noqa: E402


def open_studio(
    pipe: DallePipeline, source: str, load=None, download=None, public: bool = False, model: str | None = None
) -> Studio:
    """The studio of a page: its files lie below Gradio's folder, which serves them. load, download, model: as of
    `ModelHolder`; public: strangers have a budget."""
    folder = Path(get_upload_folder())
    holder = ModelHolder(pipe, source, load, download, model)
    store, budgets = Store(folder / "studio", also=[folder]), Budgets(PUBLIC if public else OWN)
    return Studio(holder, store, budgets, on_gpu(partial(seconds, holder)))


def create_demo(studio: Studio, together: int = 4, runs: Path | None = None) -> gr.Blocks:
    """The page; all visitors share the studio's model, nothing of theirs is kept in it. `together` people draw at once,
    the next ones wait in a queue. runs: where trainings are looked for; without it, and where the model cannot be changed,
    there is no Train tab, which opens the folders that are typed into it."""
    with Page(
        studio.store, title="DALL·E, ranked", delete_cache=(3600, 24 * 3600), fill_width=True, analytics_enabled=False
    ) as demo:
        api.build(studio, together)  # first: the tabs' events may have the same names, and the first keeps its name
        gr.HTML(header(), elem_id="header")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Create", id="create"):
                create = Create(studio, demo, together)
            with gr.Tab("Complete", id="complete") as tab:
                picture, words, opening = complete.build(studio, together, create.controls.save_recipe, tab)
            with gr.Tab("Recognise", id="recognise") as tab:
                recognise.build(studio, together, tab)
            with gr.Tab("Compare", id="compare") as tab:
                compare.build(studio, together, tab)
            # From here on for people who train models, or want to know how they work.
            with gr.Tab("Make a data set", id="augment"):
                dataset.build(studio, together)
            with gr.Tab("Tokens", id="tokens"):
                tokens.build(studio)
            if runs is not None and studio.holder.load:
                with gr.Tab("Train", id="train") as tab:
                    used = train.build(studio, runs, tab, create.controls)
                used.success(lambda: gr.Tabs(selected="create"), None, tabs, **QUIET)
            with gr.Tab("Model", id="model") as tab:
                model.build(studio, tab)
        create.grid.chosen.complete.click(
            lambda chosen, text: (chosen.path if chosen else None, text, gr.Tabs(selected="complete")),
            [create.grid.chosen.picture, create.controls.prompt],
            [picture, words, tabs],
            api_visibility="private",
            show_progress="hidden",
        ).then(**opening)
        # A picture may be dropped on any tab; what it restores is on the first.
        create.opened.success(lambda: gr.Tabs(selected="create"), None, tabs, **QUIET)
    return demo.queue(max_size=16, default_concurrency_limit=1, api_open=False)


def launch_options(studio: Studio, public: bool = False, proxies: int = 0, login: bool = False) -> dict:
    """Arguments of `launch` that make the page look and behave as designed, and safe to put on a public host. The public
    endpoints are tools of an MCP server as well, but with a login: its programs could not use it. proxies: as of `Bounds`."""
    return {
        "theme": theme(),
        "css": CSS,
        "js": JS,
        "head": HEAD + language.HEAD + history.HEAD + vote.HEAD + complete.HEAD + uploads.HEAD,
        "show_error": False,
        "max_file_size": "5mb" if public else "50mb",  # a phone's photo has more than 5
        "allowed_paths": [],
        "enable_monitoring": False,
        "run_history": False,
        "strict_cors": True,
        "footer_links": ["api"],
        "state_session_capacity": 200 if public else 10_000,
        "pwa": True,
        "app_kwargs": {"middleware": [Middleware(Bounds, budgets=studio.budgets, proxies=proxies), Middleware(LinkPreview)]},
        "mcp_server": not login,
        "_frontend": False,  # else Gradio gives up when its own page does not answer within 3 seconds, as on a busy machine
    }
