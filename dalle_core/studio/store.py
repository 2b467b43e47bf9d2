"""One store of files: pictures, archives, grids, data sets. All of them go: with age, or over a quota the oldest first."""

import errno
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dalle_core.errors import InputError

BLOCK = 4096  # bytes that any file or folder takes at least: a great many small ones fill a disk as well
YOUNG = 60  # seconds since a change: an upload may still be on its way, so a quota leaves it alone
SETTLING = 600  # seconds in which a folder is measured at each sweep; later only when something appears in it or goes
UPLOADED = re.compile(r"[0-9a-f]{64}|tmp[a-z0-9_]{8}")  # Gradio's names: of a finished upload's folder, of an unfinished file
FULL = "The server's disk is full, so this could not be saved. Try again later."
UNWRITABLE = "The server could not save this. Try again later."
GONE = "These files are no longer here: they are kept for a limited time. Make them again."
log = logging.getLogger(__name__)


@dataclass
class _Entry:
    """A folder of the store, or what somebody else keeps below one of `Store.also`."""

    visitor: str | None  # None: unknown
    since: float  # of its last change, as far as it is known; seconds since the epoch
    changed: float = 0.0  # its own time of change when it was last looked at
    bytes: int = 0
    holds: int = 0
    upload: bool = False


class Store:
    """Folders with unguessable names below `root`, for who knows a file's address can read it.

    max_age: seconds that a folder is kept after its last change. quota, visitor_quota: bytes of everything, and of one
    visitor's folders; who is over it loses his own oldest. also: folders into which Gradio puts what visitors upload; that
    has the same age, and at most a quarter of the quota. What lies below `root` at the start is an unknown visitor's, so
    nothing stays for ever, however the process before ended. One process may use a root at a time. Threads may share a store.
    """

    def __init__(
        self,
        root: str | Path,
        max_age: float = 24 * 3600,
        quota: int = 4 * 2**30,
        visitor_quota: int = 256 * 2**20,
        also: Iterable[str | Path] = (),
    ):
        self.root, self.also = Path(root), [Path(folder) for folder in also]
        self.max_age, self.quota, self.visitor_quota = max_age, quota, visitor_quota
        self._entries: dict[Path, _Entry] = {}
        self._spared: set[Path] = set()
        self._lock = threading.RLock()
        self.sweep()

    def folder(self, visitor: str) -> Path:
        """A new folder of a visitor's. Raises InputError when the disk is full or cannot be written."""
        with self._lock:
            self.sweep()
            path = self.root / secrets.token_urlsafe(16)
            with _saving():
                self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.mkdir(mode=0o700)
            self._entries[path] = _Entry(visitor, time.time())
            return path

    def write(self, visitor: str, name: str, content: bytes) -> Path:
        """A file in a new folder of a visitor's, whole or not at all. name: without folders. Raises InputError as `folder`."""
        folder = self.folder(visitor)
        with self.hold(folder):
            try:
                with _saving():
                    part = folder / f".{secrets.token_hex(4)}"
                    part.write_bytes(content)
                    return part.replace(folder / Path(name).name)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    @contextmanager
    def hold(self, path: str | Path) -> Iterator[None]:
        """Keeps the folder that `path` is, or lies in, until the end: a data set that grows, a grid that is being drawn.
        Its age counts from then. Raises InputError when it is gone already."""
        with self._lock:
            entry = self._entries.get(self._top(Path(path)))
            if entry is None:
                raise InputError(GONE)
            entry.holds += 1
        try:
            yield
        finally:
            with self._lock:
                entry.holds -= 1
                entry.since = time.time()

    def spare(self, paths: Iterable[str | Path]) -> None:
        """Files below `also` that are the page's own and stay, like its icons."""
        with self._lock:
            for path in map(Path, paths):
                self._spared |= {folder / path.relative_to(folder).parts[0] for folder in self.also if folder in path.parents}

    def sweep(self) -> None:
        """Removes what is old or over quota. `folder` and `write` do it each time."""
        with self._lock:
            now = time.time()
            self._look(now)
            for path, entry in list(self._entries.items()):
                if not entry.holds and now - entry.since > self.max_age:
                    self._remove(path)
            oldest = sorted(self._entries.items(), key=lambda item: item[1].since)
            theirs = defaultdict(list)
            for path, entry in oldest:
                if entry.visitor is not None:
                    theirs[entry.visitor].append((path, entry))
            for entries in theirs.values():
                self._shrink(entries, self.visitor_quota)
            uploads = [(path, entry) for path, entry in oldest if entry.upload]
            self._shrink(uploads, self.quota // 4, now - YOUNG)
            uploaded = sum(entry.bytes for path, entry in uploads if path in self._entries)
            self._shrink([(path, entry) for path, entry in oldest if not entry.upload], self.quota - uploaded)

    def _top(self, path: Path) -> Path | None:
        """The folder of the store that a path is or lies in; links on the way to the store do not matter."""
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(self.root))
        return self.root / real.relative_to(root).parts[0] if root in real.parents else None

    def _look(self, now: float) -> None:
        """Brings the entries up to what is on the disk."""
        seen = set()
        for folder in (self.root, *self.also):
            upload = folder != self.root
            for found in _listed(folder):
                path = folder / found.name
                if upload and (path in self._spared or not UPLOADED.fullmatch(found.name)):
                    continue
                try:
                    changed = found.stat(follow_symlinks=False).st_mtime
                except OSError:
                    continue
                seen.add(path)
                entry = self._entries.get(path)
                if entry is None:
                    entry = self._entries[path] = _Entry(None, min(changed, now), upload=upload)
                    entry.bytes = _measured(path)
                elif entry.holds or changed != entry.changed or now - entry.since < SETTLING:
                    entry.bytes = _measured(path)
                    if changed != entry.changed and entry.visitor is None:
                        entry.since = min(changed, now)  # never in the future: it would stay for ever
                entry.changed = changed
        for path in self._entries.keys() - seen:
            del self._entries[path]

    def _shrink(self, entries: list[tuple[Path, _Entry]], quota: int, before: float = float("inf")) -> None:
        """Removes some that changed earlier than `before`, the oldest first, until the rest is within the quota."""
        there = [(path, entry) for path, entry in entries if path in self._entries]
        total = sum(entry.bytes for _, entry in there)
        for path, entry in there:
            if total <= quota:
                return
            if not entry.holds and entry.since < before and self._remove(path):
                total -= entry.bytes

    def _remove(self, path: Path) -> bool:
        """Whether it is gone; what cannot be removed is tried again at the next sweep."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
        if os.path.lexists(path):
            return False
        self._entries.pop(path, None)
        return True


@contextmanager
def _saving() -> Iterator[None]:
    """Says of an OSError what a stranger may read; the log has the rest."""
    try:
        yield
    except OSError as error:
        log.error("the store cannot be written: %s", error)
        raise InputError(FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else UNWRITABLE) from None


def _listed(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:  # not there yet, or not any more
        return []


def _measured(path: Path) -> int:
    """The bytes that a file, or a folder with all that is in it, takes on the disk. Links are not followed."""
    folders = list(os.walk(path))
    files = [os.path.join(folder, name) for folder, _, names in folders for name in names] if folders else [path]
    total = BLOCK * (len(folders) + len(files))
    for file in files:
        with suppress(OSError):  # removed meanwhile
            total += os.lstat(file).st_size // BLOCK * BLOCK
    return total
