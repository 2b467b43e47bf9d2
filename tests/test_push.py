"""Onto the Hub: what goes up of a folder, and what is refused with a sentence before or by the Hub."""

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from huggingface_hub.utils import filter_repo_objects

from dalle_core import InputError, ModelError
from dalle_core.__main__ import main
from dalle_core.push import push

CARD = "---\nlicense: cc0-1.0\n---\n\n# squares\n"


class Hub(HfApi):
    """The Hub at the boundary: what would be sent is kept."""

    def create_repo(self, repo, **arguments):
        self.made = repo, arguments["private"]
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo}")

    def upload_folder(self, repo_id, folder_path, allow_patterns, ignore_patterns, **arguments):
        every = (path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file())
        self.sent = repo_id, sorted(filter_repo_objects(every, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))


@pytest.fixture
def folder(tmp_path):
    for name in (
        "model_index.json",
        "prior/config.json",
        "prior/weights.safetensors",
        "evaluation.png",
        "prior/state.pt",
        ".cache/secret.json",
        "script.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path


def test_a_model_goes_up_with_its_card_and_nothing_that_runs(folder, monkeypatch, capsys):
    hub = Hub()
    monkeypatch.setattr("dalle_core.push.HfApi", lambda: hub)
    main(["push", str(folder), "someone/squares", "--private"])
    assert hub.made == ("someone/squares", True)
    wanted = ["README.md", "evaluation.png", "model_index.json", "prior/config.json", "prior/weights.safetensors"]
    assert hub.sent == ("someone/squares", wanted)
    assert "https://huggingface.co/someone/squares" in capsys.readouterr().out


def test_a_lora_is_a_model_of_its_own(folder):
    (folder / "model_index.json").rename(folder / "adapter_config.json")
    hub = Hub()
    push(folder, "someone/lora", api=hub)
    assert "adapter_config.json" in hub.sent[1] and hub.made == ("someone/lora", False)


@pytest.mark.parametrize(
    "card, said",
    [
        (None, "has no card"),
        ("# no front matter", "names no licence"),
        ("---\ntags: [x]\n---\n", "names no licence"),
        ("---\nlicense: ''\n---\n", "names no licence"),
        ("---\nlicense: [\n---\n", "cannot be read"),
    ],
)
def test_without_a_card_or_a_licence_nothing_is_sent(folder, card, said):
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    hub = Hub()
    with pytest.raises(InputError, match=said):
        push(folder, "someone/squares", api=hub)
    assert not hasattr(hub, "made")


def test_what_is_no_model_is_not_sent(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["push", str(tmp_path), "someone/squares"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "is no model's folder" in said and said.count("\n") == 1


def answer(status: int) -> HfHubHTTPError:
    return HfHubHTTPError("no", response=httpx2.Response(status, request=httpx2.Request("POST", "https://huggingface.co")))


@pytest.mark.parametrize(
    "error, said",
    [
        (LocalTokenNotFoundError("x"), "hf auth login"),
        (answer(401), "knows no such login"),
        (answer(403), "may be another's"),
        (httpx2.ConnectError("x"), "cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(folder, error, said):
    class Refusing(Hub):
        def create_repo(self, *args, **options):
            raise error

    with pytest.raises(ModelError, match=said):
        push(folder, "someone/squares", api=Refusing())


def test_a_name_that_the_hub_does_not_take(folder):
    with pytest.raises(ModelError, match="Repo id must"):
        push(folder, "some one/squares!", api=HfApi())
