"""`python -m demo.space OWNER/NAME`: puts the page with a model on a Hugging Face Space, in one commit."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import gradio
import yaml
from huggingface_hub import CommitOperationAdd, HfApi, SpaceHardware
from huggingface_hub.utils import filter_repo_objects

from dalle_core import CATALOGUE, InputError, ModelError
from dalle_core.catalogue import CLIP_FILES, CLIP_ON_CPU, CLIP_ON_GPU, EMBEDDED
from dalle_core.push import WANTED as OF_A_MODEL
from dalle_core.push import check, sentences
from demo.link_preview import PICTURE

ROOT = Path(__file__).parent.parent
WANTED = ["requirements.txt", "LICENSE", "demo/*", "dalle_core/*"]
UNWANTED = ["*/__pycache__/*", "*.pyc", "*.pyi", "dalle_core/assets/*"]
APP = '''"""What the Space starts: the page with its model."""

from dalle_core.__main__ import main

if __name__ == "__main__":
    main({arguments})
'''


@dataclass(frozen=True)
class Source:
    """A model as a Space has it."""

    name: str  # as `--model` takes it there
    title: str
    licence: str
    folder: Path | None = None  # it is uploaded from here, to the place that `name` says
    repos: tuple[str, ...] = ()  # what comes from the Hub while the Space is built, as `preload_from_hub` takes it


def source(model: str, api: HfApi, hardware: str | None = None) -> Source:
    """A name of the catalogue, a folder in this project's layout, or a Hub id, as a Space with this hardware has it.

    Raises InputError for a folder that is none, or that names no licence.
    """
    if model == "emoji":
        return Source("assets/emoji", "the emoji model", CATALOGUE[model].licence, EMBEDDED)
    if Path(model).is_dir():
        check(Path(model))
        if not (Path(model) / "model_index.json").is_file():
            raise InputError(f"{model} is not in this project's layout: `python -m dalle_core convert` makes such a folder.")
        return Source("model", Path(model).resolve().name, licence_of(Path(model)), Path(model))
    if known := CATALOGUE.get(model):
        weights = " ".join(filter(None, [known.repo, ",".join(known.files), known.revision]))
        # OpenAI's repository holds the same weights for three libraries.
        on_gpu = f"{CLIP_ON_GPU} {','.join(CLIP_FILES)},pytorch_model.bin"
        clip = CLIP_ON_CPU if (hardware or "cpu").startswith("cpu") else on_gpu
        return Source(model, known.title, known.licence, repos=(weights, clip))
    if model.count("/") != 1:
        raise InputError(
            f"There is no model {model!r}: give a folder, a Hub id (owner/name) or one of: {', '.join(CATALOGUE)}."
        )
    with sentences(model):
        data = api.model_info(model).card_data
    return Source(model, model, getattr(data, "license", None) or f"see https://huggingface.co/{model}", repos=(model,))


def licence_of(folder: Path) -> str:
    """What the card of a model's folder names."""
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])["license"]


def card(model: Source, hardware: str | None = None, repo: str = "") -> str:
    """README.md of the Space."""
    front = {
        "title": "DALL·E, ranked",
        "emoji": "🎨",
        "colorFrom": "orange",
        "colorTo": "red",
        "sdk": "gradio",
        "sdk_version": gradio.__version__,
        "python_version": "3.12",
        "app_file": "app.py",
        "suggested_hardware": hardware or "cpu-basic",
        "license": "mit",
        "short_description": "Type a prompt, watch a grid being drawn, ranked by CLIP",
        "tags": ["text-to-image", "dall-e", "vqgan", "clip"],
        "thumbnail": f"https://huggingface.co/spaces/{repo}/resolve/main/{PICTURE.name}",
    }
    if model.repos:
        front["models"] = [weights.split()[0] for weights in model.repos]
        front["preload_from_hub"] = list(model.repos)
    place = f"`{model.name}/README.md`" if model.folder else f"https://huggingface.co/{front['models'][0]}"
    return (
        f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=False)}---\n\n"
        "Type a prompt, watch a grid of candidates being drawn token by token, see them ranked by CLIP.\n\n"
        f"The code is under the MIT licence. The weights are those of {model.title}, under a licence of their own: "
        f"**{model.licence}** (see {place}).\n"
    )


def files(model: Source) -> dict[str, Path]:
    """What a Space needs: the place in it of each file. Raises InputError where this is no copy of the project."""
    if not (ROOT / "requirements.txt").is_file():
        raise InputError("A Space is made of the project's files: run this in a copy of its repository.")
    found = {path.relative_to(ROOT).as_posix(): path for path in ROOT.rglob("*") if path.is_file()}
    found = {name: found[name] for name in filter_repo_objects(found, allow_patterns=WANTED, ignore_patterns=UNWANTED)}
    if model.folder:
        parts = {path.relative_to(model.folder).as_posix(): path for path in model.folder.rglob("*") if path.is_file()}
        wanted = filter_repo_objects(parts, allow_patterns=OF_A_MODEL, ignore_patterns=[".*", "*/.*"])
        found |= {f"{model.name}/{name}": parts[name] for name in wanted}
    return dict(sorted(found.items()))


def push(api: HfApi, repo: str, private: bool = False, model: str = "emoji", hardware: str | None = None) -> str:
    """Makes the Space if it is not there, uploads all in one commit, and asks for the hardware. Returns its address."""
    chosen = source(model, api, hardware)
    wanted = files(chosen)
    url = api.create_repo(repo, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
    operations = [CommitOperationAdd(name, path) for name, path in wanted.items()]
    arguments = ["page"] if model == "emoji" else ["page", "--model", chosen.name]
    operations.append(CommitOperationAdd("app.py", APP.format(arguments=arguments).encode()))
    operations.append(CommitOperationAdd("README.md", card(chosen, hardware, url.repo_id).encode()))
    operations.append(CommitOperationAdd(PICTURE.name, PICTURE))
    api.create_commit(url.repo_id, operations, commit_message="The page and its model", repo_type="space")
    if hardware:
        api.request_space_hardware(url.repo_id, SpaceHardware(hardware))
    return str(url)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m demo.space", description="Put the page on a Hugging Face Space.")
    parser.add_argument("repo", help="owner/name of the Space; it is made when it is not there")
    parser.add_argument("--private", action="store_true")
    names = ", ".join(CATALOGUE)
    parser.add_argument("--model", default="emoji", help=f"{names}, a model's folder, or a Hub id (default: %(default)s)")
    parser.add_argument(
        "--hardware",
        choices=[one.value for one in SpaceHardware],
        metavar="KIND",
        help="such as cpu-basic, zero-a10g, t4-small or a10g-small, which may cost money (default: as it is)",
    )
    return parser


def main() -> None:
    args = parser().parse_args()
    try:
        with sentences(args.repo):
            print(push(HfApi(), args.repo, args.private, args.model, args.hardware))
    except (InputError, ModelError) as error:
        print(f"space: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
