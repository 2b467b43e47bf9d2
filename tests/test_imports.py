"""Importing dalle_core starts nothing, and imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

CHECK = """
import logging, random, sys, threading
opened = []
# Not "socket.bind": urllib3 asks in this way whether the machine has IPv6.
sys.addaudithook(lambda event, _: opened.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
import diffusers, numpy, torch, transformers
import PIL.Image
before = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed(),
          torch.random.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
          torch.are_deterministic_algorithms_enabled(), threading.active_count(), torch.get_float32_matmul_precision(),
          PIL.Image.MAX_IMAGE_PIXELS, logging.root.level, list(logging.root.handlers))
import dalle_core
assert "dalle_core.catalogue" not in sys.modules
from dalle_core import *
assert load and "dalle_core.catalogue" in sys.modules
after = (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), torch.initial_seed(),
         torch.random.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
         torch.are_deterministic_algorithms_enabled(), threading.active_count(), torch.get_float32_matmul_precision(),
         PIL.Image.MAX_IMAGE_PIXELS, logging.root.level, list(logging.root.handlers))
assert opened == [], opened
assert before == after, "importing dalle_core changed a global"
assert not {"gradio", "datasets", "ray", "dalle_core.training"} & set(sys.modules)
print("clean")
"""


def test_importing_the_core_starts_nothing():
    out = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert out.stdout.strip().endswith("clean"), out.stderr[-2000:]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_imports_point_one_way():
    """page -> demo -> pipeline -> {engine, sampling, rerank} -> priors -> libraries."""
    allowed = {
        "decoder": {"winograd"},
        "errors": set(),
        "capture": set(),
        "request": {"errors"},
        "recipe": {"errors", "lora", "request"},
        "lora": {"checkpoints", "errors"},
        "vocabulary": {"errors"},
        "sampling": set(),
        "text_normalizer": {"errors"},
        "winograd": set(),
        "image_tokenizer": {"errors"},
        "text_tokenizer": {"errors", "text_normalizer"},
        "rerank": {"text_tokenizer"},
        "engine": {"memory", "sampling"},
        "slots": {"capture", "engine", "memory", "sampling"},
        "memory": {"errors"},
        "prompts": {"errors", "request"},
        "int8": {"errors", "memory", "packed", "priors"},
        "packed": {"errors", "memory", "priors"},
        "pipeline": {
            "describer",
            "engine",
            "errors",
            "image_tokenizer",
            "int8",
            "memory",
            "priors",
            "request",
            "rerank",
            "sampling",
            "slots",
            "text_normalizer",
            "text_tokenizer",
            "vocabulary",
        },
        "downloads": {"errors", "memory"},
        "describer": {"engine", "image_tokenizer", "priors"},
        "catalogue": {
            "checkpoints",
            "decoder",
            "describer",
            "downloads",
            "errors",
            "image_tokenizer",
            "int8",
            "lora",
            "memory",
            "packed",
            "pipeline",
            "priors",
            "text_tokenizer",
        },
        "push": {"errors"},
        "convert": {"catalogue", "downloads", "errors", "memory"},
        "pictures": set(),
        "compare": {"errors", "pictures", "request"},
        "cluster": {"catalogue", "errors"},
        "workers": {"augment", "catalogue", "cluster", "prompts"},
        "augment": {"errors", "int8", "pictures", "pipeline", "prompts", "recipe"},
        "caption": {"errors", "pipeline"},
        "page": {"catalogue", "cluster", "errors", "lora", "studio"},
        "__main__": {
            "augment",
            "caption",
            "catalogue",
            "cluster",
            "convert",
            "errors",
            "pictures",
            "pipeline",
            "prompts",
            "page",
            "push",
            "recipe",
            "training",
            "workers",
        },
    }
    core = ROOT / "dalle_core"
    assert {path.stem for path in core.glob("*.py")} == set(allowed) | {"__init__"}
    for name, targets in allowed.items():
        own = {part.split(".")[1] for part in imported(core / f"{name}.py") if part.startswith("dalle_core.")}
        assert own <= targets, f"{name} imports {own - targets}"
        assert "peft" not in imported(core / f"{name}.py"), name  # which need not be there: only training takes it
    for path in (core / "priors").glob("*.py"):  # models: they know nothing of the rest
        assert all(part.startswith("dalle_core.priors") for part in imported(path) if part.startswith("dalle_core.")), path
    for path in set(core.rglob("*.py")) - {core / "page.py"}:  # the command that opens the page
        assert not {part for part in imported(path) if part.split(".")[0] in ("gradio", "demo", "app")}, path
