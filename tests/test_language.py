"""The Chinese of the page is whole: every text of the built page, and every sentence of the sources that visitors can meet."""

import ast
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dalle_core.compare import Axis
from dalle_core.pipeline import Label
from dalle_core.recipe import Drawn
from dalle_core.request import DrawingRequest
from dalle_core.studio.grid import Grid
from dalle_core.studio.pool import Picture
from dalle_core.studio.runs import Run
from dalle_core.studio.studio import GridUpdate, Update
from demo import create_demo, language, launch_options, models, open_studio, pictures, progress
from demo.tabs import chosen, compare, dataset, recognise, tokens, train
from demo.tabs import grid as grid_of_create
from tests.conftest import make_pipeline

ROOT = Path(__file__).parent.parent
CHINESE = language.CHINESE
# Gradio's own texts, which stand in no source of the project.
GRADIO = {
    "Drop Image Here",
    "Drop an image file here to upload",
    "Drop File Here",
    "- or -",
    "Click to Upload",
    "Paste from Clipboard",
    "Error",
    "Warning",
    "Close",
    "Use via API or MCP",
    "Gradio footer navigation",
    "More tabs",
    "Reset to default value",
    "Fullscreen",
    "Exit fullscreen mode",
    "Undo",
    "undo",
    "Remove Image",
    "Upload file",
    "Click to upload or drop files",
    "Capture from camera",
    "Paste from clipboard",
    "Click to Access Webcam",
    "Empty value",
    "common.complete",
    "Uploading...",
    "Loading",
    "Clear",
    "Download",
    "Empty",
    "processing |",
    "Connection to the server was lost. Attempting reconnection...",
}
SAME = {"Top-k", "Top-p", "CLIP", "X", "Y", "tiny", "20.0 dB"}  # the field's own terms, the model's name, a unit
# Sentences as they stand in the sources, 7 for each value. Those put together from parts; the dictionary has the outcomes.
COMPOSED = {
    "7 is 7; it must be a 7number 7.",
    "7 failed. The server's log says why; try again.",
    "A visitor may ask for 7: ask for less.",
    "A visitor may ask for 7, and yours are used up. Try again in 7 7.",
    "7 has the shape 7; this model's grid is 7.",
    "7: the prompt has 7 characters; 7 are the most.",
    "7 has no prompt.",
    "7 has 7 cells, the header 7: put a prompt that holds a “7” in quotation marks.",
    "Prompt 7: 7",
    "7: 7 is not a 7number.",
    "7 takes 7 in 7, and 7 are free on 7.7 Close other programs, or choose a smaller model.",
}
# And those that only programs and commands meet.
NOT_ON_THE_PAGE = (
    "int8",
    "must be text",
    "image_tokens",
    "keep must be boolean",
    "give at least one",
    "name a new folder",
    "name another folder",
    "Name another folder",
    "the best are chosen among",
    "the same command goes on",
    "device 7",
    "device 'mps'",
    "There is no model",
    "There is no LoRA",
    "The replicas could not",
    "buffer",
    "Give a picture or its tokens",
    "Give rows or keep",
    "A picture must be a file that was uploaded",
    "texts; 7 are the most",
    "This address",
    "The file at this address",
    "This data: URL is damaged",
    "must be a grid of numbers",
    "must be a list; a grid has up to",
)
PATTERNS = [re.compile("(.+?)".join(map(re.escape, key.split("{}"))), re.DOTALL) for key in CHINESE if "{}" in key]


def is_known(text: str) -> bool:
    text = text.strip()
    letters = re.search("[A-Za-z]{2,}", text)
    return not letters or text in SAME or text in CHINESE or any(pattern.fullmatch(text) for pattern in PATTERNS)


