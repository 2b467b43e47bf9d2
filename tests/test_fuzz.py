"""Whatever JSON a program sends to the public endpoints, it gets a result or a sentence, and the server lives on."""

import io
import json
import random
import re
import secrets
import time
from dataclasses import replace

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle_core.studio.budgets import PUBLIC, Budgets
from demo import create_demo, launch_options, open_studio, public

SECONDS = 10  # that each kind of examples takes, more or less

numbers = (
    st.integers() | st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([-1, 0, 0.5, 2**31, 2**63, 2**64, 1e308])
)
texts = st.text(max_size=40) | st.sampled_from(
    [
        "",
        "0",
        "-1",
        "nan",
        "1e999",
        "9" * 30,
        "../../etc/passwd",
        "/etc/passwd",
        "\0",
        "\ud7ff",
        "a" * 30_000,
        "a\n" * 3_000,
        "a,b,,c",
        "<b>",
        "prompt,count\na,2",
        "NaN",
        "inf",
        "１２",
        "–",
        "None",
        "[]",
        "seed",
        "prompt",
        "top_p",
        "temperature",
    ]
)
scalars = st.none() | st.booleans() | numbers | texts
keys = st.sampled_from(["path", "url", "meta", "__type__", "value", "x"])
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


@pytest.fixture(scope="module")
def page(tiny_pipeline, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    patch.setattr(public, "RATE", public.parse("1000000/minute"))
    studio = open_studio(tiny_pipeline, "tiny", public=True)
    budget = replace(PUBLIC, places=1000, running=1000, candidates=None, previews=None, labels=None, seconds=None)
    studio.budgets = Budgets(budget)
    demo = create_demo(studio)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio, public=True))
    with httpx.Client(base_url=f"{url}gradio_api/", timeout=60) as web:
        yield web
    demo.close()
    patch.undo()


@pytest.fixture(scope="module")
def picture(page) -> dict:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    [path] = page.post("upload", files={"files": ("a.png", file.getvalue())}).json()
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


USUAL = {
    "prompt": "a red fox",
    "prompts": ["a red fox"],
    "num_candidates": 1,
    "count": 1,
    "rows": 2,
    "tokens": [[1, 2, 3, 4]] * 4,
    "labels": ["a fox", "two apples"],
    "x": "seed",
    "x_values": [1, 2],
}


def usual(endpoint: dict, picture: dict) -> list:
    """Arguments that are as they should be, and make little work."""
    names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
    found = [USUAL.get(name, parameter.get("parameter_default")) for name, parameter in zip(names, endpoint["parameters"])]
    if "picture" in names:
        found[names.index("picture")] = picture
        if "tokens" in names:  # the other form of it
            found[names.index("tokens")] = None
    return found


def ask(page, name: str, data: list) -> tuple[int, str, object]:
    """(HTTP status, how it ended, what was said)"""
    body = json.dumps({"data": data})  # NaN and infinities too, which JSON has not, but Python reads
    joined = page.post(f"call{name}", content=body, headers={"Content-Type": "application/json"})
    if joined.status_code != 200:
        return joined.status_code, "refused", joined.json().get("detail")
    with page.stream("GET", f"call{name}/{joined.json()['event_id']}") as stream:
        lines = [line for line in stream.iter_lines() if line]
    event, said = lines[-2].removeprefix("event: "), lines[-1].removeprefix("data: ")
    return 200, event, json.loads(said)


def wrong(status: int, event: str, said) -> str | None:
    """What is wrong with an answer; None: nothing."""
    if event == "complete":
        return None
    text = said.get("error") if isinstance(said, dict) else said
    if status == 422 and isinstance(said, list):  # the body is not what any endpoint takes
        return None
    if status not in (200, 400, 413):
        return f"status {status}: {text}"
    if not isinstance(text, str) or len(text.split()) < 3 or text.strip()[-1] not in ".?!”":
        return f"no sentence: {text!r}"
    if "server's log" in text:
        return "the handler raised what nobody expected"
    if re.search(r"Traceback|\bErrno\b|object at 0x|<class|site-packages|/(tmp|home|work|root|usr)/|Error:", text):
        return f"tells about the server: {text}"
    return None


