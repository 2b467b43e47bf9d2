"""`python -m dalle_core push`: a model's folder, or a LoRA's, onto the Hugging Face Hub, with its card."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2  # what huggingface_hub raises
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from dalle_core.errors import InputError, ModelError

# What a model consists of. Nothing that runs when it is opened, and no state of a training.
WANTED = ["*.json", "*.safetensors", "*.md", "*.txt", "*.png", "*.jpg", "LICENSE", "LICENCE"]
PRIVATE = [".*", "*/.*"]


def push(folder: Path, repo: str, private: bool = False, api: HfApi | None = None) -> str:
    """Makes the repository `owner/name` if it is not there and uploads the folder in one commit. Returns its address.

    The token is that of `hf auth login` or of HF_TOKEN. Raises InputError when the folder is no model's, or has no card or
    no licence; ModelError when the Hub refuses or cannot be reached.
    """
    check(folder)
    api = api or HfApi()
    with sentences(repo):
        url = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            allow_patterns=WANTED,
            ignore_patterns=PRIVATE,
            commit_message="The model and its card",
        )
    return str(url)


def check(folder: Path) -> None:
    """Raises InputError for what should not be published as it is."""
    if not (folder / "model_index.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise InputError(
            f"{folder} is no model's folder: it has neither model_index.json (a model) nor adapter_config.json (a LoRA). "
            "Name the folder that the training ended with."
        )
    card = folder / "README.md"
    if not card.is_file():
        raise InputError(
            f"{folder} has no card: write {card}, which says what the model is, what it learned from, and its licence."
        )
    try:
        licence = ModelCard.load(card).data.license
    except Exception as error:  # YAML's and huggingface_hub's kinds
        raise InputError(
            f"{card}: what stands between its first two lines of --- cannot be read ({str(error).splitlines()[0]})."
        ) from None
    if not isinstance(licence, str) or not licence.strip():
        raise InputError(
            f"{card} names no licence: begin it with a line ---, a line like “license: cc-by-4.0”, and another ---."
        )


@contextmanager
def sentences(repo: str) -> Iterator[None]:
    """What the Hub refuses `owner/name`, as a ModelError that says what to do."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise ModelError("you are not logged in: run `hf auth login` first, or set HF_TOKEN.") from None
    except HFValidationError as error:
        raise ModelError(str(error).splitlines()[0]) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        if status == 401:
            raise ModelError(
                "the Hub knows no such login: run `hf auth login`, or set HF_TOKEN to a token that may write."
            ) from None
        raise ModelError(f"the Hub refused ({status}): {repo} may be another's, or the token may not write.") from None
    except httpx2.HTTPError as error:
        raise ModelError(f"the Hub cannot be reached ({type(error).__name__}): check the network and try again.") from None
