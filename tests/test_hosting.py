"""What a public host gets: a Space's files, a page with bounds."""

import base64
import html
import inspect
import io
import json
import pickle
import re
import sys
from dataclasses import replace
from functools import wraps
from types import SimpleNamespace

import gradio as gr
import httpx
import huggingface_hub
import pytest
import yaml
from gradio.routes import App
from gradio_client import Client
from PIL import Image
from starlette.testclient import TestClient

from dalle_core import InputError
from dalle_core.prompts import rows_of
from dalle_core.request import DrawingRequest
from dalle_core.studio.budgets import OWN, PUBLIC, Budgets
from dalle_core.studio.holder import Loaded
from dalle_core.studio.pool import to_entry
from demo import create_demo, launch_options, open_studio, public, space
from demo.gpu import on_gpu, seconds
from demo.page import Page
from demo.tabs import model


class Hub:
    """Stands for HfApi; remembers."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo, **arguments):
        self.calls.append(("create_repo", repo, arguments))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/spaces/{repo}")

    def create_commit(self, repo, operations, **arguments):
        self.calls.append(("create_commit", repo, [operation.path_in_repo for operation in operations]))
        self.written = {one.path_in_repo: one.path_or_fileobj for one in operations}

    def request_space_hardware(self, repo, hardware):
        self.calls.append(("request_space_hardware", repo, hardware))

    def model_info(self, repo):
        return SimpleNamespace(card_data=SimpleNamespace(license="cc-by-4.0"))

    def card(self):
        """(its front matter, its text)"""
        _, front, text = self.written["README.md"].decode().split("---\n")
        return yaml.safe_load(front), text


def test_a_space_gets_the_page_the_core_and_the_model_and_nothing_else():
    hub = Hub()
    assert space.push(hub, "someone/icons").endswith("someone/icons")
    (_, _, made), (_, repo, paths) = hub.calls
    assert made["repo_type"] == "space" and made["space_sdk"] == "gradio" and repo == "someone/icons"
    assert {"app.py", "requirements.txt", "README.md", "demo/__init__.py", "dalle_core/checkpoints/vqgan.py"} <= set(paths)
    assert {"assets/emoji/model_index.json", "demo/static/dice.svg", "demo/static/history.js"} <= set(paths)
    folders = {path.split("/")[0] for path in paths if "/" in path}
    assert folders == {"demo", "dalle_core", "assets"} and not any("pycache" in path or "screenshots" in path for path in paths)
    front, text = hub.card()
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["python_version"] == "3.12"
    assert len(front["short_description"]) <= 60 and "**CC-BY-4.0** (see `assets/emoji/README.md`)" in text
    assert front["thumbnail"].endswith("/someone/icons/resolve/main/preview.jpg") and "preview.jpg" in paths


def test_a_space_of_a_published_model_has_its_weights_from_the_hub_and_its_licence_in_the_card():
    hub = Hub()
    space.push(hub, "someone/janus", model="janus-pro-1b", hardware="zero-a10g")
    assert hub.calls[-1] == ("request_space_hardware", "someone/janus", "zero-a10g")
    front, text = hub.card()
    weights, clip = front["preload_from_hub"]
    assert weights == "deepseek-ai/Janus-Pro-1B config.json,pytorch_model.bin,tokenizer.json,special_tokens_map.json"
    assert clip.startswith("openai/clip-vit-base-patch32 ") and front["suggested_hardware"] == "zero-a10g"
    assert "**DeepSeek Model License" in text and "https://huggingface.co/deepseek-ai/Janus-Pro-1B" in text
    assert not any(path.startswith("assets/") for path in hub.written)
    assert "main(['page', '--model', 'janus-pro-1b'])" in hub.written["app.py"].decode()


def test_a_space_of_one_s_own_model_has_its_folder(saved):
    hub = Hub()
    with pytest.raises(InputError, match="has no card"):
        space.push(hub, "someone/mine", model=str(saved))
    (saved / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n\n# Mine\n", encoding="utf-8")
    (saved / "state.pt").write_bytes(b"of a training")
    space.push(hub, "someone/mine", model=str(saved))
    assert {"model/model_index.json", "model/README.md"} <= set(hub.written) and "model/state.pt" not in hub.written
    assert "cc-by-sa-4.0" in hub.card()[1] and "'--model', 'model'" in hub.written["app.py"].decode()


def test_a_space_of_a_model_of_the_hub_names_its_licence():
    hub = Hub()
    space.push(hub, "someone/foxes", model="a/foxes", hardware="cpu-upgrade")
    front, text = hub.card()
    assert front["preload_from_hub"] == ["a/foxes"] and "**cc-by-4.0**" in text
    with pytest.raises(InputError, match="There is no model 'foxes'"):
        space.push(hub, "someone/foxes", model="foxes")


def test_what_a_space_starts_opens_the_page_with_its_model(monkeypatch):
    asked = []
    monkeypatch.setattr("dalle_core.__main__.main", asked.append)
    exec(space.APP.format(arguments=["page", "--model", "model"]), {"__name__": "__main__"})
    assert asked == [["page", "--model", "model"]]


@pytest.mark.parametrize(
    "error, said",
    [
        (huggingface_hub.errors.LocalTokenNotFoundError("x"), "hf auth login"),
        (huggingface_hub.errors.HFValidationError("Repo id must use alphanumeric chars\nmore"), "alphanumeric"),
    ],
)
def test_what_goes_wrong_is_one_line(monkeypatch, capsys, error, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(space, "push", fail)
    monkeypatch.setattr("sys.argv", ["space", "a/b"])
    with pytest.raises(SystemExit):
        space.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_a_page_offers_no_more_than_its_model_allows(own_pipeline):
    own_pipeline.max_candidates = 16
    studio = open_studio(own_pipeline, "tiny")
    demo = create_demo(studio)
    sliders = {block.elem_id: block for block in demo.blocks.values() if getattr(block, "elem_id", None)}
    assert sliders["candidates"].maximum == 16
    assert launch_options(studio, public=True)["state_session_capacity"] < launch_options(studio)["state_session_capacity"]


FEW = replace(PUBLIC, places=2)


@pytest.fixture
def visit(tiny_pipeline, tmp_path, monkeypatch):
    """Makes visitors of one page by their address; its queue takes requests and works on none, so that they wait."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "cache"))
    apps = {}

    def visit(host, is_public=True, proxies=0, budget=FEW, **headers):
        which = is_public, proxies, budget
        if which not in apps:
            studio = open_studio(tiny_pipeline, "tiny")
            studio.budgets = Budgets(budget if is_public else OWN)
            options, demo = launch_options(studio, is_public, proxies), create_demo(studio)
            demo.max_file_size = None  # as `launch` does
            apps[which] = App.create_app(demo, app_kwargs=options["app_kwargs"])
        return TestClient(apps[which], client=(host, 1), headers=headers)

    return visit


