"""The command line: what is wrong is one line, and the exit code 2."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments, **environment):
    import os

    return subprocess.run(
        [sys.executable, "app.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env=os.environ | environment,
    )  # fmt: skip


def test_help_explains_every_argument_without_loading_torch():
    out = run("--help", PYTHONPROFILEIMPORTTIME="1")
    for name in ("--model", "--host", "--port", "--device", "--dtype", "--share", "--public", "--proxies", "DALLE_USER", "DALLE_PASSWORD", "MCP"):
        assert name in out.stdout
    assert out.returncode == 0 and " torch" not in out.stderr


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_on_a_zerogpu_space_its_package_comes_before_torch(tmp_path, free_port):
    (tmp_path / "spaces.py").write_text(
        "import sys\nprint('torch' in sys.modules, 'gradio' in sys.modules)\nraise SystemExit(3)\n"
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