def test_arbitrary_json_gets_a_result_or_a_sentence(page, picture):
    info = page.get("info").json()["named_endpoints"]
    assert len(info) > 5
    found, counts, end = {}, dict.fromkeys(info, 0), time.monotonic() + SECONDS

    @settings(max_examples=300, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(name=st.sampled_from(sorted(name for name in info if info[name]["parameters"])), data=st.data())
    def fuzz(name, data):
        values = usual(info[name], picture)
        for place in data.draw(st.sets(st.integers(0, len(values) - 1), min_size=1, max_size=3)):
            values[place] = data.draw(anything)
        if data.draw(st.integers(0, 19)) == 0:  # too few, too many, or something else altogether
            values = data.draw(st.lists(anything, max_size=20))
        if time.monotonic() > end:
            return
        counts[name] += 1
        if problem := wrong(*ask(page, name, values)):
            found.setdefault((name, problem[:200]), values)

    fuzz()
    report = "\n".join(f"{name}: {problem}\n    {json.dumps(values)[:400]}" for (name, problem), values in found.items())
    assert not found, f"{sum(counts.values())} requests:\n{report}"
    assert sum(counts.values()) >= 20 and sum(count > 0 for count in counts.values()) > 4, counts


def test_every_argument_takes_what_it_should_not(page, picture):
    """Each argument of each endpoint on its own, with values of other types; those that draw in spite of it take the time."""
    info = page.get("info").json()["named_endpoints"]
    tries = [
        (name, place, parameter["parameter_name"], value)
        for name, endpoint in info.items()
        for place, parameter in enumerate(endpoint["parameters"])
        for value in (None, "x", 10**400, {}, [])
    ]
    random.Random(0).shuffle(tries)
    found, asked, end = {}, 0, time.monotonic() + SECONDS
    for name, place, argument, value in tries:
        if time.monotonic() > end:
            break
        values = usual(info[name], picture)
        values[place], asked = value, asked + 1
        if problem := wrong(*ask(page, name, values)):
            found.setdefault((name, argument, problem[:200]), value)
    assert not found, "\n".join(f"{where}: {str(value)[:60]!r}" for where, value in found.items())
    assert asked >= len(info), f"{asked} of {len(tries)}"


@pytest.mark.parametrize(
    "body",
    [
        '{"data": null}',
        '{"data": {}}',
        "[]",
        "null",
        "x",
        "",
        '{"fn_index": "x", "data": []}',
        '{"fn_index": 0, "data": []}',
        '{"fn_index": 1e400, "data": []}',
        '{"fn_index": 3, "data": [], "event_data": 5}',
        '{"fn_index": 3, "data": [], "event_data": {"index": {}}}',
        '{"fn_index": 3, "data": [], "trigger_id": 1000000000}',
        '{"fn_index": 3, "data": [], "trigger_id": "x"}',
        '{"data": [], "batched": true}',
        '{"fn_index": 3, "data": [], "batched": true}',
        '{"fn_index": 3, "data": [], "simple_format": true, "event_id": "x"}',
        "[" * 100_000,
        '{"fn_index": 3, "data": ' + "[" * 900 + "]" * 900 + "}",
        '{"fn_index": 3, "data": [], "oauth_token": {}}',
    ],
)
def test_a_request_that_is_none_gets_a_sentence(page, body):
    """What the page itself sends, damaged: to the queue, and past it."""
    for session in ("", f'"session_hash": "{secrets.token_hex(8)}", '):
        content = body.replace("{", "{" + session, 1).encode()
        for path in ("queue/join", "run/x", "call/recognise"):
            answer = page.post(path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code < 500 or path == "run/x" and wrong(400, "error", answer.json()) is None, answer.text
            if answer.status_code == 200 and path == "queue/join":
                lines = page.get("queue/data", params={"session_hash": session[17:33]}).text.splitlines()
                messages = [json.loads(line[5:]) for line in lines if line.startswith("data: {")]
                [ended] = [message for message in messages if message["msg"] == "process_completed"]
                assert ended["success"] or wrong(200, "error", ended["output"]) is None, ended


def test_the_server_lives_on(page, picture):
    """After all that: every endpoint does what it is asked for."""
    for name, endpoint in page.get("info").json()["named_endpoints"].items():
        status, event, said = ask(page, name, usual(endpoint, picture))
        if name == "/describe":  # the tiny model has no words
            assert (status, event) == (200, "error") and "does not answer questions" in said["error"], said
        else:
            assert (status, event) == (200, "complete"), (name, said)
