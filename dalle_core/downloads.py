"""Files from the Hugging Face Hub: from the cache without a network call when they are there, else downloaded.

huggingface_hub does the work: the cache, retries, files written whole or not at all. Added here: room on the disk is
checked first, progress is told, checksums are verified, an interrupted download goes on where it stopped, a repository
keeps the revision of its first download, and what can go wrong becomes one sentence.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers
from tqdm.auto import tqdm

from dalle_core.errors import ModelError
from dalle_core.memory import check_disk, gigabytes

Progress = Callable[[str], None]  # told what is going on, in a line for people


def cache_folder() -> Path:
    """What this project keeps of models, beside the Hub's own cache (HF_HOME moves both)."""
    return Path(constants.HF_HOME) / "dalle_core"


class _Unreachable(ModelError):
    """The Hub did not answer, or may not be asked."""


def fetch(repo: str, patterns: list[str], revision: str | None = None, tell: Progress | None = None, room: int = 0) -> Path:
    """The folder with the files of a repository that match `patterns`; each pattern must match one or more files.

    revision None: the one of the first download, which is recorded. room: bytes that will be needed on the disk besides
    the download. Raises ModelError with what to do next.
    """
    recorded = revision or _recorded().get(repo)
    folder = _cached(repo, patterns, recorded)
    # Of files by pattern, only a download that came to its end (and was recorded) is known to be whole.
    if folder and (recorded or not any("*" in pattern for pattern in patterns)):
        return folder
    try:
        return _download(repo, patterns, recorded, tell, room)
    except _Unreachable:
        if folder:  # brought here by other means, as it seems
            return folder
        raise


def is_cached(repo: str, patterns: list[str], revision: str | None = None) -> bool:
    """Whether `fetch` would need no network."""
    return _cached(repo, patterns, revision or _recorded().get(repo)) is not None


def _cached(repo: str, patterns: list[str], revision: str | None) -> Path | None:
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    # An interrupted download leaves a folder with some of the files.
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return folder if all(any(fnmatch(file, pattern) for file in files) for pattern in patterns) else None


def _download(repo: str, patterns: list[str], revision: str | None, tell: Progress | None, room: int) -> Path:
    try:
        files = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=patterns, dry_run=True, tqdm_class=_Silent
        )
        missing = [p for p in patterns if not any(fnmatch(file.filename, p) for file in files)]
        if missing:
            raise ModelError(f"{repo} on the Hub has no file {missing[0]}: it is not a model of the kind that was asked for.")
        wanted = [file for file in files if file.will_download]
        total = sum(file.file_size for file in wanted)
        check_disk(Path(constants.HF_HUB_CACHE), total + room, f"The download of {repo}")
        progress = _Bytes(repo, total, tell)
        with progress.bar:
            for file in wanted:
                _bring_large(repo, file, progress)
            for file in files:
                path = huggingface_hub.hf_hub_download(
                    repo, file.filename, revision=file.commit_hash, tqdm_class=progress.bar_class()
                )
        folder = Path(path).parents[len(Path(file.filename).parts) - 1]
        _record(repo, files[0].commit_hash)
        return folder
    except ModelError:
        raise
    except Exception as error:  # from huggingface_hub, its HTTP library and Xet: dozens of kinds
        raise _explained(repo, revision, error) from None


