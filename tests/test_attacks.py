"""Strangers who name files of the server: every endpoint that takes a file, public or private, by every way there is."""

import io
import json
import os
import re
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import product
from threading import Thread

import httpx
import pytest
from PIL import Image

from dalle_core.studio.budgets import PUBLIC, Budgets
from dalle_core.studio.uploads import REFUSED
from demo import create_demo, launch_options, open_studio, public
from demo.page import MISUSED

META = {"_type": "gradio.FileData"}
SECRET = (255, 0, 255)  # a colour that no other picture has


class Server:
    """A public page in the way that a stranger sees it, over HTTP."""

    def __init__(self, url: str, cache):
        self.web = httpx.Client(base_url=f"{url}gradio_api/", timeout=60)
        self.cache = cache
        self.config = httpx.get(f"{url}config").json()
        self.info = self.web.get("info").json()["named_endpoints"]
        self.props = {component["id"]: component for component in self.config["components"]}

    def takes_file(self, component: int) -> bool:
        return "path" in json.dumps(self.props[component].get("api_info", "")) and self.props[component]["type"] != "json"

    def events(self) -> list[tuple[dict, int]]:
        """(the event, the place of the file among its inputs) of all that the server works on."""
        return [
            (event, place)
            for event in self.config["dependencies"]
            if event["backend_fn"]
            for place, component in enumerate(event["inputs"])
            if self.takes_file(component)
        ]

    def arguments(self, event: dict, place: int, file) -> list:
        data = [self.props[component]["props"].get("value") for component in event["inputs"]]
        data[place] = file
        return data

    def call(self, event: dict, place: int, files: list) -> list[str]:
        """/call/: a program; what it gets in the end for each of the files. States are left out."""
        if f"/{event['api_name']}" not in self.info:
            return []
        return [self._called(event, place, file) for file in files]

    def _called(self, event, place, file) -> str:
        data = [
            value
            for component, value in zip(event["inputs"], self.arguments(event, place, file))
            if self.props[component]["type"] != "state"
        ]
        joined = self.web.post(f"call/{event['api_name']}", json={"data": data})
        if joined.status_code != 200:
            return joined.text
        return self.web.get(f"call/{event['api_name']}/{joined.json()['event_id']}").text

    def join(self, event: dict, place: int, files: list) -> list[str]:
        """/queue/join: the page; it can start private events too. Some at a time, as the queue has a length."""
        said = []
        for some in (files[start : start + 12] for start in range(0, len(files), 12)):
            session, ids = os.urandom(8).hex(), []
            for file in some:
                body = {"data": self.arguments(event, place, file), "fn_index": event["id"], "session_hash": session}
                joined = self.web.post("queue/join", json=body)
                ids.append(joined.json().get("event_id", joined.text))
            lines = self.web.get("queue/data", params={"session_hash": session}).text.splitlines()
            messages = [json.loads(line[5:]) for line in lines if line.startswith("data: {")]
            ended = {message["event_id"]: message["output"] for message in messages if message["msg"] == "process_completed"}
            said += [json.dumps(ended.get(name, name), ensure_ascii=False, sort_keys=True) for name in ids]
        return said

    def run(self, event: dict, place: int, files: list) -> list[str]:
        """/run/: only for events that do not wait in the queue; one that does is tried once."""
        files = files if event["queue"] is False else files[:1]
        body = {"fn_index": event["id"], "session_hash": os.urandom(8).hex()}
        bodies = [body | {"data": self.arguments(event, place, file)} for file in files]
        return [self.web.post(f"run/{event['api_name']}", json=body).text for body in bodies]

    def mcp(self, method: str, **parameters) -> dict:
        answer = self.web.post(
            "mcp/",
            headers={"Accept": "application/json, text/event-stream"},
            json={"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters},
        )
        [message] = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        return message.get("result") or message["error"]


@pytest.fixture(scope="module")
def server(tiny_pipeline, tmp_path_factory):
    patch, cache = pytest.MonkeyPatch(), tmp_path_factory.mktemp("gradio")
    patch.setenv("GRADIO_TEMP_DIR", str(cache))
    patch.setattr(public, "RATE", public.parse("1000000/minute"))
    studio = open_studio(tiny_pipeline, "tiny", public=True)
    studio.budgets = Budgets(replace(PUBLIC, places=1000, running=1000))
    demo, options = create_demo(studio), launch_options(studio, public=True)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **options)
    yield Server(url, cache)
    demo.close()
    patch.undo()


