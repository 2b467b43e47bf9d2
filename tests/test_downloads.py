"""Downloads, from a Hub on this machine: progress, interruption, verification, offline use, and what to do on errors."""

import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants

from dalle_core import ModelError, downloads
from tests import hub as local

REPO = "someone/model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with local.serve() as (hub, url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
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


def test_an_interrupted_download_goes_on_with_what_is_missing(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.repos[REPO] = {"a.json": b"[1]", "a.bin": b"a" * 300_000}
    hub.broken = {"a.bin"}
    with pytest.raises(ModelError, match="files that are complete are kept"):
        fetch()
    assert not downloads.is_cached(REPO, ["a.bin", "*.json"])
    hub.broken.clear()
    hub.requests.clear()
    assert (fetch() / "a.bin").read_bytes() == b"a" * 300_000


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