def _bring_large(repo: str, file, progress: "_Bytes") -> None:
    """Brings a large file into the Hub's cache, from where a download before was interrupted; leaves small files alone.

    The cache names a large file by its SHA-256, and takes it as it is when it is there. Raises ModelError when what
    arrived is not that file; it is removed.
    """
    url = huggingface_hub.hf_hub_url(repo, file.filename, revision=file.commit_hash)
    sha = huggingface_hub.get_hf_file_metadata(url).etag or ""
    if not re.fullmatch("[0-9a-f]{64}", sha):
        return
    blob = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / sha
    part = blob.with_suffix(".partial")
    blob.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(blob.with_suffix(".lock")):
        if blob.exists():  # another process was first
            return
        with open(part, "ab") as content:
            if content.tell() > file.file_size:
                content.seek(0)
                content.truncate()
            progress.skip(content.tell())
            http_get(
                url,
                content,
                resume_size=content.tell(),
                headers=build_hf_headers(),
                expected_size=file.file_size,
                tqdm_class=progress.bar_class(),
            )
        with open(part, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != sha:
            part.unlink()
            raise ModelError(f"{file.filename} arrived damaged (wrong checksum) and was removed. Try again.")
        os.replace(part, blob)


def check_local(path: Path) -> None:
    """A file that `hf download --local-dir` brought, against the SHA-256 that the command noted beside it: flax files hold
    no sums of their own. What was changed since, or came otherwise, is left alone. Raises ModelError."""
    note = path.parent / ".cache" / "huggingface" / "download" / f"{path.name}.metadata"
    try:
        _, sha, noted = note.read_text(encoding="utf-8").split()  # revision, SHA-256 of a large file, time
        changed = path.stat().st_mtime - 1 > float(noted)  # to a second, as huggingface_hub itself compares
    except (OSError, ValueError):
        return
    if changed or not re.fullmatch("[0-9a-f]{64}", sha):
        return
    with path.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha:
        raise ModelError(f"{path} is damaged (wrong checksum): remove it, and run `hf download` again.")


def _explained(repo: str, revision: str | None, error: Exception) -> ModelError:
    """What happened, and what to do next."""
    if isinstance(error, DryRunError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        text = f"{repo} is gated: accept its terms on its Hub page, then log in with `hf auth login` and try again."
    elif isinstance(error, RevisionNotFoundError):
        text = f"{repo} has no revision {revision!r} any more. Remove it from {_record_file()} to take the newest."
    elif isinstance(error, RepositoryNotFoundError):
        text = f"The Hub has no repository {repo!r}, or it is private. Check the spelling; for a private one, `hf auth login`."
    elif isinstance(error, HFValidationError):
        text = f"{repo!r} is not a Hub id (owner/name)."
    elif isinstance(error, OfflineModeIsEnabled):
        return _Unreachable(
            f"{repo} is not in the cache, and HF_HUB_OFFLINE forbids downloads. Unset it once, while there is a network."
        )
    elif getattr(error, "errno", None) == errno.ENOSPC:
        text = f"The disk became full while {repo} was downloaded. Free some space and try again: it goes on from there."
    else:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return _Unreachable(
            f"{repo} could not be downloaded: {reason}. Check the network and try again; what has arrived is kept."
        )
    return ModelError(text)


class _Silent(tqdm):
    """A bar that shows nothing."""

    def __init__(self, *args, **kwargs):
        kwargs.pop("name", None)  # huggingface_hub's own
        super().__init__(*args, **kwargs | {"disable": True})


class _Bytes:
    """Progress over all files of a repository: bytes, rate, time left."""

    def __init__(self, repo: str, total: int, tell: Progress | None):
        self.repo, self.total, self.tell = repo, total, tell
        self.done, self.skipped, self.started, self.told = 0, 0, time.monotonic(), 0.0
        self.bar = tqdm(total=total, unit="B", unit_scale=True, desc=repo, disable=tell is not None or total == 0)

    def skip(self, count: int) -> None:
        """Counts what an earlier download has brought."""
        self.skipped += count
        self.done += count
        self.bar.update(count)

    def add(self, count: float) -> None:
        self.done += count
        self.bar.update(count)
        now = time.monotonic()
        if self.tell and now - self.told > 0.3:
            self.told = now
            rate = (self.done - self.skipped) / max(now - self.started, 1e-3)
            left = (self.total - self.done) / max(rate, 1)
            self.tell(
                f"Downloading {self.repo}: {gigabytes(self.done)} of {gigabytes(self.total)}, "
                f"{rate / 1e6:.1f} MB/s, {left:.0f} s left"
            )

    def bar_class(self):
        """A tqdm that adds here what it is told."""
        outer = self

        class Bar(_Silent):
            def update(self, count=1):
                outer.add(count or 0)

        return Bar


# ---------------------------------------------------------------- which revision


def _record_file() -> Path:
    return cache_folder() / "revisions.json"


def _recorded() -> dict[str, str]:
    try:
        return json.loads(_record_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _record(repo: str, revision: str) -> None:
    file = _record_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(_recorded() | {repo: revision}, indent=1), encoding="utf-8")
    part.replace(file)
