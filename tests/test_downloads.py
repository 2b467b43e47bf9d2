"""Downloads, from a Hub on this machine: progress, interruption, verification, offline use, and what to do on errors."""

import hashlib
import shutil
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from dalle_core import ModelError, downloads
from tests import hub as local

REPO = "someone/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with local.serve() as (hub, url):
        local.use(url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
        hub.repos[REPO] = {"a.bin": b"a" * 3_000_000, "b.json": b"{}", "other.bin": b"x" * 1000}
        yield hub


def fetch(tell=None):
    return downloads.fetch(REPO, ["a.bin", "*.json"], tell=tell)


def test_only_what_is_asked_for_is_downloaded_and_then_no_call_is_made(hub):
    lines = []
    assert not downloads.is_cached(REPO, ["a.bin", "*.json"])
    folder = fetch(lines.append)
    assert sorted(path.name for path in folder.iterdir()) == ["a.bin", "b.json"]
    assert (folder / "a.bin").read_bytes() == hub.repos[REPO]["a.bin"]
    assert any("someone/model" in line and "MB/s" in line and "s left" in line for line in lines)
    assert downloads._recorded() == {REPO: local.SHA}
    hub.requests.clear()
    assert fetch() == folder and downloads.is_cached(REPO, ["a.bin", "*.json"])
    assert hub.requests == []


def test_the_first_revision_is_kept(hub):
    folder = fetch()
    hub.repos[REPO]["b.json"] = b"changed"
    assert fetch() == folder and (folder / "b.json").read_bytes() == b"{}"


def test_an_interrupted_download_goes_on_where_it_stopped(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is written at a time
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's own tries
    content = bytes(range(256)) * 1200
    hub.repos[REPO] = {"a.json": b"[1]", "a.bin": content}
    hub.broken = {"a.bin"}
    hub.stops_at = 100_000
    with pytest.raises(ModelError, match="what has arrived is kept"):
        fetch()
    assert not downloads.is_cached(REPO, ["a.bin", "*.json"])
    hub.broken.clear()
    hub.ranges.clear()
    lines = []
    assert (fetch(lines.append) / "a.bin").read_bytes() == content
    assert "bytes=100000-" in hub.ranges
    assert not list((downloads.Path(constants.HF_HUB_CACHE)).rglob("*.partial"))


def test_what_was_left_of_a_download_is_not_trusted(hub):
    """Bytes of another file, and more of them than the file has: both are found by the checksum or the size."""
    sha = hashlib.sha256(hub.repos[REPO]["a.bin"]).hexdigest()
    part = downloads.Path(constants.HF_HUB_CACHE) / "models--someone--model" / "blobs" / f"{sha}.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"b" * 1000)
    with pytest.raises(ModelError, match="a.bin arrived damaged"):
        fetch()
    part.write_bytes(b"b" * 4_000_000)
    assert (fetch() / "a.bin").read_bytes() == hub.repos[REPO]["a.bin"]


def test_files_by_pattern_are_whole_or_asked_for_again(hub, monkeypatch):
    """A model in this project's layout: which files it has is known only when its download came to its end."""
    hub.repos[REPO] = {"model_index.json": b"{}", "a/x.safetensors": b"1" * 1000, "b/x.safetensors": b"2" * 1000}
    hub.broken = {"b/x.safetensors"}
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    patterns = ["*.json", "*.safetensors"]
    with pytest.raises(ModelError):
        downloads.fetch(REPO, patterns)
    hub.broken.clear()
    folder = downloads.fetch(REPO, patterns)
    assert (folder / "b" / "x.safetensors").read_bytes() == b"2" * 1000
    hub.requests.clear()
    assert downloads.fetch(REPO, patterns) == folder and hub.requests == []
    # Brought by other means, so nothing is recorded, and there is no network: what is here is taken.
    downloads._record_file().unlink()
    huggingface_hub.snapshot_download(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert downloads.fetch(REPO, patterns) == folder


def test_a_file_that_arrives_changed_is_removed(hub):
    hub.corrupt = {"a.bin"}
    hub.repos[REPO]["a.bin"] = bytes(range(256)) * 100
    with pytest.raises(ModelError, match="a.bin arrived damaged"):
        fetch()
    hub.corrupt.clear()
    assert (fetch() / "a.bin").read_bytes() == bytes(range(256)) * 100


def test_what_goes_wrong_says_what_to_do(hub, monkeypatch):
    with pytest.raises(ModelError, match="no repository 'someone/absent'"):
        downloads.fetch("someone/absent", ["*.json"])
    with pytest.raises(ModelError, match="has no file c.bin"):
        downloads.fetch(REPO, ["c.bin"])
    hub.refused = {"someone/gated": "GatedRepo", "someone/private": "RepoNotFound"}
    with pytest.raises(ModelError, match="gated: accept its terms"):
        downloads.fetch("someone/gated", ["*.json"])
    with pytest.raises(ModelError, match="it is private"):
        downloads.fetch("someone/private", ["*.json"])
    with pytest.raises(ModelError, match="not a Hub id"):
        downloads.fetch("a b/c", ["*.json"])
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(ModelError, match="takes 3 MB, and 1 MB are free"):
        fetch()


def test_no_network_and_offline_mode(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match="could not be downloaded"):
        fetch()
