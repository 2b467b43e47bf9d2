"""The judge, the evaluation that asks it, contact sheets, and candidates to train a ranker on."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from dalle_core.errors import ModelError
from dalle_core.training import candidates, contact_sheet, evaluate_emoji
from dalle_core.training import emoji_words as words
from dalle_core.training import judge as judging
from dalle_core.training.data import as_pixels, batches, open_dataset
from dalle_core.training.emoji import EmojiCorpus
from dalle_core.training.loop import Loop
from tests.conftest import make_pipeline
from tests.corpus import make_corpus
from tests.runs import options


@pytest.fixture(scope="module", autouse=True)
def small():
    """Pictures of 48 pixels: the network takes any size. English captions: the tiny model reads no other characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "SIDE", 48)
        patch.setattr(words, "CHINESE_SHARE", 0.0)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return EmojiCorpus(make_corpus(tmp_path_factory.mktemp("corpus")), image_size=64)


def arguments(corpus, out, **others) -> argparse.Namespace:
    values = {"data": str(corpus.folder), "pictures": 48, "learning_rate": 1e-3, "seed": 5}
    return options(out, **values | others)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("judge")
    return judging.train(arguments(corpus, out)), out


def test_it_begins_with_the_means_and_learns(corpus):
    torch.manual_seed(0)
    judge = judging.Judge(sorted(corpus.things), pretrained=True).train()
    judging.start_head(judge, corpus)
    pictures = [corpus._draw("single", [n], "white") for n in corpus.trained]
    shown = [[corpus.icons[n]["concept"]] for n in corpus.trained]
    assert judge.eval().named_right(pictures, shown).float().mean() > 0.8  # squares of eight colours
    scenes, optimizer = judging._Scenes(corpus, judge.concepts), judging.new_optimizer(judge.train(), 3e-4)
    bytes_, targets = (torch.stack(part) for part in zip(*(scenes[i] for i in range(12))))
    assert torch.allclose(targets.sum(1), torch.ones(12)) and set(targets.unique().tolist()) <= {0.0, 0.5, 1.0}
    losses = []
    for _ in range(5):
        torch.manual_seed(3)
        loss = judging.judge_loss(judge, judging.moved(as_pixels(bytes_)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_figures_count_mistakes(corpus, trained):
    judge, _ = trained
    figures = judging.figures(judge, corpus, 12)
    assert 0 <= figures["pairing"]["top_1"] <= 1 and figures["trained"]["top_1"] <= figures["trained"]["top_5"]
    wrong = sum(figures[kind]["pictures"] * (1 - figures[kind]["top_1"]) for kind in ("trained", "style"))
    assert sum(figures["mistakes"].values()) == round(wrong)


def test_both_things_of_a_pair_have_to_be_the_first_two(trained):
    judge, _ = trained
    a, b, c = judge.concepts[:3]
    logits = torch.zeros(3, len(judge.concepts))
    logits[0, [0, 1]], logits[1, [0, 2]], logits[2, 1] = 5.0, 5.0, 5.0
    told = argparse.Namespace(concepts=judge.concepts, logits=lambda images: logits)
    assert judging.Judge.named_right(told, [None] * 3, [[b, a], [a, b], [b]]).tolist() == [True, False, True]


def test_it_goes_on_as_if_it_had_not_been_stopped(corpus, trained, tmp_path, monkeypatch):
    def stops(self):
        if self.step == 2:
            self.save()
            raise ZeroDivisionError

    monkeypatch.setattr(Loop, "_time_to_save", stops)
    with pytest.raises(ZeroDivisionError):
        judging.train(arguments(corpus, tmp_path))
    monkeypatch.undo()
    judging.train(arguments(corpus, tmp_path))
    ours, theirs = (load_file(folder / "judge.safetensors") for folder in (tmp_path, trained[1]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_saved_is_small_and_strictly_loaded(corpus, trained, tmp_path):
    judge, out = trained
    again = judging.load_judge(out)
    assert (out / "judge.safetensors").stat().st_size < 8 * 2**20 and again.concepts == judge.concepts
    picture = [corpus.picture(0)]
    assert torch.allclose(again.logits(picture), judge.logits(picture), atol=0.1)
    weights, about = load_file(out / "judge.safetensors"), (out / "judge.json").read_text(encoding="utf-8")
    (tmp_path / "judge.json").write_text(about, encoding="utf-8")
    for broken, said in (
        ({k: v for k, v in weights.items() if k != "head.bias"}, "head.bias"),
        (weights | {"more": torch.zeros(1)}, "more"),
        (weights | {"head.bias": torch.zeros(3)}, "head.bias"),
    ):
        save_file(broken, tmp_path / "judge.safetensors")
        with pytest.raises(ModelError, match=said):
            judging.load_judge(tmp_path)
    (tmp_path / "judge.json").write_text('{"concepts": [1]}', encoding="utf-8")
    with pytest.raises(ModelError, match="list of texts"):
        judging.load_judge(tmp_path)
    with pytest.raises(ModelError, match="dalle_core.training.judge"):
        judging.load_judge(tmp_path / "nowhere")


def test_mixed_styles_keep_what_is_shown():
    features = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7).view(6, 1, 1, 1)
    torch.manual_seed(1)
    mixed = judging.mix_styles(features)

    def normal(x):
        return (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), keepdim=True)

    assert torch.allclose(normal(mixed), normal(features), atol=1e-3)
    assert not torch.allclose(mixed.std((2, 3)), features.std((2, 3)), rtol=0.05)
    assert mixed.std((2, 3)).max() < features.std((2, 3)).max() * 1.5


# ---------------------------------------------------------------- evaluation


class Told:
    """A judge that finds pictures right whose mean is above a bound: real ones in red are."""

    def named_right(self, images, shown):
        return torch.tensor([np.asarray(image).mean() > 100 for image in images])


def test_evaluation_counts_what_the_judge_finds(tiny_pipeline, corpus):
    items = corpus.evaluated("trained", 3)
    figures, strips = evaluate_emoji.evaluate_kind(tiny_pipeline, Told(), items, 0, "trained")
    named, bests, shares, firsts = figures["named_right"], [], [], []
    for _, caption, _ in items:
        drawn = tiny_pipeline(caption, num_candidates=16, seed=0).candidates
        right = [np.asarray(candidate.image).mean() > 100 for candidate in drawn]
        bests.append(right[0]), shares.append(np.mean(right)), firsts.append(right[[c.index for c in drawn].index(0)])
    assert named["best"] == pytest.approx(np.mean(bests)) and named["all"] == pytest.approx(np.mean(shares))
    assert named["first"] == pytest.approx(np.mean(firsts)) and figures["prompts"] == 3
    assert figures["points_by_ranking"] == pytest.approx(100 * (named["best"] - named["all"]))
    assert named["real"] == pytest.approx(np.mean([np.asarray(image).mean() > 100 for image, _, _ in items]))
    assert len(strips) == 3 and all(len(pictures) == 4 for pictures, _ in strips)
    assert {caption.split(":")[0] for _, caption in strips} <= {"right", "wrong"}


def test_the_command_writes_figures_and_sheets(saved, corpus, trained, tmp_path, monkeypatch):
    out = tmp_path / "evaluation.json"
    monkeypatch.setattr(
        "sys.argv",
        [
            "evaluate_emoji",
            "--model",
            str(saved),
            "--data",
            str(corpus.folder),
            "--judge",
            str(trained[1]),
            "--out",
            str(out),
            "--sheets",
            str(tmp_path / "sheets"),
            "--prompts",
            "2",
        ],
    )
    evaluate_emoji.main()
    result = json.loads(out.read_text(encoding="utf-8"))
    for kind in ("trained", "style", "pairing"):
        if kind == "style" and not corpus.kept_out:
            continue
        assert result[kind]["prompts"] in (1, 2) and set(result[kind]["named_right"]) == {
            "best",
            "first",
            "all",
            "real",
            "reconstructed",
        }
        assert (tmp_path / "sheets" / f"{kind}.png").exists()
    assert out.with_suffix(".png").exists()


def test_the_plain_prompts_are_sixty_of_which_ten_are_chinese():
    prompts = contact_sheet.PLAIN_PROMPTS.read_text(encoding="utf-8").split("\n")
    prompts = [prompt for prompt in prompts if prompt]
    assert len(set(prompts)) == 60 and sum(not prompt.isascii() for prompt in prompts) == 10


def test_a_contact_sheet_shows_pictures_and_captions(saved, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red fox\n\n狐狸和香蕉\n" + "two apples and " * 9 + "\n", encoding="utf-8")
    monkeypatch.setattr(
        "sys.argv",
        [
            "contact_sheet",
            "--model",
            str(saved),
            "--prompts",
            str(tmp_path / "prompts.txt"),
            "--candidates",
            "2",
            "--out",
            str(tmp_path / "new" / "sheet.png"),
        ],
    )
    contact_sheet.main()
    sheet = np.array(Image.open(tmp_path / "new" / "sheet.png"))
    side = contact_sheet.SIDE
    assert sheet.shape[1] == 3 * (side + 8) and sheet.shape[0] > side + 20
    for k in range(3):
        below = sheet[side : side + 40, k * (side + 8) : k * (side + 8) + side]
        assert (below < 128).any()  # letters
        assert sheet[:side, k * (side + 8) : k * (side + 8) + side].std() > 5
    letters = contact_sheet.font(contact_sheet.LETTERS)
    cut = contact_sheet.lines("two apples and " * 9, side, letters)
    assert len(cut) == 3 and cut[-1].endswith("…") and all(letters.getlength(line) < side + 15 for line in cut)
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet.captioned([], 2)


# ---------------------------------------------------------------- candidates for the ranker


@pytest.fixture(scope="module")
def drawn(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("candidates")
    candidates.draw_candidates(make_pipeline(), str(corpus.folder), folder, blocks=1, block=16, candidates=2)
    return folder


def test_candidates_go_on_where_they_were_stopped(corpus, drawn, tmp_path):
    lines = (drawn / "metadata.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 48 and [json.loads(line)["is_it"] for line in lines[:3]] == [True, False, False]
    for file in drawn.iterdir():
        if not file.name.startswith("0000015"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "metadata.jsonl").write_text("".join(lines[:45]) + lines[45][:9], encoding="utf-8")
    candidates.draw_candidates(make_pipeline(), str(corpus.folder), tmp_path, blocks=1, block=16, candidates=2)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {f.name: f.read_bytes() for f in drawn.iterdir()}
    with pytest.raises(ValueError, match="name a new folder"):
        candidates.draw_candidates(make_pipeline(), str(corpus.folder), drawn, blocks=1, block=16, candidates=2, seed=1)


def test_candidates_that_are_drawn_together_are_the_same(corpus, drawn, tmp_path):
    candidates.draw_candidates(make_pipeline(), str(corpus.folder), tmp_path, blocks=1, block=16, candidates=2, at_once=5)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == {f.name: f.read_bytes() for f in drawn.iterdir()}


def test_a_ranker_meets_the_models_own_candidates(corpus, drawn):
    data = open_dataset(str(drawn), 64, seed=3)
    assert isinstance(data, candidates.RankerPictures) and data.contrast(16) is data
    with pytest.raises(ValueError, match="--batch-size 16"):
        data.contrast(8)
    pictures = {name: np.array(Image.open(drawn / name)) for name in sorted(f.name for f in drawn.glob("*.png"))}
    kinds = []
    for i in range(16):
        image, text = data[i]
        found = [name for name, array in pictures.items() if name.startswith(f"{i:07}") and np.array_equal(array, image)]
        kinds.append(int(found[0][-5]) if found else "own")
        if found:
            assert text == data.entries[i][0]
        else:
            assert np.array_equal(np.array(data.drawn_for.picture(i)), np.array(image))
        assert len(data.wrong(i)) == (0 if kinds[-1] in (1, 2) else 2)
    assert {"own", 0, 1} <= set(kinds)
    assert data.caption(16) == data.corpus.caption(16) and data.wrong(16) == []  # every other block is the corpus
    assert data.picture(32).tobytes() != data.picture(0).tobytes()  # the same prompt again: another picture of it
    bytes_, texts, _ = next(iter(batches(data, 16, 0, 1, workers=0)))
    assert bytes_.shape == (16, 3, 64, 64) and len(set(texts)) > 8


def test_a_damaged_folder_of_candidates_is_named(drawn, tmp_path):
    (tmp_path / "ranker.json").write_text((drawn / "ranker.json").read_text(encoding="utf-8"), encoding="utf-8")
    lines = (drawn / "metadata.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for wrong in ('{"number": "1"}\n', json.dumps({"number": 1, "is_it": True, "file_name": "../x.png", "text": "a"}) + "\n"):
        (tmp_path / "metadata.jsonl").write_text(wrong + "".join(lines), encoding="utf-8")
        with pytest.raises(ValueError, match="line 1"):
            open_dataset(str(tmp_path), 64)
    (tmp_path / "metadata.jsonl").write_text("".join(lines[:9]), encoding="utf-8")
    with pytest.raises(ValueError, match="no complete block of 16"):
        open_dataset(str(tmp_path), 64)
