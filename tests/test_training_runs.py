"""The training commands: a step lowers the loss, and a killed run ends bit for bit where it would have ended."""

import argparse
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dalle_core import image_tokenizer
from dalle_core.text_tokenizer import train_text_tokenizer
from dalle_core.training import clip as clip_training
from dalle_core.training import image_tokenizer as tokenizer_training
from dalle_core.training import prior as prior_training
from dalle_core.training.evaluate_image_tokenizer import ssim
from dalle_core.training.muon import Muon, orthogonalise
from dalle_core.training.perceptual import PerceptualNetwork, feature_distance
from dalle_core.training.state import RunState

COLOURS = ["red", "green", "blue", "white", "black", "grey", "yellow", "purple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 captioned pictures of 24 pixels: a square of one colour on another."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for i in range(40):
        a, b = COLOURS[i % 8], COLOURS[(i // 8 + 1 + i) % 8]
        image = Image.new("RGB", (24, 24), b)
        image.paste(a, (6, 6, 18, 18))
        image.save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a {a} square on {b}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train_text_tokenizer([json.loads(line)["text"] for line in lines], 100).save_pretrained(folder / "text_tokenizer")
    return folder


def small_vq():
    torch.manual_seed(0)
    return tokenizer_training.new_image_tokenizer(codebook_size=16, channels=(16, 16), block_size=4, image_size=24, vq_embed_dim=16)


def test_image_tokenizer_steps_lower_the_loss_and_use_the_codebook():
    model = small_vq()
    trainer = tokenizer_training.Trainer(model, steps=80, gan_start=75, warmup=10, peak=1e-2)
    pixels = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
    pixels = pixels.repeat_interleave(6, 2).repeat_interleave(6, 3)  # 24 x 24, blocks of colour
    logs = [trainer.step(pixels, step) for step in range(80)]
    assert logs[74]["reconstruction"] < 0.6 * logs[0]["reconstruction"]
    assert "discriminator" not in logs[74] and logs[79]["discriminator"] > 0
    assert (trainer.codebook.used > 0.05).sum() >= 12


def test_codebook_restarts_dead_codes():
    model = small_vq()
    codebook = tokenizer_training.Codebook(model.quantize, warmup=0, restart_every=1)
    z = torch.randn(4, 16, 2, 2, generator=torch.Generator().manual_seed(0)) + 5  # far from the initial codes
    codebook(z, 0)
    codebook.used[:] = 1
    codebook.used[:3] = 0
    before = model.quantize.embedding.weight.detach().clone()
    codebook(z + 5, 1)  # farther still: that is where dead codes are wanted
    after = model.quantize.embedding.weight.detach()
    assert (after[:3] != before[:3]).any(1).all() and after[:3].mean() > 7
    assert (after[3:] - before[3:]).abs().max() < 0.5  # the others follow their vectors slowly


def test_codes_follow_the_mean_of_their_vectors():
    codebook = tokenizer_training.Codebook(small_vq().quantize, warmup=0)
    centres = 5 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    for step in range(40):
        noise = 0.1 * torch.randn(16, 16, 4, 4, generator=torch.Generator().manual_seed(step))
        z = centres.repeat(32, 1).view(16, 4, 4, 16).permute(0, 3, 1, 2) + noise
        quantized, loss = codebook(z, step)
    assert loss < 0.01 and (quantized - z).square().mean() < 0.02
    assert torch.cdist(centres, codebook.quantizer.embedding.weight).amin(1).max() < 0.5


def test_an_untrained_model_restores_what_few_components_hold():
    torch.manual_seed(0)
    model = tokenizer_training.new_image_tokenizer(codebook_size=16, channels=(72,), block_size=8, image_size=48)
    colours = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
    pixels = F.interpolate(colours, scale_factor=8, mode="bilinear")
    tokenizer_training.start_linear(model, pixels)
    with torch.no_grad():
        vectors = tokenizer_training.encode(model, pixels)
        decoded = tokenizer_training.decode(model, vectors)
    assert tokenizer_training.psnr(pixels, decoded).mean() > 28
    assert 0.5 < vectors.var() < 2


def test_vectors_are_local_when_nothing_changes_with_the_neighbour():
    model, generator = small_vq(), torch.Generator().manual_seed(0)
    one = torch.rand(1, 3, 48, 48, generator=generator).mul(2).sub(1)
    same, other = one.repeat(2, 1, 1, 1), torch.cat([one, -one])
    with torch.no_grad():
        vectors = tokenizer_training.encode(model, same)
        assert tokenizer_training.locality_loss(model, same, vectors, generator) < 1e-8
        vectors = tokenizer_training.encode(model, other)
        assert tokenizer_training.locality_loss(model, other, vectors, generator) > 1e-3


def test_rare_codes_are_charged_for():
    """Of codes in like pairs, one of each pair goes out of use; every code still decodes to what it did."""
    model, generator = small_vq().eval(), torch.Generator().manual_seed(0)
    pixels = torch.rand(32, 3, 24, 24, generator=generator).mul(2).sub(1)
    with torch.no_grad():
        vectors = tokenizer_training.encode(model, pixels).permute(0, 2, 3, 1).flatten(0, 2)
        codes = vectors[::36][:8].repeat_interleave(2, 0)
        model.quantize.embedding.weight.copy_(codes + 1e-3 * torch.randn(codes.shape, generator=generator))
        before = image_tokenizer.encode(model, pixels)
        priced = tokenizer_training.charge_for_rate(model, pixels, rate=0.3)
        after = image_tokenizer.encode(priced, pixels)
    assert len(before.unique()) == 16 and len(after.unique()) <= 8
    assert priced.config.vq_embed_dim == model.config.vq_embed_dim + 1
    torch.testing.assert_close(image_tokenizer.decode(priced, before), image_tokenizer.decode(model, before))


def test_the_moving_average_is_what_is_evaluated():
    model = small_vq()
    trainer = tokenizer_training.Trainer(model, steps=8, gan_start=99, warmup=1, ema_decay=0.9)
    pixels = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    for step in range(3):
        trainer.step(pixels, step)
    weight, now = model.decoder.conv_out.weight, model.decoder.conv_out.weight.detach().clone()
    with trainer.averaged():
        assert not torch.equal(weight, now)
    assert torch.equal(weight, now)
    again = tokenizer_training.Trainer(small_vq(), steps=8, gan_start=99, warmup=1, ema_decay=0.9)
    again.ema.load_state_dict(trainer.ema.state_dict())
    with again.averaged(), trainer.averaged():
        assert torch.equal(again.model.decoder.conv_out.weight, weight)


def test_crops_are_whole_cells_of_each_picture():
    pixels = torch.arange(6 * 48 * 48.0).view(6, 1, 48, 48).expand(-1, 3, -1, -1)
    crops = tokenizer_training.random_crops(pixels, 16, 8, torch.Generator().manual_seed(0))
    corners = crops[:, 0, 0, 0].long()
    assert crops.shape == (6, 3, 16, 16) and torch.equal(corners // 48**2, torch.arange(6))
    assert not (corners % 48 % 8).any() and not (corners % 48**2 // 48 % 8).any() and len((corners % 48**2).unique()) > 2


def test_evaluation_moves_pixels_to_the_device_of_the_model(monkeypatch, tmp_path):
    """On a device without numbers, an operation between two devices is an error, as on a GPU."""
    model = small_vq().to("meta")
    shown = {}
    monkeypatch.setattr(tokenizer_training, "save_sheet", lambda pixels, decoded, path: shown.update(a=pixels, b=decoded))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: self)
    result = tokenizer_training.evaluate(model, [Image.new("RGB", (24, 24))] * 3, tmp_path, 1)
    assert {value.device.type for value in (result, *shown.values())} == {"meta"}
    assert shown["b"].shape == (3, 3, 24, 24)


def test_codebook_and_average_are_restored_onto_the_device():
    codebook = tokenizer_training.Codebook(small_vq().quantize, warmup=0)
    state = {name: value.clone() for name, value in codebook.state_dict().items()}
    codebook.to("meta")
    codebook.load_state_dict(state)
    assert codebook.used.device.type == codebook.recent.device.type == "meta"


def test_perceptual_distance_sees_blur():
    network = PerceptualNetwork()

    def distance(x, y):
        return feature_distance(network(x), network(y))

    pixels = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    pixels = pixels.repeat_interleave(8, 2).repeat_interleave(8, 3)  # 64 x 64, blocks of colour
    slight, strong = (F.avg_pool2d(pixels, k, 1, k // 2, count_include_pad=False) for k in (3, 9))
    assert torch.equal(distance(pixels, pixels), torch.zeros(2))
    assert (distance(slight, pixels) > 0.05).all() and (distance(strong, pixels) > distance(slight, pixels)).all()
    slight.requires_grad_()
    distance(slight, pixels).sum().backward()
    assert slight.grad.abs().sum() > 0 and not any(p.requires_grad for p in network.parameters())


def test_structural_similarity():
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(2).sub(1)
    torch.testing.assert_close(ssim(pixels, pixels), torch.ones(2))
    assert (ssim(pixels, F.avg_pool2d(pixels, 3, 1, 1)) < 0.8).all()


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


def test_image_tokenizer_resumes_bit_for_bit(monkeypatch, tmp_path, folder):
    # The state is from step 3: crops and whole pictures, the GAN's start and a moving average lie on both sides of it.
    arguments = COMMON | dict(
        data=folder, steps=8, batch_size=8, crop=16, whole_from=0.5, block_size=4, channels=[16, 16], codebook_size=16,
        warmup_steps=2, learning_rate=1e-3, perceptual=0.0, locality=1.0, adversarial=0.2, gan_from=0.5, ema_decay=0.9, rate=1.3,
        look_every=100,
    )  # fmt: skip
    assert_resumes_bit_for_bit(
        monkeypatch, tmp_path, tokenizer_training.train, arguments, "image_tokenizer/diffusion_pytorch_model.safetensors"
    )


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


def test_clip_resumes_bit_for_bit(monkeypatch, tmp_path, folder):
    new_clip = clip_training.new_clip
    monkeypatch.setattr(clip_training, "new_clip", lambda *args: new_clip(*args, width=32))
    arguments = COMMON | dict(
        data=folder, text_tokenizer=folder / "text_tokenizer", samples=32, batch_size=4, text_length=8,
        learning_rate=1e-3,
    ) | {"image_size": 32}  # fmt: skip
    assert_resumes_bit_for_bit(monkeypatch, tmp_path, clip_training.train, arguments, "clip/model.safetensors")


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
