"""The endpoints, as programs and assistants meet them: a launched page, over HTTP, gradio_client and MCP."""

import base64
import io
import json
import re
import subprocess
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from dalle_core import InputError
from dalle_core.pictures import png
from dalle_core.pipeline import Step
from dalle_core.request import MAX_PROMPT, DrawingRequest
from dalle_core.studio import fetch
from dalle_core.studio.budgets import Budget, Budgets
from dalle_core.vocabulary import Vocabulary
from demo import create_demo, launch_options, open_studio

MANUAL = Path(__file__).parent.parent / "docs" / "api.md"
NAMES = {"generate", "complete", "reconstruct", "decode", "recognise", "describe", "compare", "augment", "model"}
NOWHERE = "an http or https address that everybody can reach"


def launched(pipe, **options):
    studio = open_studio(pipe, "tiny")
    demo = create_demo(studio)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio, login="auth" in options), **options)
    return demo, url


@pytest.fixture(scope="module")
def page(tiny_pipeline, tmp_path_factory):
    """The page's address."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    demo, url = launched(tiny_pipeline)
    yield url
    demo.close()
    patch.undo()


@pytest.fixture(scope="module")
def client(page):
    return Client(page, verbose=False)


def joined(page, name, body):
    """The address of an event's stream, as curl finds it."""
    answer = httpx.post(f"{page}gradio_api/call/{name}", json=body).raise_for_status()
    return f"{page}gradio_api/call/{name.removeprefix('v2/')}/{answer.json()['event_id']}"


def streamed(page, name, **arguments):
    """The (event, data) pairs that curl sees."""
    text = httpx.get(joined(page, f"v2/{name}", arguments), timeout=60).text
    events = [event.split("\n") for event in text.strip().split("\n\n")]
    return [(first.removeprefix("event: "), json.loads(second.removeprefix("data: "))) for first, second in events]


def said(page, name, **arguments):
    """The sentence of an error."""
    event, data = streamed(page, name, **arguments)[-1]
    assert event == "error", data
    return data["error"]