@pytest.fixture(scope="module")
def targets(server, tmp_path_factory):
    """Files that are not the visitors' own, there or not, by every kind of path."""
    home = tmp_path_factory.mktemp("home")
    Image.new("RGB", (64, 64), SECRET).save(home / "secret.png")
    (home / "prompts.csv").write_text("prompt\na secret prompt\n", encoding="utf-8")
    inside = server.cache / ("d" * 64)
    inside.mkdir()
    (inside / "secret.png").symlink_to(home / "secret.png")
    (inside / "missing.png").symlink_to(home / "missing.png")
    (inside / "home").symlink_to(home)
    up = "/".join([".."] * 40)
    return [
        str(path)
        for path in (
            home / "secret.png",
            home / "missing.png",
            home / "prompts.csv",
            home,
            "/etc/passwd",
            "/etc/shadow",
            "/proc/self/environ",
            "app.py",
            "assets/missing.png",
            inside / "secret.png",
            inside / "missing.png",
            inside / "home" / "secret.png",
            f"{inside}/{up}{home}/secret.png",
            f"{inside}/{up}{home}/missing.png",
            f"{server.cache}/../{home.name}/secret.png",
            f"file://{home}/secret.png",
        )
    ]


def claims(path: str) -> list:
    """What one can say of a path. Gradio believes some of it."""
    return [
        {"path": path},
        {"path": path, "meta": META},
        {"path": path, "url": f"file://{path}"},
        {"path": path, "url": "http://127.0.0.1:9/x.png", "meta": META},
        {"path": path, "is_stream": True, "meta": META},
        {"path": path, "orig_name": "mine.png", "size": 7, "mime_type": "image/png", "meta": {"_type": "x"}},
        [{"path": path}],
        {"value": {"path": path}, "path": path},
    ]


def more_claims(path: str) -> list:
    """What is not even a file as Gradio has them."""
    return [path, [path], {"url": path}, {"url": f"file://{path}", "meta": META}, {"path": [path]}, {"path": {"path": path}}]


def test_the_endpoints_that_take_a_file_are_found(server):
    found = {event["api_name"] for event, _ in server.events()}
    assert {"complete", "reconstruct", "recognise"} <= found and len(server.events()) > 7  # the others are the page's own


QUEUED = "does not accept direct HTTP"  # Gradio's own words for an event that has to wait in the queue


def answers(server, files: list) -> list[tuple[str, str, object, str]]:
    """(way, event, file, answer) of every way, for every event that takes a file."""
    return [
        (way.__name__, event["api_name"], file, said)
        for event, place in server.events()
        for way in (server.call, server.join, server.run)
        for file, said in zip(files, way(event, place, files))
    ]


def test_no_way_opens_a_file_of_the_server_nor_tells_whether_it_is_there(server, targets):
    there, missing, *others = targets
    files = claims(there) + [{"path": missing}, {"path": missing, "meta": META}] + [{"path": path} for path in others]
    found = answers(server, files)
    assert {way for way, *_ in found} == {"call", "join", "run"} and len(found) > 200
    wrong = [answer for answer in found if REFUSED not in answer[3] and QUEUED not in answer[3]]
    wrong += [answer for answer in found if "Errno" in answer[3] or any(path in answer[3] for path in targets)]
    assert not wrong, json.dumps(wrong, indent=1)[:3000]


def test_what_is_no_file_at_all_is_refused_alike_whether_something_is_there(server, targets):
    there, missing = (answers(server, more_claims(path)) for path in targets[:2])
    assert [without_times(said) for *_, said in there] == [without_times(said) for *_, said in missing]
    said = (
        REFUSED,
        MISUSED.split(".")[0],
        QUEUED,
        "Give rows or keep",
        "A picture must be a file that was uploaded",
        "Choose a picture first",
        "There are no prompts",
    )
    wrong = [answer for answer in there if not any(sentence in answer[3] for sentence in said)]
    assert not wrong, json.dumps(wrong, indent=1)[:3000]


