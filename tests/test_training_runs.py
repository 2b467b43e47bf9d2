"""Training the prior: it learns, and a killed run ends bit for bit where it would have ended."""

import argparse

import pytest
import torch

from dalle_core.training import prior as prior_training
from dalle_core.training.muon import Muon, orthogonalise
from dalle_core.training.state import RunState
from dalle_core.training.vq_model import new_image_tokenizer
from tests import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return runs.pictures(tmp_path_factory.mktemp("pictures"))


def small_vq():
    torch.manual_seed(0)
    return new_image_tokenizer(codebook_size=16, channels=(16, 16), block_size=4, image_size=24, vq_embed_dim=16)


def die_at(monkeypatch, saved_after: int, dies_before: int):
    """The run saves its state after one step only, and is gone some steps later."""

    def save_if_due(self, step):
        if step == saved_after:
            self.save(step)
        if step == dies_before:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunState, "save_if_due", save_if_due)


def assert_resumes_bit_for_bit(monkeypatch, tmp_path, train, arguments: dict, result: str):
    def run(out):
        train(argparse.Namespace(out=tmp_path / out, **arguments))

    monkeypatch.setattr(RunState, "save_if_due", lambda self, step: None)
    run("whole")
    die_at(monkeypatch, saved_after=3, dies_before=5)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    assert not (tmp_path / "killed" / result).exists()
    monkeypatch.setattr(RunState, "save_if_due", lambda self, step: None)
    run("killed")
    whole, killed = ((tmp_path / name / result).read_bytes() for name in ("whole", "killed"))
    assert whole == killed


COMMON = {"seed": 3, "device": "cpu", "dtype": "float32", "image_size": 24}


@pytest.fixture(scope="module")
def vq_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vq")
    small_vq().save_pretrained(path)
    return path


def test_prior_resumes_bit_for_bit(monkeypatch, tmp_path, folder, vq_folder):
    arguments = COMMON | {"image_size": None} | dict(  # the image tokenizer's own: 24
        data=folder, image_tokenizer=vq_folder, text_tokenizer=folder / "text_tokenizer", pool=30, samples=32,
        batch_size=4, text_length=8, layers=2, heads=2, hidden_size=16, learning_rate=0.02, look_every=7, compile=False, init=None,
    )  # fmt: skip
    result = "prior/diffusion_pytorch_model.safetensors"
    assert_resumes_bit_for_bit(monkeypatch, tmp_path, prior_training.train, arguments, result)
    assert torch.load(tmp_path / "whole" / "tokens.pt", weights_only=True).shape[1:] == (3, 3)  # of 8 pixels a side
    # A run that starts from the outcome, and makes no step, ends with it.
    start = argparse.Namespace(out=tmp_path / "on", **arguments | {"init": tmp_path / "whole" / "prior", "samples": 0})
    prior_training.train(start)
    assert (tmp_path / "on" / result).read_bytes() == (tmp_path / "whole" / result).read_bytes()


def test_prior_learns_one_batch():
    torch.manual_seed(0)
    prior = prior_training.GPTPrior(20, 4, 16, 9, num_layers=2, num_heads=2, hidden_size=32)
    optimizers = prior_training.optimizers(prior, 0.02)
    text_ids, tokens = torch.randint(20, (6, 4)), torch.randint(16, (6, 9))
    losses = [prior_training.train_step(prior, optimizers, text_ids, tokens, 1.0).item() for _ in range(60)]
    assert losses[0] == pytest.approx(torch.tensor(16.0).log().item(), rel=0.05)
    assert losses[-1] < 0.3 * losses[0]


def test_what_the_prior_reads_has_mistakes():
    tokens = torch.arange(4000).view(4, 1000)
    read = prior_training.with_mistakes(tokens, 0.1, torch.Generator().manual_seed(0))
    wrong = read != tokens
    assert 0.08 < wrong.float().mean() < 0.12
    assert torch.equal(read[wrong], tokens.roll(1, 0)[wrong])  # tokens of the same place in another picture


def test_muon_orthogonalises_and_keeps_its_momentum():
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
        assert singular.min() > 0.5 and singular.max() < 1.3
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    muon = Muon([weight])
    weight.grad = torch.eye(4)
    muon.step()
    assert torch.allclose(weight.detach(), -weight.detach().diagonal().mean().abs() * torch.eye(4), atol=1e-3)
    assert muon.state[weight]["momentum"].abs().sum() > 0


def test_state_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    state = RunState(tmp_path, model=model)
    assert state.restore() == 0
    state.save(7)
    before = state.path.read_bytes()

    def full_disk(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError):
        state.save(8)
    assert state.path.read_bytes() == before and RunState(tmp_path, model=model).restore() == 7
