"""One page on tiny models and one real Chromium for all browser tests. Without a browser they fail; they are never skipped."""

import threading
import time
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

import dalle_core
from dalle_core import ModelError
from demo import create_demo, launch_options, open_studio
from tests.browser.chromium import executable
from tests.browser.steps import new_context, open_page
from tests.conftest import make_pipeline


class Gate:
    """Lets the test hold the sampling half-way, and see whether its generator was closed."""

    def __init__(self, pipe):
        self.open, self.closed, self.stream = threading.Event(), threading.Event(), pipe.stream
        self.open.set()
        self.begun = self.free = 0  # drawings that began; the number of those that a shut gate does not hold
        pipe.stream = self

    def let(self, count):
        """Shuts the gate behind the next `count` drawings."""
        self.free = self.begun + count
        self.open.clear()

    def __call__(self, *args, **kwargs):
        steps = self.stream(*args, **kwargs)  # checks its arguments at once

        def gated():
            number, self.begun = self.begun, self.begun + 1
            try:
                for step in steps:
                    while step.index > step.total // 2 and number >= self.free and not self.open.is_set():
                        time.sleep(0.02)
                        yield step  # as a slow model would: the page can stop it between tokens
                    yield step
            finally:
                steps.close()
                self.closed.set()

        return gated()


@pytest.fixture(scope="package")
def browser():
    path = executable()
    assert path, "No Chromium was found: install chromium, or set CHROMIUM to its path."
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@contextmanager
def serve(folder, together=1, public=False, runs=None):
    """(url, gate) of a page on tiny models."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(folder))
    pipe = make_pipeline()
    gate = Gate(pipe)
    other = make_pipeline()
    other.register_to_config(defaults=other.defaults | {"num_candidates": 2, "top_k": 7}, examples=["a banana"])

    def load(source, tell):
        if source == "dalle-mega":
            raise ModelError("DALL·E mega takes 10.5 GB in float32, and 6.0 GB are free on cpu.")
        if runs is not None and source != "tiny":
            return dalle_core.load(source, clip="none")
        tell("Downloading kuprel/min-dalle: 10 MB of 20 MB, 5.0 MB/s, 2 s left")
        return pipe if source == "tiny" else other

    studio = gate.studio = open_studio(pipe, "tiny", None if public else load, public=public)
    demo = create_demo(studio, together=together, runs=runs)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio, public))
    yield url, gate
    gate.open.set()
    demo.close()
    patch.undo()


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    """(url, gate) of one page for all browser tests; a file that needs another has a fixture of this name."""
    with serve(tmp_path_factory.mktemp("gradio")) as page:
        yield page


@pytest.fixture
def gate(served):
    gate = served[1]
    gate.free = 0
    gate.open.set()
    gate.closed.clear()
    yield gate
    gate.open.set()


DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@contextmanager
def visit(browser, url, size=DESK, script=None, **options):
    """The page as a fresh visitor sees it; `script` runs before the page's own. Fails when the page asked another host for
    anything, or logged an error."""
    context = new_context(browser, viewport=size, **options)
    strangers, errors = [], []

    def only_local(route):
        if route.request.url.startswith(url):
            route.continue_()
        else:
            strangers.append(route.request.url)
            route.abort()

    context.route("**/*", only_local)
    if script:
        context.add_init_script(script)
    page = context.new_page()
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, url)
    yield page
    context.close()
    assert strangers == [] and errors == []


@pytest.fixture
def page(browser, served, request):
    with visit(browser, served[0], getattr(request, "param", DESK)) as page:
        yield page
