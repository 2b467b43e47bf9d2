"""README.md and docs/: their links lead somewhere, their commands exist and take these arguments, their Python runs."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dalle_core import __main__ as commands
from dalle_core.training import assemble, clip, evaluate, image_tokenizer, prior
from demo import space

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
PARSERS = {module.__name__: module.parser for module in (assemble, clip, evaluate, image_tokenizer, prior, space)}


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", TEXT)
def test_links_lead_somewhere(name):
    found = re.findall(r"\]\(([^)\s]+)\)", TEXT[name])
    for link in found:
        path, _, part = link.partition("#")
        if not path.startswith("https://"):
            assert (ROOT / name).parent.joinpath(path).exists(), link
            anchors = {anchor(heading) for heading in re.findall(r"^#+ (.*)", TEXT[name], re.M)}
            assert not part or part in anchors, link
    assert found or name == "docs/api.md"


def lines(language: str) -> list[str]:
    blocks = [code for text in TEXT.values() for code in re.findall(rf"```{language}\n(.*?)```", text, re.S)]
    return [line.partition("  #")[0].strip() for code in blocks for line in code.replace("\\\n", " ").splitlines()]


COMMANDS = [line for line in lines("sh") if line.startswith(("dalle ", "python ")) and " -m venv " not in line]
COMMANDS += [
    code
    for text in TEXT.values()
    for code in re.findall(r"`((?:dalle|python -m dalle_core|python app\.py) [^`…]* [^`…]+)`", text)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_exists_and_takes_these_arguments(command, capsys):
    words = shlex.split(command.partition(" &")[0].replace("\n", " "))
    if words[0] == "dalle":
        asked = words[1:]
    elif words[:3] == ["python", "-m", "dalle_core"]:
        asked = words[3:]
    elif words[:2] == ["python", "app.py"]:
        asked = ["page", *words[2:]]
    else:
        assert ROOT.joinpath(*words[2].split(".")).with_suffix(".py").is_file()
        if words[2] in PARSERS:
            PARSERS[words[2]]().parse_args(words[3:])
        return
    try:
        commands.parser(asked).parse_args(asked)
    except SystemExit as ended:  # --help, --print-completion
        assert ended.code == 0, capsys.readouterr().err


def test_the_python_of_the_readme_draws(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, describing = re.findall(r"```python\n(.*?)```", TEXT["README.md"], re.S)
    exec(code.replace('"emoji"', repr(str(saved))), {})
    assert Image.open("fox.png").size == (64, 64)
    assert 'load("janus-pro-1b")' in describing  # `tests/test_janus.py` asks such a model


def test_the_table_of_hardware_claims_nothing_that_was_not_measured():
    rows = [line.split("|")[1:-1] for line in TEXT["README.md"].splitlines() if line.startswith("| `")]
    measured = re.sub(r"\s+", " ", TEXT["docs/performance.md"])
    assert len(rows) >= 5
    for model, _, here, *gpus in rows[:5]:
        assert [cell.strip() for cell in gpus] == ["not run"] * 3, model
    assert "1.4 s; 0.17 s; 0.64 GiB" in measured and "1.4 s; 0.64 GiB" in rows[0][2]
    assert "7.8 s (5.8 times)" in measured and "18 s (11.7 times" in measured and "1 in 7.8 s, 9 in 18 s (int8)" in rows[1][2]