def mcp(page, method, **parameters):
    answer = httpx.post(
        f"{page}gradio_api/mcp/",
        headers={"Accept": "application/json, text/event-stream"},
        timeout=60,
        json={"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters},
    )
    [message] = [json.loads(line[5:]) for line in answer.raise_for_status().text.splitlines() if line.startswith("data: {")]
    return message["result"]


def tool(page, name, **arguments):
    answer = mcp(page, "tools/call", name=name, arguments=arguments)
    assert not answer["isError"], answer
    return json.loads(answer["content"][0]["text"])


def picture(url):
    return Image.open(io.BytesIO(httpx.get(url).raise_for_status().content))


@pytest.fixture(scope="module")
def fox(tiny_pipeline, tmp_path_factory):
    """A picture's file, without a recipe."""
    path = tmp_path_factory.mktemp("fox") / "fox.png"
    tiny_pipeline("a red fox", num_candidates=1, seed=1).candidates[0].image.save(path)
    return path


def uploaded(page, path):
    with open(path, "rb") as file:
        [found] = httpx.post(f"{page}gradio_api/upload", files={"files": (path.name, file)}).raise_for_status().json()
    return found


# ---------------------------------------------------------------- one request, four ways


def test_all_four_ways_draw_the_same(page, client, tiny_pipeline, tmp_path):
    asked = {"prompt": "a red fox", "num_candidates": 3, "seed": 5, "guidance_scale": 2.0}
    *_, last = open_studio(tiny_pipeline, "tiny").draw("someone", DrawingRequest(**asked))
    expected = [one.drawn.tokens.tolist() for one in last.pictures]
    by_curl = streamed(page, "generate", **asked)[-1][1][0]
    by_position = httpx.get(joined(page, "generate", {"data": ["a red fox", "", 3, 5, None, None, None, 2.0, 0]})).text
    by_client, by_mcp = client.predict(**asked, api_name="/generate"), tool(page, "generate", **asked)
    for found in (by_curl, by_client, by_mcp, json.loads(by_position.split("data: ")[-1])[0]):
        assert [one["tokens"] for one in found["candidates"]] == expected
        assert found["status"] == "done" and found["settings"] == asked | {
            "negative_prompt": "",
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "model": "tiny",
            "revision": "",
        }
        scores = [one["score"] for one in found["candidates"]]
        assert scores == sorted(scores, reverse=True) == [one.drawn.score for one in last.pictures]
        best, drawn = found["candidates"][0], picture(found["candidates"][0]["url"])
        assert best["url"].startswith(page) and np.array_equal(np.array(drawn), np.array(last.pictures[0].image()))
        recipe = json.loads(drawn.text["dalle"])
        assert recipe["tokens"] == best["tokens"] and (recipe["seed"], recipe["index"]) == (best["seed"], best["index"])


def test_progress_is_streamed_in_events_of_one_kind(page, client):
    events = streamed(page, "generate", prompt="a red fox", num_candidates=2, seed=5, preview_every=4)
    assert [event for event, _ in events[:-1]] == ["generating"] * (len(events) - 1) and events[-1][0] == "complete"
    values = [value for _, [value] in events]
    assert {frozenset(value) for value in values} == {frozenset(values[0])}
    assert {value["status"] for value in values[:-2]} == {"drawing"} and values[-2] == values[-1]
    assert [len(value["previews"]) for value in values if value["previews"]] == [2, 2, 2]
    content = base64.b64decode(values[1]["previews"][0].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (64, 64)
    indices = [value["index"] for value in values]
    assert indices == sorted(indices) and values[-1]["index"] == values[-1]["total"] == 32
    assert all(value["seconds_left"] >= 0 for value in values if value["index"])
    job = client.submit("a red fox", num_candidates=2, seed=5, preview_every=4, api_name="/generate")
    assert [value["index"] for value in job] == indices[:-1]


def test_a_seed_is_a_number_or_digits(page, client):
    large = 2**53 + 1  # JavaScript's numbers cannot say it
    first, second = (client.predict("a fox", num_candidates=1, seed=seed, api_name="/generate") for seed in (large, str(large)))
    assert first["candidates"][0]["tokens"] == second["candidates"][0]["tokens"]
    assert first["candidates"][0]["seed"] == second["settings"]["seed"] == large
    assert client.predict("a fox", num_candidates=1, api_name="/generate")["settings"]["seed"] >= 0


def test_what_the_model_does_not_read_is_said(client):
    found = client.predict("a fox and a banana on a purple background", num_candidates=1, api_name="/generate")
    assert found["unread"]["prompt"].endswith("background")


def test_words_that_the_model_does_not_know_are_named(client, tiny_pipeline, monkeypatch):
    assert client.predict("a zebra", num_candidates=1, api_name="/generate")["unknown"] == {}  # it names no vocabulary
    known = Vocabulary.of({"words": "fox red", "near": {"vixen": "fox"}})
    monkeypatch.setattr(tiny_pipeline, "_vocabulary", known)
    found = client.predict("a vixen", num_candidates=1, api_name="/generate")
    assert found["unknown"] == {"vixen": ["fox"]} and found["status"] == "done"


def test_people_who_draw_at_once_each_get_their_own(client, tiny_pipeline):
    jobs = [client.submit("a red fox", num_candidates=3, seed=seed, api_name="/generate") for seed in range(4)]
    for seed, job in enumerate(jobs):
        expected = tiny_pipeline("a red fox", num_candidates=3, seed=seed)
        assert [one["tokens"] for one in job.result(60)["candidates"]] == [one.tokens.tolist() for one in expected.candidates]


def test_a_million_characters_and_other_scripts(client):
    for prompt in ("a fox and a banana " * 50_000, "🦊 a fox", "a fox ثعلب", "a\x00fox"):
        found = client.predict(prompt, num_candidates=1, api_name="/generate")
        assert len(found["candidates"]) == 1 and len(found["settings"]["prompt"]) <= MAX_PROMPT


@pytest.mark.parametrize("way", ["curl", "gradio_client", "MCP"])
def test_the_manual_s_snippets_draw_the_picture_of_its_python(page, saved, tmp_path, monkeypatch, capsys, way):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```(python|sh)\n(.*?)```", MANUAL.read_text(encoding="utf-8"), re.S)
    by_pipe, by_curl, by_client, by_mcp = (code for _, code in snippets)
    exec(by_pipe.replace('"emoji"', repr(str(saved))), {})
    assert "of 64" in capsys.readouterr().out
    code = {"curl": by_curl, "gradio_client": by_client, "MCP": by_mcp}[way].replace("http://127.0.0.1:7860", page.rstrip("/"))
    if way == "gradio_client":
        exec(code, {})
        said = capsys.readouterr().out
        assert "64 of 64" in said
    else:
        said = subprocess.run(["bash", "-c", code], capture_output=True, encoding="utf-8", timeout=60).stdout
        assert ("event: complete" in said) == (way == "curl")
    url = re.search(rf"{page}gradio_api/file=[^\s\\\"]+", said)[0]
    assert np.array_equal(np.array(picture(url)), np.array(Image.open("fox.png")))


# ---------------------------------------------------------------- the other endpoints


def test_the_rows_at_the_top_stay(page, client, tiny_pipeline, fox):
    tokens = tiny_pipeline.encode(Image.open(fox)).tolist()
    keep = [[True] * 4] * 2 + [[False] * 4] * 2
    asked = {"prompt": "two apples", "num_candidates": 2, "seed": 5}
    expected = tiny_pipeline(**asked, image_tokens=np.array(tokens), keep=np.array(keep)).candidates
    ways = [
        client.predict(picture=handle_file(fox), rows=2, **asked, api_name="/complete"),
        client.predict(tokens=tokens, keep=keep, **asked, api_name="/complete"),
        streamed(page, "complete", picture={"path": uploaded(page, fox)}, keep=keep, **asked)[-1][1][0],
        streamed(page, "complete", picture=uploaded(page, fox), rows=2, **asked)[-1][1][0],
        streamed(
            page, "complete", picture="data:image/png;base64," + base64.b64encode(fox.read_bytes()).decode(), rows=2, **asked
        )[-1][1][0],
    ]
    for found in ways:
        assert [one["tokens"] for one in found["candidates"]] == [one.tokens.tolist() for one in expected]
        assert found["candidates"][0]["tokens"][:2] == tokens[:2]


def test_a_picture_goes_from_one_tool_to_the_next_by_its_address(page):
    drawn = tool(page, "generate", prompt="a red fox", num_candidates=1, seed=5)["candidates"][0]
    done = tool(page, "complete", prompt="two apples", picture=drawn["url"], rows=1, num_candidates=1)
    assert done["candidates"][0]["tokens"][0] == drawn["tokens"][0]  # its very own tokens: the file has its recipe
    found = tool(page, "recognise", picture=drawn["url"], labels=["a fox", "two apples"])
    assert {one["label"] for one in found} == {"a fox", "two apples"}


def test_reconstruct_and_decode(page, client, tiny_pipeline, fox):
    expected = tiny_pipeline.decode(tiny_pipeline.encode(Image.open(fox)))
    data = "data:image/png;base64," + base64.b64encode(fox.read_bytes()).decode()
    by_client, by_mcp = client.predict(handle_file(fox), api_name="/reconstruct"), tool(page, "reconstruct", picture=data)
    for found in (by_client, by_mcp):
        assert np.array_equal(np.array(picture(found["url"])), np.array(expected)) and 0 < found["psnr"] < 109
        decoded = client.predict(found["tokens"], api_name="/decode")
        assert np.array_equal(np.array(picture(decoded["url"])), np.array(expected))


def test_recognise_ranks_labels(page, client, tiny_pipeline, fox):
    expected = tiny_pipeline.recognise(Image.open(fox), ["a fox", "two apples"])
    found = client.predict(handle_file(fox), ["a fox", "two apples"], api_name="/recognise")
    assert [(one["label"], one["score"]) for one in found] == [(one.text, one.score) for one in expected]
    assert abs(sum(one["probability"] for one in found) - 1) < 1e-4 and found[0]["log_likelihood"] < 0


def test_compare_draws_a_grid(page, client, tiny_pipeline):
    asked = {"x": "prompt", "x_values": ["fox", "banana"], "y": "temperature", "y_values": [0.5, "1"]}
    events = list(client.submit("a red fox", **asked, num_candidates=2, seed=5, api_name="/compare"))
    assert [len(event["cells"]) for event in events if event["status"] == "drawing"] == [0, 1, 1, 2, 2, 3, 3, 4]
    last = events[-1]
    assert [(cell["column"], cell["row"]) for cell in last["cells"]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    for cell in last["cells"]:
        used = {name: value for name, value in cell["arguments"].items() if name not in ("model", "revision")}
        assert used["prompt"] == f"a red {asked['x_values'][cell['column']]}" and used["temperature"] == (0.5, 1)[cell["row"]]
        best = tiny_pipeline(**used).candidates[0]
        assert best.score == cell["score"] and np.array_equal(np.array(picture(cell["url"])), np.array(best.image))
    scores = {(cell["column"], cell["row"]): cell["score"] for cell in last["cells"]}
    assert tuple(last["best"]) == max(scores, key=scores.get) and picture(last["url"]).width > 300


def test_augment_draws_a_data_set(page, client):
    events = list(client.submit(["a red fox", "two apples"], count=3, seed=7, api_name="/augment"))
    last = events[-1]
    assert last["status"] == "done" and (last["drawn"], last["kept"], last["total"], last["seed"]) == (6, 6, 6, 7)
    assert all(set(event) == set(last) and event["url"] is None for event in events[:-1])
    with zipfile.ZipFile(io.BytesIO(httpx.get(last["url"]).content)) as zip_:
        assert sum(name.endswith(".png") for name in zip_.namelist()) == 6
    none = client.predict(["a red fox"], count=1, threshold=1.0, api_name="/augment")
    assert none["kept"] == 0 and none["url"] is None


def test_the_model_says_what_it_is(page, client):
    found = client.predict(api_name="/model")
    assert found == tool(page, "model") and (found["name"], found["grid_size"], found["state"]) == ("tiny", 4, "ready")
    assert found["limits"]["num_candidates"] == [1, 64] and found["defaults"]["num_candidates"] == 4


# ---------------------------------------------------------------- what is shown of the endpoints


def test_all_endpoints_are_tools_with_typed_and_described_arguments(page, client):
    assert {name.strip("/") for name in client.view_api(return_format="dict", print_info=False)["named_endpoints"]} == NAMES
    tools = {tool["name"]: tool for tool in mcp(page, "tools/list")["tools"]}
    assert set(tools) == NAMES == {tool["name"] for tool in httpx.get(f"{page}gradio_api/mcp/schema").json()}
    for name, described in tools.items():
        assert len(described["description"]) > 40, name
        for argument, schema in described["inputSchema"]["properties"].items():
            assert len(schema["description"]) > 10 and {"type", "anyOf", "oneOf", "enum"} & set(schema), (name, argument)
    generate = tools["generate"]["inputSchema"]
    assert generate["required"] == ["prompt"] and generate["properties"]["prompt"]["type"] == "string"
    assert {"type": "integer"} in generate["properties"]["num_candidates"]["oneOf"]
    for name in ("complete", "reconstruct", "recognise", "describe"):
        file = tools[name]["inputSchema"]["properties"]["picture"]
        assert set(file) == {"type", "format", "description"} and file["type"] == "string" and "url" in file["format"]
    assert "guidance_scale" in tools["compare"]["inputSchema"]["properties"]["x"]["enum"]


# ---------------------------------------------------------------- bad input


GRID = [[1] * 4] * 4
WHITE = "data:image/png;base64," + base64.b64encode(png(Image.new("RGB", (64, 64), "white"), None)).decode()
DEEP = json.loads("[" * 200 + "]" * 200)
WRONG = [
    ("generate", {"prompt": ""}, "prompt is empty"),
    ("generate", {"prompt": "\x00"}, "prompt is empty"),
    ("generate", {"prompt": "Ж"}, "none of the characters"),
    ("generate", {"prompt": 7}, "prompt must be text"),
    ("generate", {"prompt": None}, "prompt must be text"),
    ("generate", {"prompt": DEEP}, "prompt must be text"),
    ("generate", {"prompt": "a", "negative_prompt": ["a"]}, "negative_prompt must be text"),
    ("generate", {"prompt": "a", "num_candidates": 0}, "num_candidates is '0'; it must be a whole number from 1 to 64."),
    ("generate", {"prompt": "a", "num_candidates": 10**9}, "from 1 to 64"),
    ("generate", {"prompt": "a", "num_candidates": 1.5}, "num_candidates is '1.5'"),
    ("generate", {"prompt": "a", "num_candidates": True}, "num_candidates is 'True'"),
    ("generate", {"prompt": "a", "num_candidates": {"a": 1}}, "num_candidates is"),
    ("generate", {"prompt": "a", "seed": "seven"}, "seed is 'seven'"),
    ("generate", {"prompt": "a", "seed": -1}, "seed is '-1'"),
    ("generate", {"prompt": "a", "seed": 2**63}, "9223372036854775807"),
    ("generate", {"prompt": "a", "seed": "9" * 10**5}, "seed is"),
    ("generate", {"prompt": "a", "temperature": DEEP}, "temperature is"),
    ("generate", {"prompt": "a", "temperature": -1}, "0 to 100"),
    ("generate", {"prompt": "a", "top_p": 0}, "above 0 up to 1"),
    ("generate", {"prompt": "a", "top_k": [0] * 10**5}, "top_k is"),
    ("generate", {"prompt": "a", "preview_every": -1}, "preview_every is '-1'"),
    ("generate", {"prompt": "a", "preview_every": "x"}, "preview_every is 'x'"),
    ("describe", {"picture": WHITE}, "does not answer questions: load Janus-Pro"),
    ("complete", {"prompt": "a", "rows": 2}, "Give a picture or its tokens"),
    ("complete", {"prompt": "a", "tokens": GRID}, "Give rows or keep"),
    ("complete", {"prompt": "a", "tokens": GRID, "rows": 0}, "rows is '0'; it must be a whole number from 1 to 3."),
    ("complete", {"prompt": "a", "tokens": GRID, "rows": "x"}, "rows is 'x'"),
    ("complete", {"prompt": "a", "tokens": GRID, "keep": GRID}, "keep must be boolean"),
    ("complete", {"prompt": "a", "tokens": GRID, "keep": [[True]]}, "keep has the shape"),
    ("complete", {"prompt": "a", "tokens": [[64] * 4] * 4, "rows": 1}, "0 to 63"),
    ("complete", {"prompt": "a", "tokens": DEEP, "rows": 1}, "grid of numbers"),
    ("complete", {"prompt": "a", "tokens": {}, "rows": 1}, "grid of numbers"),
    ("decode", {"tokens": "x"}, "grid of numbers"),
    ("decode", {"tokens": [[0.5] * 4] * 4}, "whole numbers"),
    ("decode", {"tokens": [[10**30] * 4] * 4}, "grid of numbers"),
    ("decode", {"tokens": None}, "grid of numbers"),
    ("decode", {"tokens": [[0] * 1000] * 1000}, "shape"),
    ("decode", {"tokens": [[1], [1, 2]]}, "grid of numbers"),
    ("recognise", {"picture": None}, "A picture must be a file"),
    ("recognise", {"picture": [1]}, "A picture must be a file"),
    ("recognise", {"picture": {"path": 7}}, "cannot be read here"),
    ("recognise", {"picture": ""}, "Choose a picture first"),
    ("recognise", {"picture": "data:image/png;base64,*"}, "data: URL is damaged"),
    ("recognise", {"picture": "data:,"}, "not a picture"),
    ("recognise", {"picture": "x", "labels": "a fox"}, "labels must be a list of texts"),
    ("recognise", {"picture": "x", "labels": [["a"]]}, "Each of the labels must be text"),
    ("recognise", {"picture": "x", "labels": ["a"] * 10**5}, "2,000 are the most"),
    ("compare", {"prompt": "a fox", "x": "size", "x_values": [1]}, "'size' cannot be varied"),
    ("compare", {"prompt": "a fox", "x": ["seed"], "x_values": [1]}, "cannot be varied"),
    ("compare", {"prompt": "a fox", "x": "seed", "x_values": 7}, "must be a list"),
    ("compare", {"prompt": "a fox", "x": "seed", "x_values": []}, "seed has no values"),
    ("compare", {"prompt": "a fox", "x": "seed", "x_values": [1] * 65}, "64"),
    ("compare", {"prompt": "a fox", "x": "seed", "x_values": [None, DEEP]}, "seed is"),
    ("compare", {"prompt": "a fox", "x": "prompt", "x_values": ["dog", "cat"]}, "is not in the prompt"),
    ("compare", {"prompt": "a fox", "x": "seed", "x_values": [1], "y": "seed", "y_values": [2]}, "Both axes vary seed"),
    ("compare", {"prompt": "a fox", "x": "model", "x_values": ["/etc"]}, "is not one of this page's models"),
    ("augment", {"prompts": "a fox"}, "prompts must be a list of texts"),
    ("augment", {"prompts": []}, "no prompts"),
    ("augment", {"prompts": [7]}, "must be text"),
    ("augment", {"prompts": ["a fox"], "count": 0}, "count is '0'"),
    ("augment", {"prompts": ["a fox"] * 201}, "Up to 200 prompts"),
    ("augment", {"prompts": ["a fox"], "count": 1001}, "1,000 pictures"),
    ("augment", {"prompts": ["a fox"], "threshold": 2}, "threshold is '2'"),
    ("augment", {"prompts": ["a fox"], "seed": "x"}, "seed is"),
]


@pytest.mark.parametrize("name, arguments, sentence", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(page, name, arguments, sentence):
    assert sentence in said(page, name, **arguments)


@pytest.mark.parametrize("body", [{"data": ["a fox"]}, {"data": []}, {"data": [[[1]] * 9]}])
def test_too_few_values_are_a_sentence(page, body):
    text = httpx.get(joined(page, "generate", body), timeout=60).text
    assert "event: error" in text and "This is not what is asked for here." in text


def test_an_argument_that_there_is_not_is_a_sentence(page):
    answer = httpx.post(f"{page}gradio_api/call/v2/generate", json={"prompt": "a fox", "size": 7})
    assert answer.status_code >= 400 and "could not be understood" in answer.text


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("name", ["num_candidates", "temperature", "top_k", "seed", "preview_every"])
def test_numbers_that_json_has_not_are_refused(page, name, value):
    body = f'{{"prompt": "a red fox", "{name}": {value}}}'
    answer = httpx.post(f"{page}gradio_api/call/v2/generate", content=body, headers={"Content-Type": "application/json"})
    text = httpx.get(f"{page}gradio_api/call/generate/{answer.json()['event_id']}", timeout=60).text
    assert f"{name} is '" in text and "event: error" in text


def test_what_nobody_expected_gets_a_sentence_and_the_log_the_traceback(page, client, tiny_pipeline, monkeypatch, caplog):
    def broken(*_, **__):
        yield from ()
        raise TypeError("a secret of the server")

    with monkeypatch.context() as patch:
        patch.setattr(tiny_pipeline, "stream", broken)
        sentence = said(page, "generate", prompt="a red fox")
    assert "Drawing failed" in sentence and "secret" not in sentence and "a secret of the server" in caplog.text
    assert len(client.predict("a red fox", num_candidates=1, api_name="/generate")["candidates"]) == 1


def test_an_assistant_and_a_client_get_the_sentence_too(page, client):
    with pytest.raises(AppError, match="num_candidates is '0'"):
        client.predict("a fox", num_candidates=0, api_name="/generate")
    answer = mcp(page, "tools/call", name="generate", arguments={"prompt": "a fox", "num_candidates": 0})
    assert answer["isError"] and "num_candidates is '0'; it must be a whole number" in answer["content"][0]["text"]


def test_a_program_cannot_name_a_file_of_the_server(page, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    for path in (
        str(tmp_path / "secret.png"),
        "/etc/passwd",
        "/nope",
        "app.py",
        "file:///etc/passwd",
        f"{page}gradio_api/file=/etc/passwd",
    ):
        for claim in (path, {"path": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}, {"path": path, "meta": 3}):
            sentence = said(page, "recognise", picture=claim, labels=["a"])
            assert "cannot be read here" in sentence or "This is not what is asked for" in sentence, (claim, sentence)
        answer = mcp(page, "tools/call", name="recognise", arguments={"picture": path, "labels": ["a"]})
        assert answer["isError"]


def test_what_is_no_picture_is_a_sentence(page, tmp_path):
    (tmp_path / "no.png").write_text("this is text", encoding="utf-8")
    assert "not a picture" in said(page, "recognise", picture=uploaded(page, tmp_path / "no.png"), labels=["a"])


# ---------------------------------------------------------------- addresses of the web


@pytest.fixture
def web(fox):
    """A server of the private network, which remembers what it was asked for; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path[4:])
                self.end_headers()
                return
            self.send_response(404 if self.path == "/missing" else 200)
            self.end_headers()
            self.wfile.write(fox.read_bytes())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_assistant_s_picture_is_not_fetched_from_the_private_network(page, web):
    port = web.server_port
    for url in (
        f"http://127.0.0.1:{port}/x.png",
        f"http://localhost:{port}/",
        f"http://[::1]:{port}/",
        f"http://0.0.0.0:{port}/",
    ):
        answer = mcp(page, "tools/call", name="recognise", arguments={"picture": url, "labels": ["a"]})
        assert answer["isError"] and NOWHERE in answer["content"][0]["text"]
        file = {"path": url, "meta": {"_type": "gradio.FileData"}}
        assert NOWHERE in said(page, "recognise", picture=file, labels=["a"])
        assert "prompt must be text" in said(page, "generate", prompt=file)  # no other argument is fetched at all
    assert web.asked == []


@pytest.mark.parametrize(
    "found",
    [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "100.100.100.200",
        "192.168.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fc00::1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
    ],
)
def test_a_name_that_means_a_private_address_is_refused(monkeypatch, found):
    monkeypatch.setattr(fetch.asyncio.BaseEventLoop, "getaddrinfo", resolver("93.184.215.14", found))
    with pytest.raises(InputError, match=NOWHERE):
        fetch.fetched("http://name.example/x.png")


def resolver(*addresses):
    async def getaddrinfo(self, host, *_, **__):
        return [(0, 0, 0, "", (address, 0)) for address in addresses]

    return getaddrinfo


@pytest.fixture
def public(monkeypatch, web):
    """Makes one name of the test's server public; its address, up to the path."""
    judged = fetch.public_address

    async def public_address(host):
        return "127.0.0.1" if host == "name.example" else await judged(host)

    monkeypatch.setattr(fetch, "public_address", public_address)
    return f"http://name.example:{web.server_port}"


def test_a_picture_of_the_web_is_fetched(page, public, fox, monkeypatch):
    assert fetch.fetched(f"{public}/x.png") == fetch.fetched(f"{public}/to//x.png") == fox.read_bytes()
    assert len(tool(page, "recognise", picture=f"{public}/x.png", labels=["a fox", "two apples"])) == 2
    monkeypatch.setattr(fetch, "MOST", 100)
    with pytest.raises(InputError, match="larger than"):
        fetch.fetched(f"{public}/x.png")


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("/missing", "answered 404"),
        ("/to/http://127.0.0.1:1/", NOWHERE),
        ("/to/file:///etc/passwd", NOWHERE),
        ("/to//to//to//to//to//x", "too many"),
    ],
)
def test_where_an_address_leads_is_judged_as_well(public, path, sentence):
    with pytest.raises(InputError, match=sentence):
        fetch.fetched(public + path)


@pytest.mark.parametrize(
    "url", ["http://", "http:///x", "http://[", "http://a b/", "http://nowhere.invalid/", "ftp://name.example/", "http://%00/"]
)
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InputError, match=NOWHERE):
        fetch.fetched(url)


# ---------------------------------------------------------------- stopping, sharing, logging in


@pytest.fixture
def endless(tiny_pipeline, monkeypatch):
    """A drawing that goes on until it is stopped, and then says so."""
    stopped = threading.Event()

    def stream(*_, **__):
        try:
            for index in range(10**6):
                time.sleep(0.01)
                yield Step(index + 1, 10**6)
        finally:
            stopped.set()

    monkeypatch.setattr(tiny_pipeline, "stream", stream)
    return stopped


def test_closing_the_stream_stops_the_work(page, endless):
    with httpx.stream("GET", joined(page, "v2/generate", {"prompt": "a red fox"}), timeout=60) as stream:
        for line in stream.iter_lines():
            if '"index": 0' not in line and '"drawing"' in line:
                break
        assert not endless.is_set()
    assert endless.wait(20)


def test_a_client_s_cancel_stops_the_work(client, endless):
    job = client.submit("a red fox", api_name="/generate")
    while not job.outputs():
        time.sleep(0.05)
    assert not endless.is_set()
    job.cancel()
    assert endless.wait(20)


def test_endpoints_share_the_bound_of_the_page(tiny_pipeline):
    demo = create_demo(open_studio(tiny_pipeline, "tiny"), together=3)
    public = {fn.api_name: fn for fn in demo.fns.values() if fn.api_visibility == "public"}
    assert set(public) == NAMES
    assert {fn.concurrency_id for name, fn in public.items() if name != "model"} == {"sampling"}
    assert {fn.concurrency_limit for fn in demo.fns.values() if fn.concurrency_id == "sampling"} == {3}


def test_a_visitor_s_budget_is_one_for_the_page_and_for_programs(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    studio = open_studio(tiny_pipeline, "tiny")
    studio.budgets = Budgets(Budget(candidates=4))
    demo = create_demo(studio)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio))
    try:
        assert "A visitor may ask for 4 candidates" in said(url, "generate", prompt="a fox", num_candidates=5)
        assert tool(url, "generate", prompt="a fox", num_candidates=3)["status"] == "done"
        assert "yours are used up" in said(url, "generate", prompt="a fox", num_candidates=2)
    finally:
        demo.close()


def test_a_login_is_asked_for(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    demo, url = launched(tiny_pipeline, auth=("me", "secret"))
    try:
        for name in NAMES:
            for version in ("", "v2/"):
                assert httpx.post(f"{url}gradio_api/call/{version}{name}", json={"data": []}).status_code == 401
        found = Client(url, auth=("me", "secret"), verbose=False).predict("a fox", num_candidates=1, api_name="/generate")
        address = found["candidates"][0]["url"]
        assert httpx.get(address).status_code == 401
    finally:
        demo.close()


@pytest.mark.parametrize(
    "headers, begins",
    [
        ({}, None),
        ({"X-Forwarded-Host": "pictures.example", "X-Forwarded-Proto": "https"}, "https://pictures.example/gradio_api/file="),
    ],
)
def test_addresses_are_those_of_the_way_that_the_caller_took(page, headers, begins):
    answer = httpx.post(f"{page}gradio_api/call/v2/decode", json={"tokens": GRID}, headers=headers)
    text = httpx.get(f"{page}gradio_api/call/decode/{answer.json()['event_id']}", timeout=60).text
    assert f'"url": "{begins or page + "gradio_api/file="}' in text
    mcp_answer = httpx.post(
        f"{page}gradio_api/mcp/",
        headers={"Accept": "application/json, text/event-stream"} | headers,
        timeout=60,
        json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "decode", "arguments": {"tokens": GRID}}},
    )
    assert (begins or page + "gradio_api/file=") in mcp_answer.text
