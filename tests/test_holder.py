"""The one model that all visitors share: ready, loading, failed."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from dalle_core import CATALOGUE, ModelError
from dalle_core.request import Limits
from dalle_core.studio.holder import ModelHolder


def fake(name: str) -> SimpleNamespace:
    """What the holder reads of a pipeline."""
    cpu = torch.device("cpu")
    return SimpleNamespace(
        name=name,
        revision="",
        limits=Limits(64, 4, 64),
        defaults={},
        examples=[],
        image_size=64,
        grid_size=4,
        device=cpu,
        config=SimpleNamespace(licence="MIT", labels=[]),
        answers=False,
        components={},
        engine=SimpleNamespace(nbytes=0, thread=None),
        prior=SimpleNamespace(device=cpu, dtype=torch.float32, config={}, modules=list),
        image_tokenizer=SimpleNamespace(modules=list),
    )


class Shelf:
    """Loads models by name; those of `broken` fail."""

    def __init__(self, broken=()):
        self.broken, self.asked = set(broken), []
        self.holder = ModelHolder(fake("emoji"), "emoji", self.load)

    def load(self, source, tell):
        assert self.holder._pipe is None, "the model before was not freed first"
        self.asked.append(source)
        if source in self.broken:
            raise ModelError(f"{source} takes 10.5 GB, and 6.0 GB are free.")
        tell("Downloading…")
        return fake(source)


def collect(steps):
    lines = []
    try:
        lines.extend(steps)
    except Exception as error:
        return lines, error
    return lines, None


def test_the_memory_of_slots_counts_as_free_for_the_next_model():
    freed, pipe = [], fake("emoji")
    pipe.engine.nbytes = 5_000_000
    holder = ModelHolder(pipe, "emoji", lambda source, tell: fake(source), lambda source, tell, free: freed.append(free))
    collect(holder.use("dalle-mini"))
    assert freed == [CATALOGUE["emoji"].parameters * 4 + 5_000_000]


def test_the_model_before_is_freed_first_and_comes_back_after_a_failure():
    shelf = Shelf(broken=["dalle-mega"])
    holder = shelf.holder
    assert collect(holder.use("dalle-mini")) == (["Loading dalle-mini…", "Downloading…"], None)
    assert collect(holder.use("dalle-mini")) == ([], None) and holder.loaded.name == "dalle-mini"
    lines, error = collect(holder.use("dalle-mega"))
    assert "10.5 GB" in str(error) and lines == ["Loading dalle-mega…", "Loading dalle-mini again…", "Downloading…"]
    with holder.hold("dalle-mini") as pipe:
        assert pipe.name == "dalle-mini" and holder.state == "ready"
    assert shelf.asked == ["dalle-mini", "dalle-mega", "dalle-mini"]
    assert "not one of this page's models" in str(collect(holder.use("../../etc"))[1])


def test_when_no_model_can_be_loaded_the_page_says_so_and_any_choice_tries_again():
    shelf = Shelf(broken=["dalle-mega", "emoji"])
    holder = shelf.holder
    assert "dalle-mega takes" in str(collect(holder.use("dalle-mega"))[1])
    assert holder.state == "failed" and holder.source == "emoji" and holder.loaded.name == "emoji"
    with (
        pytest.raises(ModelError, match="No model is loaded: emoji could not be loaded again .* Choose a model to try again"),
        holder.hold(),
    ):
        pass
    assert "emoji takes" in str(collect(holder.use("emoji"))[1])  # the same one again: it is tried, not taken for loaded
    shelf.broken.clear()
    assert collect(holder.use("emoji")) == (["Loading emoji…", "Downloading…"], None)
    assert holder.state == "ready" and holder.trouble == ""
    shelf.broken = {"dalle-mega", "emoji"}
    collect(holder.use("dalle-mega"))
    assert collect(holder.use("dalle-mini"))[1] is None and holder.loaded.name == "dalle-mini"


def test_what_nobody_expected_names_nothing_of_the_server():
    def load(source, tell):
        raise RuntimeError("/home/somebody/secret")

    holder = ModelHolder(fake("emoji"), "emoji", load)
    collect(holder.use("dalle-mini"))
    assert "secret" not in holder.trouble and "the server's log says why" in holder.trouble


def test_files_are_downloaded_before_the_model_in_use_is_freed():
    loads = []

    def download(source, tell, freed):
        assert freed == 4 * CATALOGUE["emoji"].parameters
        with holder.hold("emoji") as pipe:  # others go on drawing meanwhile
            assert pipe.name == "emoji"
        tell("Downloading…")
        if source == "dalle-mega":
            raise ModelError("no network")

    def load(source, tell):
        loads.append(source)
        return fake(source)

    holder = ModelHolder(fake("emoji"), "emoji", load, download)
    lines, error = collect(holder.use("dalle-mega"))
    assert lines == ["Downloading…"] and str(error) == "no network" and loads == [] and holder.state == "ready"
    assert collect(holder.use("dalle-mini")) == (["Downloading…", "Loading dalle-mini…"], None)


def test_a_change_waits_for_those_who_draw():
    holder = Shelf().holder
    with holder.hold("emoji") as pipe:
        change = holder.use("dalle-mini")
        assert "Waiting" in next(change) and pipe is holder.held()
    assert "Loading dalle-mini…" in list(change) and holder.loaded.name == "dalle-mini"
    with pytest.raises(ModelError, match="Another visitor"), holder.hold("emoji"):
        pass


def test_newcomers_do_not_starve_a_change():
    """Two people who draw in turn, one always beginning before the other ends, would hold the model for ever."""
    holder, stop, said = Shelf().holder, threading.Event(), []

    def draw_on_and_on():
        while not stop.is_set():
            try:
                with holder.hold("emoji"):
                    time.sleep(0.02)
            except ModelError as error:
                said.append(str(error))
                return

    people = [threading.Thread(target=draw_on_and_on) for _ in range(8)]
    for person in people:
        person.start()
        time.sleep(0.003)
    changed = threading.Event()

    def change():
        list(holder.use("dalle-mini"))
        changed.set()

    threading.Thread(target=change).start()
    assert changed.wait(20), "the change never came about"
    stop.set()
    for person in people:
        person.join()
    assert said and all("Another visitor has just changed the model" in line for line in said)


def test_who_comes_while_a_model_is_loading_waits_for_it():
    go = threading.Event()

    def load(source, tell):
        assert go.wait(20)
        return fake(source)

    holder = ModelHolder(fake("emoji"), "emoji", load)
    first = holder.use("dalle-mini")
    assert next(first) == "Loading dalle-mini…" and holder.state == "loading" and holder.loaded.name == "emoji"
    second = holder.use("dalle-mini")
    assert next(second) == "Waiting for the model that is being loaded…"
    go.set()
    assert list(first) == [] and list(second) == []
    with holder.hold("dalle-mini") as pipe:
        assert pipe.name == "dalle-mini"