def without_times(text: str) -> str:
    return re.sub(r'"(event_id|duration|average_duration)": [^,}]*', "", text)


def test_another_server_of_the_same_machine_is_not_asked(server):
    asked = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())

        do_HEAD = do_POST = do_GET

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        Thread(target=other.serve_forever, daemon=True).start()
        urls = [
            f"{scheme}://{host}:{other.server_port}/x.png"
            for scheme in ("http", "HTTP")
            for host in ("127.0.0.1", "localhost", "[::1]", "0")
        ]
        found = answers(server, [claim for url in urls for claim in ({"path": url}, {"path": url, "url": url, "meta": META})])
        for tool, arguments in (("reconstruct", {}), ("recognise", {}), ("complete", {"prompt": "a fox", "rows": 1})):
            for url in urls:
                found.append(
                    ("mcp", tool, url, json.dumps(server.mcp("tools/call", name=tool, arguments={"picture": url} | arguments)))
                )
        other.shutdown()
    assert asked == []
    wrong = [answer for answer in found if ("rror" not in answer[3] and QUEUED not in answer[3]) or "Errno" in answer[3]]
    assert len(found) > 100 and not wrong, json.dumps(wrong, indent=1)[:3000]


SAMPLES = {
    "prompt": "a fox",
    "prompts": ["a fox"],
    "picture": "data:,",
    "tokens": [[0]],
    "x": "seed",
    "x_values": [1],
}  # what is required


def hidden(path: str) -> list:
    """A file as Gradio writes one, within other values."""
    file = {"path": path, "meta": META}
    return [file, [file], [[file]], {"x": file}, [{"x": [file]}], file | {"url": path, "orig_name": "mine.png"}, {"path": path}]


def test_over_mcp_no_file_of_the_server_is_uploaded_by_the_server(server, targets):
    """Gradio's MCP server is a client of its own page, and clients upload the files that are named to them."""
    there, missing, *_ = targets
    tools = server.mcp("tools/list")["tools"]
    assert len(tools) > 5
    before, refused = set(os.listdir(server.cache)), 0
    for tool in tools:
        schema = tool["inputSchema"]
        assert set(schema.get("required", [])) <= set(SAMPLES), "a sample value for the new argument, please"
        others = {name: SAMPLES[name] for name in schema.get("required", [])}
        for name in schema["properties"]:
            for claim, other in zip(hidden(there), hidden(missing)):
                calls = [{"name": tool["name"], "arguments": others | {name: file}} for file in (claim, other)]
                texts = [json.dumps(server.mcp("tools/call", **call)) for call in calls]
                refused += REFUSED in texts[0]
                texts = [text.replace(there, "PATH").replace(missing, "PATH") for text in texts]
                assert texts[0] == texts[1] and '"isError": true' in texts[0] and "Errno" not in texts[0], (
                    tool["name"],
                    name,
                    texts,
                )
    assert set(os.listdir(server.cache)) == before and refused > 5


def test_over_mcp_a_path_is_not_an_address(server, targets):
    there, missing = targets[:2]
    names = {
        tool["name"]: [name for name, schema in tool["inputSchema"]["properties"].items() if "Gradio File" in str(schema)]
        for tool in server.mcp("tools/list")["tools"]
    }
    pairs = [(tool, name) for tool in names for name in names[tool]]
    assert len(pairs) >= 3
    for (tool, name), form in product(pairs, ("{}", "file://{}", "http://127.0.0.1:9{}")):
        texts = [
            json.dumps(server.mcp("tools/call", name=tool, arguments={name: form.format(path)})) for path in (there, missing)
        ]
        texts = [text.replace(there, "PATH").replace(missing, "PATH") for text in texts]
        assert texts[0] == texts[1] and '"isError": true' in texts[0], texts


def test_a_visitor_s_own_upload_is_taken_with_and_without_gradio_s_mark(server):
    colours = server.web.post("upload", files={"files": ("a.png", png())}).json()
    reconstruct = next((event, place) for event, place in server.events() if event["api_name"] == "reconstruct")
    for file in ({"path": colours[0]}, {"path": colours[0], "meta": META, "orig_name": "a.png"}):
        [said] = server.call(*reconstruct, [file])
        assert "event: complete" in said


def png() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    return file.getvalue()
