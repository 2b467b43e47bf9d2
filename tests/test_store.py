"""The store of files: what is old or over quota goes, and nothing stays for ever, however the server ended."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dalle_core import InputError
from dalle_core.studio import store as module
from dalle_core.studio.store import BLOCK, GONE, Store

MB = 2**20
ROOT = Path(__file__).parent.parent


def aged(path: Path, seconds: float) -> Path:
    """As if it had been changed that long ago; for what a store does not know yet."""
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def pause():
    time.sleep(0.02)  # clocks of files are coarse


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache" / "studio"


def test_a_file_lies_in_a_folder_that_nobody_can_guess_and_nobody_else_can_list(root):
    store = Store(root)
    path = store.write("ann", "fox.png", b"picture")
    assert path.read_bytes() == b"picture" and path.name == "fox.png" and path.parent.parent == root
    assert len(path.parent.name) >= 22 and store.folder("ann") != path.parent
    assert {folder.stat().st_mode & 0o777 for folder in (root, path.parent)} == {0o700}
    assert [file.name for file in path.parent.iterdir()] == ["fox.png"]


def test_what_is_old_goes_and_what_is_held_stays(root):
    store = Store(root, max_age=0.3)
    old, held = store.write("ann", "a", b"a"), store.write("ann", "b", b"b")
    with store.hold(held):
        time.sleep(0.4)
        new = store.write("ben", "c", b"c")
        assert not old.parent.exists() and held.exists() and new.exists()
    store.sweep()
    assert held.exists()  # its age counts from the end of the hold
    time.sleep(0.4)
    store.sweep()
    assert not held.parent.exists() and not new.parent.exists() and not list(root.iterdir())


def test_a_visitor_over_quota_loses_his_own_oldest_and_nobody_else_anything(root):
    store = Store(root, visitor_quota=3 * MB)
    other = store.write("ann", "a", bytes(2 * MB))
    pause()
    mine = []
    for name in "bcd":
        mine.append(store.write("ben", name, bytes(MB)))
        pause()
    store.sweep()
    assert [path.exists() for path in mine] == [False, True, True] and other.exists()


def test_over_the_whole_quota_the_oldest_go_first(root):
    store = Store(root, quota=3 * MB, visitor_quota=3 * MB)
    paths = []
    for visitor in "abcd":
        paths.append(store.write(visitor, "x", bytes(MB)))
        pause()
    with store.hold(paths[1]):
        store.sweep()
        assert [path.exists() for path in paths] == [False, True, False, True]


def test_a_folder_that_grows_is_measured_anew(root):
    store = Store(root, visitor_quota=2 * MB)
    growing = store.folder("ann")
    with store.hold(growing / "pictures"):
        store.sweep()
        (growing / "pictures").mkdir()
        (growing / "pictures" / "a.png").write_bytes(bytes(3 * MB))
        store.sweep()
        assert growing.exists()  # it is held
    store.sweep()
    assert not growing.exists()


def test_a_great_many_tiny_files_count_too(root):
    store = Store(root, visitor_quota=100 * BLOCK)
    folder = store.folder("ann")
    for number in range(200):
        (folder / str(number)).touch()
    store.sweep()
    assert not folder.exists()


def test_after_a_restart_everything_is_an_unknown_visitor_s_and_ages_by_its_time(root):
    before = Store(root, visitor_quota=10 * MB)
    old, new = before.folder("ann"), before.folder("ann")
    (root / "stray").write_text("a file that nobody registered", encoding="utf-8")
    aged(old, 100), aged(root / "stray", 100)
    future = before.folder("ann")
    os.utime(future, (time.time() + 10**6,) * 2)
    store = Store(root, max_age=50)
    assert not old.exists() and not (root / "stray").exists() and new.exists() and future.exists()
    store.max_age = 0.05
    time.sleep(0.1)
    store.sweep()
    assert not list(root.iterdir())  # not even what claims to be of tomorrow


def test_a_root_that_disappears_is_made_anew(root, tmp_path):
    store = Store(root)
    path = store.write("ann", "a", b"a")
    with store.hold(path):
        shutil.rmtree(tmp_path / "cache")
        assert store.write("ann", "b", b"b").read_bytes() == b"b"
    store.sweep()
    with pytest.raises(InputError, match="no longer here"):
        store.hold(path).__enter__()


def test_what_is_not_the_store_s_cannot_be_held(root, tmp_path):
    store = Store(root)
    for path in (tmp_path, root, root / "never-made", "/etc"):
        with pytest.raises(InputError) as refused, store.hold(path):
            pass
        assert str(refused.value) == GONE


@pytest.mark.parametrize("number, said", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "could not save")])
def test_a_disk_that_cannot_be_written_is_a_sentence_without_a_path(root, monkeypatch, number, said):
    store = Store(root)

    def fail(path, *_, **__):
        raise OSError(number, os.strerror(number), str(path))

    kept = store.write("ann", "a", b"a")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(InputError, match=said) as refused:
        store.write("ann", "b", b"b")
    assert str(root) not in str(refused.value) and os.strerror(number) not in str(refused.value)
    assert list(root.iterdir()) == [kept.parent]  # not half a file, nor its folder
    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(InputError, match=said):
        store.folder("ann")


@pytest.fixture
def cache(root):
    root.parent.mkdir()
    return root.parent


def upload(cache, letter: str, size: int, age: float) -> Path:
    """As Gradio leaves it."""
    path = cache / (letter * 64) / "photo.png"
    path.parent.mkdir()
    path.write_bytes(bytes(size))
    aged(path.parent, age)
    return path


def test_uploads_and_what_is_left_of_unfinished_ones_go_with_age(root, cache):
    old, new = upload(cache, "a", 10, 1000), upload(cache, "b", 10, 10)
    (cache / "tmpabc_1234").write_text("half an upload", encoding="utf-8")
    (cache / "other-program").mkdir()
    (cache / "tmpabcd1235").write_text("on its way", encoding="utf-8")
    icon = upload(cache, "c", 10, 1000)
    for path in ("tmpabc_1234", "other-program"):
        aged(cache / path, 1000)
    store = Store(root, max_age=10**6, also=[cache])
    store.spare([icon])
    store.max_age = 500
    store.sweep()
    names = {path.name for path in cache.iterdir()}
    assert names == {"b" * 64, "other-program", "tmpabcd1235", "c" * 64} and new.exists() and not old.exists()


def test_uploads_have_a_quarter_of_the_quota_and_push_out_no_pictures(root, cache):
    store = Store(root, quota=8 * MB, also=[cache])
    picture = store.write("ann", "a", bytes(5 * MB))
    uploads = [upload(cache, letter, MB - 2 * BLOCK, age) for letter, age in zip("abcd", (400, 300, 200, 1))]
    store.sweep()
    assert [path.exists() for path in uploads] == [False, False, True, True] and picture.exists()
    aged(uploads[3].parent, 100)
    upload(cache, "e", MB, 1), upload(cache, "f", MB, 1)
    store.sweep()  # what came in this minute may be in use, whatever the quota
    assert {path.name[0] for path in cache.iterdir()} == {"s", "e", "f"} and picture.exists()


def test_threads_share_a_store(root):
    store, failed = Store(root, quota=2 * MB, visitor_quota=MB), []

    def work(visitor):
        try:
            for _ in range(20):
                path = store.write(visitor, "a", bytes(50_000))
                with store.hold(path):
                    assert path.stat().st_size == 50_000
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(visitor,)) for visitor in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.sweep()
    assert all(isinstance(error, InputError) and str(error) == GONE for error in failed)  # over quota, it may go at once
    assert sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) <= 2 * MB


KILLED = """
import sys, types
package = sys.modules["dalle_core"] = types.ModuleType("dalle_core")  # without PyTorch, which takes seconds
package.__path__ = ["dalle_core"]
from dalle_core.studio.store import Store
store = Store(sys.argv[1], quota=20 * 2**20)
with store.hold(store.folder("ann")):
    print("begun", flush=True)
    while True:
        store.write("ann", "a", bytes(2 * 2**20))
"""


def test_a_server_that_is_killed_leaves_nothing_for_ever(root):
    for wait in (0.0, 0.05, 0.11):
        server = subprocess.Popen([sys.executable, "-c", KILLED, str(root)], stdout=subprocess.PIPE, cwd=ROOT)
        server.stdout.readline()
        time.sleep(wait)
        server.send_signal(signal.SIGKILL)
        server.wait()
    assert list(root.iterdir())
    store = Store(root, max_age=60)
    for path in list(root.iterdir()):
        aged(path, 100)
    store.sweep()
    assert not list(root.iterdir())


def test_looking_through_thousands_of_settled_folders_is_cheap(root, monkeypatch):
    root.mkdir(parents=True)
    for number in range(300):
        (root / f"old{number}").mkdir()
        aged(root / f"old{number}", 5000)
    store, measured = Store(root), []
    monkeypatch.setattr(module, "_measured", lambda path: measured.append(path) or BLOCK)
    store.write("ann", "a", b"a")
    store.sweep()
    assert len(set(measured)) <= 1  # the new one alone