class Texts(HTMLParser):
    """The texts of some HTML, and its attributes that are read out; not those inside translate="no"."""

    def __init__(self, html: str):
        super().__init__()
        self.found, self.skipped = [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if self.skipped is None and attributes.get("translate") == "no":
            self.skipped = tag
        self.found += [attributes[name] for name in ("aria-label", "placeholder", "title") if name in attributes]

    def handle_endtag(self, tag):
        if tag == self.skipped:
            self.skipped = None

    def handle_data(self, data):
        if self.skipped is None:
            self.found.append(data)


def texts_of_the_page() -> set[str]:
    found = set()
    for component in create_demo(open_studio(make_pipeline(), "tiny", lambda source, tell: None), runs=Path("runs")).config[
        "components"
    ]:
        props = component["props"]
        if component["type"] == "api":  # an argument of an endpoint
            continue
        if {"offstage", "notranslate"} & set(props.get("elem_classes") or []) or props.get("visible") is False:
            continue
        found |= {props[name] for name in ("label", "info") if props.get(name)}
        if component["props"].get("elem_id") != "augment-prompts":  # whose placeholder are example prompts
            found.add(props.get("placeholder") or "")
        found |= {name for name, _ in props.get("choices") or []}
        if component["type"] in ("html", "markdown", "button"):
            found |= set(Texts(props.get("value") or "").found)
    return found


def test_every_text_of_the_built_page_is_translated():
    assert sorted(text for text in texts_of_the_page() if not is_known(text)) == []


def test_what_handlers_show_is_translated(tiny_pipeline, monkeypatch):
    def picture(score, several=False):
        request = DrawingRequest("a fox", num_candidates=1, temperature=1.0, top_k=0, top_p=1.0, guidance_scale=1.0)
        return Picture(Drawn(request, 7, 0, score, None), "", 1, several=several)

    monkeypatch.setattr(models, "free_bytes", lambda device: 10**9)
    holder = open_studio(tiny_pipeline, "emoji", lambda source, tell: None).holder
    labels = [label for label, _ in models.labelled(holder)]
    assert any("too large" in label for label in labels)
    loaded = [
        replace(holder.loaded, source=source, model=source, name=f"{source} + foxes")
        for source in ("tiny", "emoji", "dalle-mini")
    ]
    drawn, none = dataset.Progress(2, 1, 4), Axis("", [None])
    grid, half = Grid(none, none, {}), Grid(none, none, {(0, 0): picture(0.5), (0, 1): picture(0.5)})
    cut = Update(
        cut=(
            ("prompt", "a fox", "and more"),
            ("negative prompt", "a fox", "and more"),
            ("prompt, for CLIP", "a fox", "and more"),
        )
    )
    unknown = progress.unknown((("kitten", ["cat", "cat face"]), ("xyz", [])))
    shown = [
        unknown,
        progress.of(Update("", 5, 16, 2.0)),
        progress.of(Update(pictures=[picture(0.5)], seed=7, elapsed=1.5)),
        progress.of(Update(pictures=[picture(None)], seed=7)),
        progress.STARTING,
        progress.STOPPED,
        progress.cut(cut),
        grid_of_create.EMPTY,
        chosen.facts(picture(0.5), [picture(0.5), picture(0.25)]),
        pictures.label(picture(0.5, True)),
        pictures.label(picture(None, True)),
        *(models.facts(one) for one in loaded),
        *labels,
        *(known.note for known in models.CATALOGUE.values()),
        tokens.figures([[1, 2], [2, 3]], 64, 20.0),
        *(
            compare.line(GridUpdate(*update))
            for update in ((grid, 4, 1.0, 7), (half, 4, 1.0, 7), (half, 2, 1.0, 7), (half, 2, 1.0, None))
        ),
        recognise.ranking([Label("a fox", 0.5, 0.9, -1.0), Label("two apples", 0.4, 0.1, -0.5)]),
        recognise.ranking([Label("a fox", 0.5, 0.9, -0.5), Label("two apples", 0.4, 0.1, -1.0)]),
        *(train.status(Run(ROOT, 5, steps, left, True)) for steps, left in ((None, None), (9, 3.0), (9, 3000.0), (9, 30000.0))),
        train.status(Run(ROOT, 5, 9)),
        dataset.status(drawn, 3.0),
        dataset.status(drawn, 3000.0),
        dataset.cut_notice(1, 2),
    ]
    assert [text for html in shown for text in Texts(html).found if not is_known(text)] == []


def sentences(path: Path):
    """What the calls that speak to visitors say, with 7 for each value."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = isinstance(call, ast.Call) and (getattr(call.func, "attr", None) or getattr(call.func, "id", None))
        if name not in ("InputError", "ModelError", "Busy", "Error", "Warning", "said", "tell", "sentence") or not call.args:
            continue
        for part in ast.walk(call.args[0]) if isinstance(call.args[0], ast.IfExp) else [call.args[0]]:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value
            elif isinstance(part, ast.JoinedStr):
                yield "".join(value.value if isinstance(value, ast.Constant) else "7" for value in part.values)


def constants(path: Path):
    """The sentences that a module has by a name, with 7 for each value."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.JoinedStr):
            yield "".join(value.value if isinstance(value, ast.Constant) else "7" for value in node.value.values)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


CORE = (
    "pipeline",
    "vocabulary",
    "request",
    "recipe",
    "augment",
    "compare",
    "catalogue",
    "memory",
    "downloads",
    "text_tokenizer",
    "image_tokenizer",
)


@pytest.mark.parametrize(
    "path",
    [
        *sorted(set((ROOT / "demo").rglob("*.py")) - {ROOT / "demo" / "space.py"}),  # a command
        *sorted((ROOT / "dalle_core" / "studio").glob("*.py")),
        *(ROOT / "dalle_core" / f"{name}.py" for name in CORE),
    ],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_every_sentence_for_visitors_is_translated(path):
    named = [text for text in constants(path) if re.fullmatch(r"[A-Z][^<>{}\n]+\.", text)]
    lost = {text for text in (*sentences(path), *named) if not is_known(text)} - COMPOSED
    assert [text for text in lost if not any(part in text for part in NOT_ON_THE_PAGE)] == []


@pytest.mark.parametrize("name", ["history.js", "vote.js"])
def test_what_the_scripts_say_is_translated(name):
    source = (ROOT / "demo" / "static" / name).read_text(encoding="utf-8")
    said = re.findall(r"(?:say|confirm)\((?:dalleLanguage\.say\()?([\"`])(.*?)\1", source)
    said += re.findall(r"textContent = ([\"`])(.*?)\1", source)
    said += re.findall(r"make\(\"(?:button|li)\", (?:all\.length \? )?([\"`])(.*?)\1", source)
    said += re.findall(r"(?:placeholder|ariaLabel): ([\"`])(.*?)\1", source)
    texts = [re.sub(r"\$\{(?:[^{}]|\{[^}]*\})*\}", "7", text) for _, text in said]
    texts = [text + "7" if text.endswith(": ") else text for text in texts]  # what is appended
    assert texts and [text for text in texts if not is_known(text)] == []


def test_the_fillings_of_keys_and_values_agree():
    for key, value in CHINESE.items():
        places = re.findall(r"\{(\d?)\}", value)
        assert len(places) == key.count("{}"), key
        if any(places):  # all numbered, each once
            assert sorted(places) == [str(number) for number in range(1, len(places) + 1)], key
        assert value == value.strip() and key == key.strip(), key


def test_every_exact_key_is_in_the_sources():
    files = [*(ROOT / "demo").rglob("*.py"), *(ROOT / "demo" / "static").glob("*.js"), *(ROOT / "dalle_core").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    text = re.sub(r"([\"'])\s*\n\s*f?\1", "", text)  # strings over several lines
    built = texts_of_the_page()
    built |= {f"{what} failed. The server's log says why; try again." for what in re.findall(r'sentences\("([^"]+)"\)', text)}
    assert [key for key in CHINESE if "{}" not in key and key not in GRADIO | built and key not in text] == []
    assert set(CHINESE) >= GRADIO


def test_the_page_carries_dictionary_and_script(tiny_pipeline):
    head = launch_options(open_studio(tiny_pipeline, "tiny"))["head"]
    assert "dalleChinese" in head and "提示词" in head
    assert head.count("</script>") == head.count("<script>") and "</" not in language.WORDS
