"""The page: `create_demo(pipe)` builds it, `launch_options()` says how it is served. Importing starts nothing."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read at gradio's import: no look-ups at start-up
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))  # else each refusal sums up all events, in pandas
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
os.environ.setdefault("FORWARDED_ALLOW_IPS", "")  # read at the launch: `demo.public` says which proxies are trusted

import gradio as gr  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from dalle_core.studio.budgets import OWN, PUBLIC, Budgets  # noqa: E402
from demo import about, augment, compare, complete, create, history, language, recognise, tokens, vote  # noqa: E402
from demo.look import CSS, HEAD, JS, header, theme  # noqa: E402
from demo.models import Models  # noqa: E402
from demo.page import Page  # noqa: E402
from demo.public import Bounds  # noqa: E402


def create_demo(models: Models, together: int = 4) -> gr.Blocks:
    """The page; all visitors share the loaded model, nothing of theirs is kept in it. `together` people draw at once,
    the next ones wait in a queue."""
    with Page(title="DALL·E, ranked", delete_cache=(3600, 24 * 3600), fill_width=True, analytics_enabled=False) as demo:
        gr.HTML(header(), elem_id="header")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Create", id="create"):
                to_complete, chosen, prompt, save_recipe, dropped = create.build(models, demo, together)
            with gr.Tab("Complete", id="complete") as tab:
                picture, words, opening = complete.build(models, together, save_recipe, tab)
            with gr.Tab("Tokens", id="tokens"):
                tokens.build(models)
            with gr.Tab("Recognise", id="recognise"):
                recognise.build(models, together)
            with gr.Tab("Compare", id="compare"):
                compare.build(models, together)
            with gr.Tab("Augment", id="augment"):
                augment.build(models, together)
            with gr.Tab("Model", id="model") as model:
                about.build(models, model)
        to_complete.click(
            lambda path, text: (path, text, gr.Tabs(selected="complete")), [chosen, prompt], [picture, words, tabs],
            api_visibility="private", show_progress="hidden",
        ).then(**opening)  # fmt: skip
        # A picture may be dropped on any tab; what it restores is on the first.
        dropped.success(
            lambda: gr.Tabs(selected="create"), None, tabs, queue=False, api_visibility="private", show_progress="hidden"
        )  # fmt: skip
    for event in demo.fns.values():
        if event.api_visibility == "public":
            event.fn.__name__ = event.api_name  # after which MCP names its tools
    return demo.queue(max_size=16, default_concurrency_limit=1, api_open=False)


def launch_options(public: bool = False, proxies: int = 0, login: bool = False, budgets: Budgets | None = None) -> dict:
    """Arguments of `launch` that make the page look and behave as designed, and safe to put on a public host. The public
    endpoints are tools of an MCP server as well, but with a login: its programs could not use it. proxies: as of `Bounds`;
    budgets: of the visitors, for a public page by default small ones."""
    budgets = budgets or Budgets(PUBLIC if public else OWN)
    return {
        "theme": theme(),
        "css": CSS,
        "js": JS,
        "head": HEAD + language.HEAD + history.HEAD + vote.HEAD + complete.HEAD,
        "show_error": False,
        "max_file_size": "5mb" if public else "50mb",  # a phone's photo has more than 5
        "allowed_paths": [],
        "enable_monitoring": False,
        "run_history": False,
        "strict_cors": True,
        "footer_links": ["api"],
        "state_session_capacity": 200 if public else 10_000,
        "pwa": True,
        "app_kwargs": {"middleware": [Middleware(Bounds, budgets=budgets, proxies=proxies)]},
        "mcp_server": not login,
    }