def join(visitor):
    return visitor.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "a"})


def call(visitor):
    return visitor.post("/gradio_api/call/reconstruct", json={"data": [None]})


def upload(visitor, size=1000, **options):
    return visitor.post("/gradio_api/upload", files={"files": ("a.png", bytes(size))}, **options)


def cheap(visitor):
    return visitor.post("/gradio_api/run/no-such", json={"data": [None]})


@pytest.mark.parametrize("way", [join, call])
def test_an_address_holds_few_places_of_the_queue_and_another_is_not_affected(visit, way):
    assert [way(visit("192.0.2.1")).status_code for _ in range(4)] == [200, 200, 429, 429]
    assert "2 of your requests are waiting or running already" in way(visit("192.0.2.1")).json()["detail"]
    assert way(visit("192.0.2.2")).status_code == 200


def test_what_is_running_takes_a_place_too(visit):
    assert [join(visit("192.0.2.1")).status_code for _ in range(2)] == [200, 200]
    queue = visit("192.0.2.1").app.get_blocks()._queue
    queue.active_jobs = [None, None]
    for place in range(2):  # as Gradio does when a worker is free
        events, _, _ = queue.get_events()
        queue.active_jobs[place] = events
        assert join(visit("192.0.2.1")).status_code == 429
    assert len(queue) == 0 and join(visit("192.0.2.2")).status_code == 200
    queue.active_jobs[0] = None
    assert join(visit("192.0.2.1")).status_code == 200


