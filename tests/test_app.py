"""The command line: what is wrong is one line, and the exit code 2. What the page finds around it: locale, proxy, folders."""

import ast
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from dalle_core import InputError, page

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("demo", "dalle_core") for path in (ROOT / folder).rglob("*.py")]
MODULES = ["__main__", *(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES)]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "app.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env=os.environ | environment,
    )


@contextmanager
def started(folder, model, port, flags=(), **environment):
    """The address of the page that `python app.py` serves; an environment variable of None is not set."""
    values = {**os.environ, "PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": str(folder / "gradio"), **environment}
    command = [sys.executable, *flags, "app.py", "--model", str(model), "--port", port]
    with open(folder / "said.txt", "wb") as said:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=said,
            stderr=said,
            env={name: value for name, value in values.items() if value is not None},
        )
    try:
        for _ in range(1200):
            if b"MCP" in (text := (folder / "said.txt").read_bytes()):  # the last that Gradio says of its start
                break
            assert server.poll() is None, text.decode(errors="replace")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
        assert server.poll() is None
    finally:
        server.kill()
        server.wait()


def test_help_explains_every_argument_without_loading_torch():
    out = run("--help", PYTHONPROFILEIMPORTTIME="1")
    for name in (
        "--model",
        "--host",
        "--port",
        "--device",
        "--dtype",
        "--share",
        "--public",
        "--proxies",
        "DALLE_USER",
        "DALLE_PASSWORD",
        "MCP",
    ):
        assert name in out.stdout
    assert out.returncode == 0 and " torch" not in out.stderr


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_on_a_zerogpu_space_its_package_comes_before_torch(tmp_path, free_port):
    (tmp_path / "spaces.py").write_text(
        "import sys\nprint('torch' in sys.modules, 'gradio' in sys.modules)\nraise SystemExit(3)\n", encoding="utf-8"
    )
    out = run("--port", free_port, SPACES_ZERO_GPU="true", PYTHONPATH=str(tmp_path))
    assert (out.returncode, out.stdout.strip()) == (3, "False False"), out.stderr


@pytest.fixture
def busy_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield str(listener.getsockname()[1])


def test_a_busy_port_is_one_line(busy_port):
    out = run("--port", busy_port)
    assert out.returncode == 2 and len(out.stderr.strip().splitlines()) == 1
    assert busy_port in out.stderr and "--port" in out.stderr


