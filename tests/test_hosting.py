"""What a public host gets: a Space's files, a page with bounds."""

import json

import huggingface_hub
import pytest
import yaml
from gradio.routes import App
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

from demo import Models, about, create_demo, launch_options, pictures, public, space, tokens


class Hub:
    """Stands for HfApi; remembers."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo, **arguments):
        self.calls.append(("create_repo", repo, arguments))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/spaces/{repo}")

    def create_commit(self, repo, operations, **arguments):
        self.calls.append(("create_commit", repo, [operation.path_in_repo for operation in operations]))


def test_a_space_gets_the_page_the_core_and_the_model_and_nothing_else():
    hub = Hub()
    assert space.push(hub, "someone/icons").endswith("someone/icons")
    (_, _, made), (_, repo, paths) = hub.calls
    assert made["repo_type"] == "space" and made["space_sdk"] == "gradio" and repo == "someone/icons"
    assert {"app.py", "requirements.txt", "README.md", "demo/__init__.py", "dalle_core/checkpoints/vqgan.py"} <= set(paths)
    assert {"assets/emoji/model_index.json", "demo/dice.svg"} <= set(paths)
    folders = {path.split("/")[0] for path in paths if "/" in path}
    assert folders == {"demo", "dalle_core", "assets"} and not any("pycache" in path or "screenshots" in path for path in paths)


def test_a_space_s_front_matter_is_complete():
    front = yaml.safe_load(space.README.split("---")[1])
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py" and front["python_version"] == "3.12"
    assert len(front["short_description"]) <= 60


@pytest.mark.parametrize("error, said", [
    (huggingface_hub.errors.LocalTokenNotFoundError("x"), "hf auth login"),
    (huggingface_hub.errors.HFValidationError("Repo id must use alphanumeric chars\nmore"), "alphanumeric"),
])  # fmt: skip
def test_what_goes_wrong_is_one_line(monkeypatch, capsys, error, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(space, "push", fail)
    monkeypatch.setattr("sys.argv", ["space", "a/b"])
    with pytest.raises(SystemExit):
        space.main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_a_page_offers_no_more_than_its_model_allows(own_pipeline):
    own_pipeline.max_candidates = 16
    demo = create_demo(Models(own_pipeline, "tiny"))
    sliders = {block.elem_id: block for block in demo.blocks.values() if getattr(block, "elem_id", None)}
    assert sliders["candidates"].maximum == 16
    assert launch_options(public=True)["state_session_capacity"] < launch_options()["state_session_capacity"]


@pytest.fixture
def visit(own_pipeline, monkeypatch):
    """Makes visitors of one page by their address; its queue takes requests and works on none, so that they wait."""
    monkeypatch.delenv("SPACE_ID", raising=False)
    monkeypatch.setattr(public, "PLACES", 2)
    apps = {}

    def visit(host, is_public=True, **headers):
        if is_public not in apps:
            demo = create_demo(Models(own_pipeline, "tiny"))
            apps[is_public] = App.create_app(demo, app_kwargs=launch_options(is_public)["app_kwargs"])
        return TestClient(apps[is_public], client=(host, 1), headers=headers)

    return visit


def join(visitor):
    return visitor.post("/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "a"})


def call(visitor):
    return visitor.post("/gradio_api/call/reconstruct", json={"data": [None]})


@pytest.mark.parametrize("way", [join, call])
def test_an_address_holds_few_places_of_the_queue_and_another_is_not_affected(visit, way):
    assert [way(visit("192.0.2.1")).status_code for _ in range(4)] == [200, 200, 429, 429]
    assert "2 of your requests are waiting already" in way(visit("192.0.2.1")).json()["detail"]
    assert way(visit("192.0.2.2")).status_code == 200


def test_an_address_joins_the_queue_only_so_often(visit, monkeypatch):
    monkeypatch.setattr(public, "PLACES", 1000)
    monkeypatch.setattr(public, "RATE", public.parse("3/minute"))
    assert [join(visit("192.0.2.1")).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    assert "too many requests" in join(visit("192.0.2.1")).json()["detail"]
    assert join(visit("192.0.2.2")).status_code == 200
    assert visit("192.0.2.1").get("/gradio_api/info").status_code == 200


def test_without_public_mode_there_is_no_bound(visit):
    assert {join(visit("192.0.2.1", is_public=False)).status_code for _ in range(5)} == {200}


def test_a_forged_address_does_not_help(visit, monkeypatch):
    forged = [{"X-Forwarded-For": f"198.51.100.{i}"} for i in range(3)]
    assert [join(visit("192.0.2.1", **headers)).status_code for headers in forged] == [200, 200, 429]
    monkeypatch.setenv("SPACE_ID", "someone/icons")  # all visitors come from the Space's proxy, which names them last
    for visitor in ("203.0.113.1", "203.0.113.2"):
        proxied = [{"X-Forwarded-For": f"198.51.100.{i}, {visitor}"} for i in range(3)]
        assert [join(visit("192.0.2.9", **headers)).status_code for headers in proxied] == [200, 200, 429]


def test_all_that_draws_shares_one_bound_of_how_many_at_once(own_pipeline):
    demo = create_demo(Models(own_pipeline, "tiny"), together=3)
    # Gradio takes the lowest of all; one without a limit would bring them down to its default of one.
    assert {fn.concurrency_limit for fn in demo.fns.values() if fn.concurrency_id == "sampling"} == {3}


def test_the_card_comes_without_its_front_matter(tmp_path):
    assert about.card(str(tmp_path)) == ""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n")
    assert about.card(str(tmp_path)).strip() == "# A model"
    assert "kept out" in about.card("emoji").lower()


def test_the_table_of_parts_counts_what_is_saved(tiny_pipeline):
    table = about.sizes(tiny_pipeline)
    assert "VQModel" in table and "GPTPrior" in table and "CLIPModel" in table


@pytest.fixture(scope="module")
def client(tiny_pipeline, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    demo = create_demo(Models(tiny_pipeline, "tiny"))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    demo.close()
    patch.undo()


def test_the_endpoints_have_plain_names(client):
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/generate", "/complete", "/reconstruct", "/recognise", "/compare", "/augment"}


def test_complete_keeps_the_rows_at_the_top(client, tiny_pipeline, tmp_path):
    picture = tiny_pipeline("a red fox", num_candidates=1, seed=1).candidates[0].image
    picture.save(tmp_path / "fox.png")
    gallery, line = client.predict(
        handle_file(tmp_path / "fox.png"), rows=2, prompt="two apples", count=3, seed="5", api_name="/complete"
    )
    kept = tiny_pipeline.encode(picture)[:2]
    assert len(gallery["value"]) == 3 and "seed 5" in line
    for item in gallery["value"]:
        recipe = json.loads(Image.open(item["image"]).text["dalle"])
        assert recipe["tokens"][:2] == kept.tolist()


def test_a_saved_picture_is_completed_from_its_own_tokens_until_it_is_changed(client, tiny_pipeline, tmp_path):
    generation = tiny_pipeline("a red fox", num_candidates=1, seed=1)
    paths = pictures.save_all(generation, "tiny", str(tmp_path))
    own = generation.candidates[0].tokens
    assert tokens.tokens_of(tiny_pipeline, str(paths[0])) == own.tolist()
    with Image.open(paths[0]) as image:
        changed, info = image.copy(), PngImagePlugin.PngInfo()
        info.add_text("dalle", image.text["dalle"])
    changed.paste("white", (0, 0, 200, 200))
    changed.save(tmp_path / "changed.png", pnginfo=info)
    seen = tiny_pipeline.encode(changed)
    assert tokens.tokens_of(tiny_pipeline, str(tmp_path / "changed.png")) == seen.tolist() != own.tolist()
    for path, kept in ((paths[0], own), (tmp_path / "changed.png", seen)):
        gallery, _ = client.predict(handle_file(path), rows=3, prompt="two apples", count=1, seed="5", api_name="/complete")
        recipe = json.loads(Image.open(gallery["value"][0]["image"]).text["dalle"])
        assert recipe["tokens"][:3] == kept[:3].tolist()


def test_reconstruct_shows_what_the_tokenizer_makes_of_a_picture(client, tiny_pipeline, tmp_path):
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / "noise.png")
    shown, (original, decoded), _, table, *_ = client.predict(handle_file(tmp_path / "noise.png"), api_name="/reconstruct")
    expected = tiny_pipeline.decode(tiny_pipeline.encode(Image.open(tmp_path / "noise.png")))
    assert Image.open(decoded).convert("RGB").tobytes() == pictures.enlarge(expected).tobytes()
    assert Image.open(original).size == Image.open(shown).size == (384, 384)
    assert "4 x 4 tokens of 64 codes" in table and "dB" in table


def test_recognise_ranks_the_labels(client, tiny_pipeline, tmp_path):
    tiny_pipeline("a red fox", num_candidates=1, seed=1).candidates[0].image.save(tmp_path / "fox.png")
    table = client.predict(handle_file(tmp_path / "fox.png"), labels="a fox\ntwo apples", api_name="/recognise")
    assert "a fox" in table and "two apples" in table


def test_a_bad_picture_is_a_sentence(client, tmp_path):
    (tmp_path / "no.png").write_text("this is text")
    for name, arguments in (("/complete", dict(rows=2, prompt="a", count=1, seed="")), ("/recognise", dict(labels="a"))):
        with pytest.raises(AppError, match="not a picture"):
            client.predict(handle_file(tmp_path / "no.png"), api_name=name, **arguments)