@pytest.mark.parametrize("way", [join, call, cheap, upload])
def test_an_address_asks_only_so_often(visit, monkeypatch, way):
    monkeypatch.setattr(public, "RATE", public.parse("3/minute"))
    monkeypatch.setattr("time.time", lambda: 6_000_000.0)
    many = replace(PUBLIC, places=1000)
    codes = [way(visit("192.0.2.1", budget=many)).status_code for _ in range(5)]
    assert 429 not in codes[:3] and codes[3:] == [429, 429]
    assert "too many requests" in way(visit("192.0.2.1", budget=many)).json()["detail"]
    assert way(visit("192.0.2.2", budget=many)).status_code != 429
    assert visit("192.0.2.1", budget=many).get("/gradio_api/info").status_code == 200


def test_an_address_uploads_only_so_much(visit):
    small = replace(PUBLIC, upload_bytes=300_000)
    assert [upload(visit("192.0.2.1", budget=small), 100_000).status_code for _ in range(3)] == [200, 200, 429]
    refused = upload(visit("192.0.2.1", budget=small), 100_000).json()["detail"]
    assert "MB of uploads within 10 minutes, and yours are used up. Try again in" in refused
    assert upload(visit("192.0.2.2", budget=small), 100_000).status_code == 200


def test_an_upload_that_does_not_say_its_length_is_counted_as_it_comes(visit):
    small, sent = replace(PUBLIC, upload_bytes=300_000), []

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(8):
            sent.append(1)
            yield bytes(60_000)
        yield b"\r\n--x--\r\n"

    visitor = visit("192.0.2.1", budget=small)
    answer = visitor.post("/gradio_api/upload", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 429 and "MB of uploads" in answer.json()["detail"]


def test_what_is_no_upload_has_a_largest_size(visit, monkeypatch):
    monkeypatch.setattr(public, "LARGEST", 10_000)
    data = {"data": ["x" * 20_000], "session_hash": "a", "fn_index": 0}
    for path in ("queue/join", "call/recognise", "run/x", "mcp/"):
        assert visit("192.0.2.1").post(f"/gradio_api/{path}", json=data).status_code == 413
    pieces = iter([b'{"data": ["', bytes(20_000), b'"]}'])
    answer = visit("192.0.2.1").post("/gradio_api/queue/join", content=pieces, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and "too large" in answer.json()["detail"]


def test_without_public_mode_there_is_no_bound(visit):
    assert {way(visit("192.0.2.1", is_public=False)).status_code for _ in range(5) for way in (join, upload)} == {200}


@pytest.mark.parametrize("is_public", [False, True])
def test_what_the_page_does_not_use_is_not_there(visit, is_public):
    """These write to the disk, start a program or fetch files for strangers."""
    visitor = visit("192.0.2.1", is_public)
    join(visitor)
    for method, path in [
        ("GET", "deep_link?session_hash=a"),
        ("POST", "process_recording"),
        ("POST", "component_server"),
        ("GET", "file=http://192.0.2.7/x.png"),
        ("GET", "file=https://192.0.2.7/x.png"),
        ("POST", "vibe-edit"),
        ("GET", "proxy=https://a.hf.space/x"),
    ]:
        answer = visitor.request(method, f"/gradio_api/{path}")
        assert answer.status_code == 404 and answer.json() == {"detail": public.NOT_HERE}


def test_a_function_that_is_not_there_is_a_sentence(visit):
    for fn_index in (10_000, -1):
        body = {"data": [], "fn_index": fn_index, "session_hash": "a"}
        answer = visit("192.0.2.1").post("/gradio_api/queue/join", json=body)
        assert (answer.status_code, answer.json()["detail"]) == (400, public.UNCLEAR)


def codes(visit, headers, host="192.0.2.1", **options):
    return [join(visit(host, **options, **{"X-Forwarded-For": entries})).status_code for entries in headers]


def test_without_proxies_a_forged_address_does_not_help(visit):
    assert codes(visit, [f"198.51.100.{i}" for i in range(3)]) == [200, 200, 429]


@pytest.mark.parametrize("proxies, tail", [(1, ""), (2, ", 192.0.2.8"), (3, ", 192.0.2.7,192.0.2.8")])
def test_behind_proxies_the_visitor_is_who_the_first_of_them_saw(visit, proxies, tail):
    for visitor in ("203.0.113.1", "203.0.113.2"):
        forged = [f"198.51.100.{i}, {visitor}{tail}" for i in range(3)]
        assert codes(visit, forged, proxies=proxies) == [200, 200, 429]


def test_what_came_past_the_proxies_counts_by_its_connection(visit):
    assert codes(visit, [f"198.51.100.{i}" for i in range(3)], proxies=2) == [200, 200, 429]
    nonsense = ["", "unknown", "a" * 10_000]
    assert codes(visit, nonsense, host="192.0.2.2", proxies=1) == [200, 200, 429]


def test_a_household_with_ipv6_is_one_visitor(visit):
    assert codes(visit, [f"2001:db8:1:2::{i}" for i in (1, 2, 3)], proxies=1) == [200, 200, 429]
    assert codes(visit, ["2001:db8:1:3::1"], proxies=1) == [200]
    assert codes(visit, ["::ffff:203.0.113.5", "203.0.113.5:4711", "203.0.113.5"], proxies=1) == [200, 200, 429]


@pytest.mark.parametrize(
    "host, visitor",
    [
        ("2001:db8::7", "2001:db8::/64"),
        ("[2001:db8::7]:80", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (" 192.0.2.1 ", "192.0.2.1"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", None),
        ("localhost", None),
        ("1.2.3", None),
        ("[", None),
    ],
)
def test_how_an_address_counts(host, visitor):
    assert public.counted(host) == visitor


@pytest.fixture(scope="module")
def echo(tiny_pipeline, tmp_path_factory):
    """A page that says to visitors who they are, behind one proxy and behind none; (urls by the number of proxies)."""
    patch, urls, pages = pytest.MonkeyPatch(), {}, []
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    for proxies in (0, 1):
        studio = open_studio(tiny_pipeline, "tiny", public=True)
        with Page(studio.store) as demo:
            out = gr.Textbox()
            for name, queue in (("slow", True), ("quick", False)):

                def who(request: gr.Request):
                    """Says it."""
                    return public.visitor(request)

                who.__name__ = name
                gr.Button().click(who, None, out, api_name=name, queue=queue)
        pages.append(demo)
        _, urls[proxies], _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio, True, proxies))
    yield urls
    for demo in pages:
        demo.close()
    patch.undo()


@pytest.mark.parametrize("proxies, seen", [(0, "127.0.0.1"), (1, "203.0.113.9")])
@pytest.mark.parametrize("tool", ["slow", "quick"])
def test_a_visitor_is_the_same_over_http_and_mcp_whatever_the_headers_claim(echo, proxies, seen, tool):
    forged = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9", public.STAMP: "guess 198.51.100.2"}
    by_mcp = mcp(SimpleNamespace(src_prefixed=f"{echo[proxies]}gradio_api/"), "tools/call", forged, name=tool, arguments={})
    assert by_mcp["content"][0]["text"] == seen
    with httpx.Client(base_url=f"{echo[proxies]}gradio_api/call/", headers=forged, timeout=60) as web:
        event = web.post(tool, json={"data": []}).json()["event_id"]
        assert f'["{seen}"]' in web.get(f"{tool}/{event}").text


def test_a_link_shows_its_prompt_and_a_picture(echo):
    with httpx.Client(base_url=echo[0], timeout=60) as visitor:
        behind_https = {"Host": "dalle.example", "X-Forwarded-Proto": "https"}
        shown = visitor.get("", params={"prompt": 'a "red" fox<b>'}, headers=behind_https).text
        plain = visitor.get("").text
        forged = visitor.get("", headers={"Host": 'x" onload="'}).text
        picture = visitor.get("preview.jpg").content
    assert shown.startswith("<!doctype html>") and "Click to try out" not in shown and shown.count("og:title") == 1
    tags = dict(re.findall(r'<meta (?:property|name)="(og:\w+|twitter:\w+)" content="([^"]*)">', shown))
    assert html.unescape(tags["og:title"]) == '“a "red" fox<b>”' and "<b>" not in tags["og:title"]
    assert tags["og:image"] == tags["twitter:image"] == "https://dalle.example/preview.jpg"
    assert 'og:title" content="DALL·E, ranked"' in plain and f'{echo[0]}preview.jpg"' in plain and "onload" not in forged
    assert Image.open(io.BytesIO(picture)).size == (1200, 630)


def test_pictures_over_mcp_count_for_who_sends_them_and_not_for_the_server(tiny_pipeline, tmp_path, monkeypatch):
    """Gradio's MCP server uploads them again, from its own address, for all visitors."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    studio = open_studio(tiny_pipeline, "tiny", public=True)
    studio.budgets = Budgets(replace(PUBLIC, upload_bytes=300_000))
    demo = create_demo(studio)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio, public=True, proxies=1))
    try:
        page = SimpleNamespace(src_prefixed=f"{url}gradio_api/")

        def send(address: str, number: int) -> dict:
            file = io.BytesIO()
            Image.effect_noise((240, 240), 50 + number).save(file, "PNG")  # some 50 kB
            picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
            return mcp(page, "tools/call", {"X-Forwarded-For": address}, name="reconstruct", arguments={"picture": picture})

        for visitor in ("203.0.113.1", "203.0.113.2", "203.0.113.3"):
            for number in range(3):
                assert not send(visitor, number).get("isError")
        with pytest.raises(httpx.HTTPStatusError, match="429"):
            for number in range(3):
                send("203.0.113.3", number)
    finally:
        demo.close()


def test_with_a_login_there_is_no_mcp_server(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    studio = open_studio(tiny_pipeline, "tiny", public=True)
    demo, options = create_demo(studio), launch_options(studio, public=True, login=True)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, auth=("me", "secret"), **options)
    try:
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        for path in ("mcp", "mcp/", "mcp/schema", "mcp/sse"):
            for method in ("GET", "POST"):
                answer = httpx.request(
                    method, f"{url}gradio_api/{path}", json=asked, headers={"Accept": "application/json, text/event-stream"}
                )
                assert answer.status_code in (404, 405) and "recognise" not in answer.text
        assert httpx.get(f"{url}gradio_api/info").status_code == 401
    finally:
        demo.close()


def test_all_that_draws_shares_one_bound_of_how_many_at_once(own_pipeline):
    demo = create_demo(open_studio(own_pipeline, "tiny"), together=3)
    # Gradio takes the lowest of all; one without a limit would bring them down to its default of one.
    assert {fn.concurrency_limit for fn in demo.fns.values() if fn.concurrency_id == "sampling"} == {3}


def sent(value):
    """As it arrives in another process."""
    return pickle.loads(pickle.dumps(value))


class ZeroGPU:
    """Stands for the package `spaces` on a ZeroGPU Space: what goes into a handler and what comes out of it is pickled, a
    gr.Error too; a generator is closed with its reader; within a handler that has a GPU another one is called at once."""

    def __init__(self):
        self.asked, self.lent = [], False  # seconds, for every call

    def GPU(self, duration):
        def decorate(task):
            @wraps(task)
            def handler(*args, **kwargs):
                if self.lent:
                    return task(*args, **kwargs)
                self.asked.append(duration(*args, **kwargs) if callable(duration) else duration)
                self.lent = True
                try:
                    return sent(task(*sent(args), **sent(kwargs)))
                except gr.Error as error:
                    raise sent(error) from None
                finally:
                    self.lent = False

            @wraps(task)
            def generator_handler(*args, **kwargs):
                if self.lent:
                    yield from task(*args, **kwargs)
                    return
                self.asked.append(duration(*args, **kwargs) if callable(duration) else duration)
                steps = task(*sent(args), **sent(kwargs))
                try:
                    while True:
                        self.lent = True
                        try:
                            value = sent(next(steps))
                        except StopIteration:
                            return
                        except gr.Error as error:
                            raise sent(error) from None
                        finally:
                            self.lent = False
                        yield value
                finally:
                    steps.close()

            decorated = generator_handler if inspect.isgeneratorfunction(task) else handler
            decorated.zerogpu = None  # as the package marks them
            return decorated

        return decorate


@pytest.fixture
def zero_gpu(monkeypatch):
    package = ZeroGPU()
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=package.GPU))
    return package


def test_elsewhere_a_handler_stays_what_it_is(monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    assert on_gpu(60)(sent) is sent


def test_on_zerogpu_a_handler_is_lent_a_gpu_and_closing_it_stops_the_work(zero_gpu):
    ended = []

    @on_gpu(30)
    def count():
        try:
            yield from range(5)
        finally:
            ended.append(True)

    steps = count()
    assert inspect.isgeneratorfunction(count) and next(steps) == 0 and zero_gpu.asked == [30] and not ended
    steps.close()
    assert ended


def test_on_zerogpu_all_that_computes_asks_for_a_gpu_and_what_it_takes_and_gives_can_be_sent(
    zero_gpu, own_pipeline, tmp_path, monkeypatch
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    expected = own_pipeline("a red fox", num_candidates=2, seed=7).candidates
    computed = []
    own_pipeline.prior.register_forward_hook(lambda *_: computed.append(zero_gpu.lent))
    own_pipeline.image_tokenizer.decoder.register_forward_hook(lambda *_: computed.append(zero_gpu.lent))
    own_pipeline.prior.head.register_forward_hook(lambda *_: computed.append(zero_gpu.lent))
    own_pipeline.clip.vision_model.register_forward_hook(lambda *_: computed.append(zero_gpu.lent))
    studio = open_studio(own_pipeline, "tiny")
    *_, last = studio.draw("a", DrawingRequest("a red fox", num_candidates=2, seed=7), preview_every=4)
    [first, second] = last.pictures
    assert [picture.drawn.tokens.tolist() for picture in last.pictures] == [one.tokens.tolist() for one in expected]
    path = str(studio.download("a", first))
    assert studio.tokens_of("a", path) == first.drawn.tokens.tolist() and studio.open_saved("a", path).drawn.seed == 7
    assert studio.recognise("a", path, ["a fox", "two apples"])[0].text in ("a fox", "two apples")
    studio.tile("a", second), list(studio.draw_again("a", to_entry(last.pictures)))
    list(studio.augment("a", rows_of(["a fox"], 2), seed=1))
    with pytest.raises(InputError, match="prompt is empty"):
        list(studio.draw("a", DrawingRequest("")))
    assert computed and all(computed) and set(zero_gpu.asked) == {15, 16}  # what draws 16 tokens, what draws none
    zero_gpu.asked.clear()
    own_pipeline.max_candidates = 400
    list(studio.draw("a", DrawingRequest("a red fox", num_candidates=400, seed=7)))
    assert zero_gpu.asked == [35]  # 25 times 16 candidates
    holder = SimpleNamespace(loaded=SimpleNamespace(limits=SimpleNamespace(grid_size=24)))
    assert seconds(holder, "stream", num_candidates=16) == 44 and seconds(holder, "stream", num_candidates=400) == 120


def test_the_card_comes_without_its_front_matter(tmp_path):
    assert model.card(str(tmp_path)) == ""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n", encoding="utf-8")
    assert model.card(str(tmp_path)).strip() == "# A model"
    assert "kept out" in model.card("emoji").lower()


def test_the_table_of_parts_counts_what_is_saved(tiny_pipeline):
    table = model.sizes(Loaded.of("tiny", tiny_pipeline))
    assert "VQModel" in table and "GPTPrior" in table and "CLIPModel" in table


@pytest.fixture(scope="module")
def client(tiny_pipeline, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    studio = open_studio(tiny_pipeline, "tiny")
    demo = create_demo(studio)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio))
    yield Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    demo.close()
    patch.undo()


def mcp(client, method, headers=None, **parameters):
    """What a program that speaks MCP gets, over HTTP."""
    answer = httpx.post(
        f"{client.src_prefixed}mcp/",
        headers={"Accept": "application/json, text/event-stream"} | (headers or {}),
        timeout=60,
        json={"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters},
    )
    answer.raise_for_status()
    [message] = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return message["result"]


def joined(client, session, button, **values):
    """The last message of the event that a visitor's session starts with a button; values by the elem_id of the inputs."""
    components = {component["id"]: component["props"] for component in client.config["components"]}
    [event] = [
        event
        for event in client.config["dependencies"]
        if event["backend_fn"] and any(components.get(target, {}).get("elem_id") == button for target, _ in event["targets"])
    ]
    data = [values.get(props.get("elem_id"), props.get("value")) for props in map(components.get, event["inputs"])]
    body = {"data": data, "fn_index": event["id"], "session_hash": session}
    httpx.post(f"{client.src_prefixed}queue/join", json=body).raise_for_status()
    with httpx.stream("GET", f"{client.src_prefixed}queue/data", params={"session_hash": session}, timeout=60) as stream:
        messages = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    return [message for message in messages if message["msg"] == "process_completed"][-1]


def test_a_session_s_pool_is_its_own(client):
    assert joined(client, "first", "generate", prompt="a red fox")["success"]
    other = joined(client, "second", "more")  # there is no such button before something is drawn
    assert not other["success"] and other["output"]["error"] == "Draw something first."
    assert joined(client, "first", "more")["success"]
