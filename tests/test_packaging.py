"""What is installed: versions, commands, and the package as pip builds it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import dalle_core
from dalle_core import CATALOGUE, ModelError, text_normalizer
from dalle_core import __main__ as commands

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {
    "requirements.txt": ["published"],
    "requirements-train.txt": ["train"],
    "requirements-ray.txt": ["ray"],
    "requirements-dev.txt": ["test"],
}


def locked(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = map(Requirement, (line for line in lines if line and not line.startswith(("#", "-r "))))
    return {one.name: one for one in found}


@pytest.mark.parametrize("name", EXTRAS)
def test_what_the_lock_file_pins_lies_in_the_range_of_the_package_and_nothing_is_missing(name):
    lines = [*(PROJECT["dependencies"] if name == "requirements.txt" else [])]
    lines += [line for extra in EXTRAS[name] for line in PROJECT["optional-dependencies"][extra]]
    ranges = {one.name: one for one in map(Requirement, lines) if one.name != PROJECT["name"]}
    pins = locked(name)
    assert set(pins) == set(ranges)
    for package, pin in pins.items():
        assert pin.extras == ranges[package].extras, package
        if package == "torch":  # a range in both: a Space brings its own
            assert pin.specifier == ranges[package].specifier
            continue
        [exact] = pin.specifier
        assert exact.operator == "==" and ranges[package].specifier.contains(exact.version), package


def test_one_version_of_ruff_formats_before_a_commit_and_in_the_tests():
    hook = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]
    assert f"=={hook['rev'].removeprefix('v')}" == str(locked("requirements-dev.txt")["ruff"].specifier)


def test_the_version_is_told_and_the_changelog_begins_with_it(capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(["--version"])
    assert ended.value.code == 0 and capsys.readouterr().out == f"dalle {dalle_core.__version__}\n"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.M)[0] == dalle_core.__version__


def test_the_commands_name_every_model_of_the_catalogue():
    assert commands.NAMES.split(", ") == list(CATALOGUE)


def test_a_shell_completes_commands_and_their_options(capsys):
    with pytest.raises(SystemExit) as ended:
        commands.main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    assert ended.value.code == 0 and script.endswith("-F _shtab_dalle dalle\n")
    assert all(word in script for word in ("page", "sample", "--candidates", "--preset"))


def test_help_and_version_import_neither_pytorch_nor_gradio():
    code = (
        "import sys; from dalle_core.__main__ import parser; parser(['page']); assert not {'torch', 'gradio'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_a_type_checker_knows_the_public_interface(tmp_path):
    """And finds nothing in the files that pyproject.toml names."""
    (tmp_path / "program.py").write_text(
        "import dalle_core\n"
        "pipe = dalle_core.load('emoji', lora='x')\n"
        "best: float | None = pipe('a fox', num_candidates=4).candidates[0].score\n"
        "for step in pipe.stream('a fox'):\n"
        "    step.index + step.total\n"
        "dalle_core.load(3)\n"
        "dalle_core.lode('emoji')\n"
        "step.indices\n",
        encoding="utf-8",
    )
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    whole = subprocess.run(mypy, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    assert (whole.returncode, whole.stdout) == (0, "")
    one = subprocess.run([*mypy, str(tmp_path / "program.py")], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300)
    wrong = [line.split(":")[1] for line in one.stdout.splitlines()]
    assert wrong == ["6", "7", "8"], one.stdout


@pytest.mark.parametrize("missing", ["emoji", "ftfy", "unidecode"])
def test_without_the_packages_of_published_models_a_sentence_says_what_to_install(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModelError, match=f"takes the package {missing}: pip install .* “published”"):
        text_normalizer.dalle_mini("a fox")