@pytest.mark.parametrize(
    "arguments, environment, named",
    [
        (("--model", "no-such-model"), {}, "no-such-model"),
        (("--device", "tpu0"), {}, "tpu0"),
        (("--port", "70000"), {}, "70000"),
        (("--port", "http"), {}, "http"),
        (("--proxies", "-1"), {}, "--proxies"),
        (("--replicas", "0"), {}, "--replicas 0"),
        (("--dtype", "float8"), {}, "float8"),
        (("--compile", "--device", "cpu"), {}, "--compile"),
        (("--model", "x" * 5000), {}, "There is no model"),
        (("--host", "256.0.0.1"), {}, "--host"),
        (("--host", "a" * 70 + ".b"), {}, "--host"),
        ((), {"DALLE_USER": "me", "DALLE_PASSWORD": ""}, "DALLE_PASSWORD"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, environment, named, free_port):
    if "--port" not in arguments:
        arguments = (*arguments, "--port", free_port)
    out = run(*arguments, **environment)
    lines = [line for line in out.stderr.strip().splitlines() if line]
    assert out.returncode == 2 and len(lines) == 1 and named in lines[0], out.stderr


OTHER_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_the_page_starts_in_a_locale_without_utf8_and_opens_no_text_without_an_encoding(saved, tmp_path, free_port):
    flags = ["-X", "warn_default_encoding", *(f"-Werror::EncodingWarning:{name}" for name in MODULES)]
    with started(tmp_path, saved, free_port, flags, **OTHER_LOCALE) as url, httpx.Client(trust_env=False) as visitor:
        shown = visitor.get(url)
        assert shown.status_code == 200 and "提示词" in shown.text
        stored = visitor.post(f"{url}gradio_api/upload", files={"files": ("狐狸.png", b"a picture")})
        assert stored.status_code == 200 and stored.json()[0].endswith("狐狸.png")


def test_help_is_printed_in_any_locale():
    for command in (["app.py"], ["-m", "dalle_core", "convert"], ["-m", "dalle_core", "augment"]):
        values = os.environ | OTHER_LOCALE
        out = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, env=values, timeout=120)
        assert out.returncode == 0 and out.stdout and not out.stderr, out.stderr


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Without proxies; its folder for temporary files is empty."""
    for name in ("http", "https", "all", "no"):
        for spelled in (f"{name}_proxy", f"{name.upper()}_PROXY"):
            monkeypatch.delenv(spelled, raising=False)
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return monkeypatch


def test_a_proxy_and_a_taken_temporary_folder_do_not_stop_the_page(saved, tmp_path, free_port):
    (tmp_path / f"dalle-{os.getuid()}-{free_port}").write_bytes(b"someone else's")
    proxies = {f"{name}_proxy": "http://127.0.0.1:9" for name in ("http", "https")} | {"all_proxy": "socks://127.0.0.1:9"}
    others = {"no_proxy": None, "NO_PROXY": None, "GRADIO_TEMP_DIR": None, "TMPDIR": str(tmp_path)}
    with started(tmp_path, saved, free_port, **proxies, **others) as url, httpx.Client(trust_env=False) as visitor:
        assert visitor.get(url).status_code == 200
        stored = visitor.post(f"{url}gradio_api/upload", files={"files": ("fox.png", b"a picture")})
        assert stored.status_code == 200 and Path(stored.json()[0]).is_relative_to(tmp_path)


def test_only_the_page_s_own_addresses_bypass_the_proxy(environment):
    page.bypass_proxy("0.0.0.0")
    assert urllib.request.getproxies() == {}
    environment.setenv("https_proxy", "http://192.0.2.1:8080")
    environment.setenv("no_proxy", "example.org")
    page.bypass_proxy("192.0.2.9")
    for host in ("localhost", "127.0.0.1", "::1", "192.0.2.9", "example.org"):
        assert urllib.request.proxy_bypass(host), host
    assert not urllib.request.proxy_bypass("huggingface.co")
    assert urllib.request.getproxies()["https"] == "http://192.0.2.1:8080"


def test_the_system_s_proxy_of_a_desktop_counts_too(environment):
    environment.setattr(urllib.request, "getproxies", lambda: {"http": "http://192.0.2.1:8080"})
    environment.setenv("http_proxy", "")  # so that it is forgotten afterwards
    environment.setenv("no_proxy", "")
    page.bypass_proxy("")
    assert os.environ["http_proxy"] == "http://192.0.2.1:8080" and "127.0.0.1" in os.environ["no_proxy"]


def test_the_page_has_a_temporary_folder_of_its_own_also_when_somebody_has_taken_its_name(environment, tmp_path):
    page.choose_temporary_folder(7860)
    first = Path(os.environ["GRADIO_TEMP_DIR"])
    assert first.parent == tmp_path and stat.S_IMODE(first.stat().st_mode) == 0o700
    environment.setenv("GRADIO_TEMP_DIR", "")
    page.choose_temporary_folder(7860)
    assert Path(os.environ["GRADIO_TEMP_DIR"]) == first  # after a restart what lies there ages
    first.rmdir()
    first.write_bytes(b"someone else's")
    environment.setenv("GRADIO_TEMP_DIR", "")
    page.choose_temporary_folder(7860)
    own = Path(os.environ["GRADIO_TEMP_DIR"])
    assert own.parent == tmp_path and own != first and stat.S_IMODE(own.stat().st_mode) == 0o700


def test_a_named_temporary_folder_that_cannot_be_used_is_one_line(environment, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    environment.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match="Set GRADIO_TEMP_DIR") as error:
        page.choose_temporary_folder(7860)
    assert str(tmp_path / "file") in str(error.value)


def test_windows_is_asked_for_a_port_of_one_s_own(environment, free_port):
    asked = []

    class Probe(socket.socket):
        def setsockopt(self, level, option, value):
            asked.append(option)

    environment.setattr(socket, "socket", Probe)
    page.check_address("127.0.0.1", int(free_port))
    environment.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    page.check_address("127.0.0.1", int(free_port))
    assert asked == [socket.SO_REUSEADDR, -5]


def opened_without_encoding(path: Path):
    """Where a file opens text and does not name its encoding."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or "encoding" in {keyword.arg for keyword in call.keywords}:
            continue
        name, words = ast.unparse(call.func), [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
        is_text = name == "open" and not any(str(word) in ("rb", "wb", "ab", "xb") for word in words)
        is_text |= name.endswith((".read_text", ".write_text"))
        is_text |= name.startswith("subprocess.") and any(keyword.arg == "text" for keyword in call.keywords)
        if is_text:
            yield f"{path.relative_to(ROOT)}:{call.lineno}"


def test_every_text_file_is_opened_with_its_encoding():
    folders = [ROOT / name for name in ("benchmarks", "dalle_core", "demo", "tests")]
    files = {ROOT / "app.py", *(path for folder in folders for path in folder.rglob("*.py"))}
    assert [place for path in files for place in opened_without_encoding(path)] == []
