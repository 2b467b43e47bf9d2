"""What a public host gets: a Space's files, a page with bounds."""

import inspect
import json
import pickle
import sys
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

from demo import Models, about, create_demo, launch_options, public, space
from demo.gpu import on_gpu


class Hub:
    """Stands for HfApi; remembers."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo, **arguments):
        self.calls.append(("create_repo", repo, arguments))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/spaces/{repo}")

    def create_commit(self, repo, operations, **arguments):
        self.calls.append(("create_commit", repo, [operation.path_in_repo for operation in operations]))


def test_a_space_gets_the_page_the_core_and_the_model_and_nothing_else():
    hub = Hub()
    assert space.push(hub, "someone/icons").endswith("someone/icons")
    (_, _, made), (_, repo, paths) = hub.calls
    assert made["repo_type"] == "space" and made["space_sdk"] == "gradio" and repo == "someone/icons"
    assert {"app.py", "requirements.txt", "README.md", "demo/__init__.py", "dalle_core/checkpoints/vqgan.py"} <= set(paths)
    assert {"assets/emoji/model_index.json", "demo/static/dice.svg", "demo/static/history.js"} <= set(paths)
    folders = {path.split("/")[0] for path in paths if "/" in path}
    assert folders == {"demo", "dalle_core", "assets"} and not any("pycache" in path or "screenshots" in path for path in paths)


def test_a_space_s_front_matter_is_complete():
    front = yaml.safe_load(space.README.split("---")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["python_version"] == "3.12"
    assert len(front["short_description"]) <= 60


@pytest.mark.parametrize("error, said", [
    (huggingface_hub.errors.LocalTokenNotFoundError("x"), "hf auth login"),
    (huggingface_hub.errors.HFValidationError("Repo id must use alphanumeric chars\nmore"), "alphanumeric"),
])  # fmt: skip
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
    demo = create_demo(Models(own_pipeline, "tiny"))
    sliders = {block.elem_id: block for block in demo.blocks.values() if getattr(block, "elem_id", None)}
    assert sliders["candidates"].maximum == 16
    assert launch_options(public=True)["state_session_capacity"] < launch_options()["state_session_capacity"]


@pytest.fixture
def visit(own_pipeline, monkeypatch):
    """Makes visitors of one page by their address; its queue takes requests and works on none, so that they wait."""
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setattr(public, "PLACES", 2)
    apps = {}

    def visit(host, is_public=True, **headers):
        if is_public not in apps:
            demo = create_demo(Models(own_pipeline, "tiny"))
            apps[is_public] = App.create_app(demo, app_kwargs=launch_options(is_public)["app_kwargs"])
        return TestClient(apps[is_public], client=(host, 1), headers=headers)

    return visit


def join(visitor):
    return visitor.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "a"})


def call(visitor):
    return visitor.post("/gradio_api/call/reconstruct", json={"data": [None]})


@pytest.mark.parametrize("way", [join, call])
def test_an_address_holds_few_places_of_the_queue_and_another_is_not_affected(visit, way):
    assert [way(visit("192.0.2.1")).status_code for _ in range(4)] == [200, 200, 429, 429]
    assert "2 of your requests are waiting already" in way(visit("192.0.2.1")).json()["detail"]
    assert way(visit("192.0.2.2")).status_code == 200


def test_an_address_joins_the_queue_only_so_often(visit, monkeypatch):
    monkeypatch.setattr(public, "PLACES", 1000)
    monkeypatch.setattr(public, "RATE", public.parse("3/minute"))
    assert [join(visit("192.0.2.1")).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    assert "too many requests" in join(visit("192.0.2.1")).json()["detail"]
    assert join(visit("192.0.2.2")).status_code == 200
    assert visit("192.0.2.1").get("/gradio_api/info").status_code == 200


def test_without_public_mode_there_is_no_bound(visit):
    assert {join(visit("192.0.2.1", is_public=False)).status_code for _ in range(5)} == {200}


def test_a_forged_address_does_not_help(visit, monkeypatch):
    forged = [{"X-Forwarded-For": f"198.51.100.{i}"} for i in range(3)]
    assert [join(visit("192.0.2.1", **headers)).status_code for headers in forged] == [200, 200, 429]
    monkeypatch.setenv("SPACE_ID", "someone/icons")  # all visitors come from the Space's proxy, which names them last
    for visitor in ("203.0.113.1", "203.0.113.2"):
        proxied = [{"X-Forwarded-For": f"198.51.100.{i}, {visitor}"} for i in range(3)]
        assert [join(visit("192.0.2.9", **headers)).status_code for headers in proxied] == [200, 200, 429]


def test_all_that_draws_shares_one_bound_of_how_many_at_once(own_pipeline):
    demo = create_demo(Models(own_pipeline, "tiny"), together=3)
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
                self.asked.append(duration)
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
                self.asked.append(duration)
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


def test_on_zerogpu_all_that_draws_asks_for_a_gpu(zero_gpu, own_pipeline):
    demo = create_demo(Models(own_pipeline, "tiny"))
    drawing = [event for event in demo.fns.values() if event.concurrency_id == "sampling"]
    assert len(drawing) > 5 and [event.api_name for event in drawing if not hasattr(event.fn, "zerogpu")] == []


def test_on_zerogpu_handlers_take_and_give_what_can_be_sent(zero_gpu, own_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    demo = create_demo(Models(own_pipeline, "tiny"))
    handlers = {event.api_name: event.fn for event in demo.fns.values()}
    picture = own_pipeline("a red fox", num_candidates=1, seed=1).candidates[0].image
    picture.save(tmp_path / "fox.png")
    assert "two apples" in handlers["recognise"](str(tmp_path / "fox.png"), "a fox\ntwo apples")
    with pytest.raises(gr.Error, match="Choose a picture first") as refused:
        handlers["recognise"](None, "a fox")
    assert not refused.value.print_exception
    *_, (grid, line, *_) = handlers["compare"]("a red fox", "prompt", "fox, apple", "–", "", 2, "7", "")
    assert "2 cells, seed 7" in line and Image.open(grid["value"]).width > 0
    with pytest.raises(gr.Error, match="is not in the prompt"):
        next(handlers["compare"]("a red fox", "prompt", "dog, cat", "–", "", 2, "7", ""))
    assert zero_gpu.asked == [30, 30, 120, 120]


def test_the_card_comes_without_its_front_matter(tmp_path):
    assert about.card(str(tmp_path)) == ""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n", encoding="utf-8")
    assert about.card(str(tmp_path)).strip() == "# A model"
    assert "kept out" in about.card("emoji").lower()


def test_the_table_of_parts_counts_what_is_saved(tiny_pipeline):
    table = about.sizes(tiny_pipeline)
    assert "VQModel" in table and "GPTPrior" in table and "CLIPModel" in table


@pytest.fixture(scope="module")
def client(tiny_pipeline, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    demo = create_demo(Models(tiny_pipeline, "tiny"))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    demo.close()
    patch.undo()


def joined(client, session, button, **values):
    """The last message of the event that a visitor's session starts with a button; values by the elem_id of the inputs."""
    components = {component["id"]: component["props"] for component in client.config["components"]}
    [event] = [
        event for event in client.config["dependencies"]
        if event["backend_fn"] and any(components.get(target, {}).get("elem_id") == button for target, _ in event["targets"])
    ]  # fmt: skip
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
