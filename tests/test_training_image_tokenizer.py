"""Training the image tokenizer: its losses and its codebook, and a killed run that ends bit for bit where it would have."""

import contextlib
import json
import pickle
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import VQModel
from PIL import Image

from dalle_core import image_tokenizer
from dalle_core.errors import InputError
from dalle_core.training import checkpoints
from dalle_core.training import image_tokenizer as training
from dalle_core.training.codebook import Codebook, charge_for_rate
from dalle_core.training.data import open_dataset
from dalle_core.training.evaluate_image_tokenizer import figures
from dalle_core.training.loop import Loop
from dalle_core.training.perceptual import PerceptualNetwork, feature_distance
from dalle_core.training.vq_model import decode, encode, new_image_tokenizer, start_linear, trained_image_tokenizer
from dalle_core.training.vqgan_losses import locality_loss, psnr, ssim
from tests import plain, runs
from tests.runs import one_thread  # noqa: F401  every test here


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return runs.pictures(tmp_path_factory.mktemp("pictures"))


def small_vq():
    torch.manual_seed(0)
    return new_image_tokenizer(codebook_size=16, channels=(16, 16), block_size=4, image_size=24, vq_embed_dim=16)


def test_image_tokenizer_steps_lower_the_loss_and_use_the_codebook(tmp_path):
    loop = Loop("image_tokenizer", runs.options(tmp_path), 80)
    trainer = training.Trainer(loop, small_vq(), gan_start=75, warmup=10, side=24, peak=1e-2)
    pixels = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
    pixels = pixels.repeat_interleave(6, 2).repeat_interleave(6, 3)  # 24 x 24, blocks of colour
    logs = [trainer.step(pixels) for _ in loop.run(range(80))]
    assert logs[74]["reconstruction"] < 0.6 * logs[0]["reconstruction"]
    assert "discriminator" not in logs[74] and logs[79]["discriminator"] > 0
    assert (trainer.codebook.used > 0.05).sum() >= 12


def test_codebook_restarts_dead_codes():
    model = small_vq()
    codebook = Codebook(model.quantize, warmup=0, restart_every=1)
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
    codebook = Codebook(small_vq().quantize, warmup=0)
    centres = 5 * torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    for step in range(40):
        noise = 0.1 * torch.randn(16, 16, 4, 4, generator=torch.Generator().manual_seed(step))
        z = centres.repeat(32, 1).view(16, 4, 4, 16).permute(0, 3, 1, 2) + noise
        quantized, loss = codebook(z, step)
    assert loss < 0.01 and (quantized - z).square().mean() < 0.02
    assert torch.cdist(centres, codebook.quantizer.embedding.weight).amin(1).max() < 0.5


def test_an_untrained_model_restores_what_few_components_hold():
    torch.manual_seed(0)
    model = new_image_tokenizer(codebook_size=16, channels=(72,), block_size=8, image_size=48)
    colours = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(1)).mul(2).sub(1)
    pixels = F.interpolate(colours, scale_factor=8, mode="bilinear")
    start_linear(model, pixels)
    with torch.no_grad():
        vectors = encode(model, pixels)
        decoded = decode(model, vectors)
    assert psnr(pixels, decoded).mean() > 28
    assert 0.5 < vectors.var() < 2


def test_vectors_are_local_when_nothing_changes_with_the_neighbour():
    model, generator = small_vq(), torch.Generator().manual_seed(0)
    one = torch.rand(1, 3, 48, 48, generator=generator).mul(2).sub(1)
    same, other = one.repeat(2, 1, 1, 1), torch.cat([one, -one])
    with torch.no_grad():
        vectors = encode(model, same)
        assert locality_loss(model, same, vectors, generator) < 1e-8
        vectors = encode(model, other)
        assert locality_loss(model, other, vectors, generator) > 1e-3


def test_rare_codes_are_charged_for():
    """Of codes in like pairs, one of each pair goes out of use; every code still decodes to what it did."""
    model, generator = small_vq().eval(), torch.Generator().manual_seed(0)
    pixels = torch.rand(32, 3, 24, 24, generator=generator).mul(2).sub(1)
    with torch.no_grad():
        vectors = encode(model, pixels).permute(0, 2, 3, 1).flatten(0, 2)
        codes = vectors[::36][:8].repeat_interleave(2, 0)
        model.quantize.embedding.weight.copy_(codes + 1e-3 * torch.randn(codes.shape, generator=generator))
        before = image_tokenizer.encode(model, pixels)
        priced = charge_for_rate(model, pixels, rate=0.3)
        after = image_tokenizer.encode(priced, pixels)
    assert len(before.unique()) == 16 and len(after.unique()) <= 8
    assert priced.config.vq_embed_dim == model.config.vq_embed_dim + 1
    torch.testing.assert_close(image_tokenizer.decode(priced, before), image_tokenizer.decode(model, before))


def test_a_trained_model_is_gone_on_from_without_the_price_of_its_codes(tmp_path):
    model, pixels = small_vq(), torch.rand(4, 3, 24, 24).mul(2).sub(1)
    charge_for_rate(model, pixels, rate=0.3).save_pretrained(tmp_path)
    again = trained_image_tokenizer(tmp_path)
    assert again.config.vq_embed_dim == model.config.vq_embed_dim and again.training
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_published_vqgan_is_gone_on_from(tmp_path, folder):
    """One that works on pixels in [0, 1], as dalle-mini's; it stays what it is for everybody else."""
    model = small_vq().eval()
    image_tokenizer.set_pixel_range(model, 0.0, 1.0)
    model.save_pretrained(tmp_path / "vqgan")
    again = trained_image_tokenizer(tmp_path / "vqgan")
    pixels = torch.rand(2, 3, 24, 24).mul(2).sub(1)
    with torch.no_grad():
        tokens = image_tokenizer.encode(model, pixels)
        z = model.quantize.embedding(tokens).permute(0, 3, 1, 2)
        torch.testing.assert_close(decode(again, z).clamp(-1, 1), image_tokenizer.decode(model, tokens))
        vectors = encode(again, pixels).permute(0, 2, 3, 1)
        assert torch.equal(torch.cdist(vectors.flatten(0, 2), model.quantize.embedding.weight).argmin(1), tokens.flatten())
    arguments = ["--init", str(tmp_path / "vqgan"), "--batch-size", "4", "--perceptual", "0", "--adversarial", "0"]
    args = run(folder, tmp_path / "on", *arguments, "--steps", "2")
    assert (args.block_size, args.channels, args.codebook_size, args.image_size) == (4, [16, 16], 16, 24)
    result = VQModel.from_pretrained(tmp_path / "on" / "image_tokenizer")
    assert result.config.pixel_range == [0.0, 1.0] and result.config.vq_embed_dim == 17
    with pytest.raises(InputError, match="--codebook-size 99: .* has 16; leave it out"):
        run(folder, tmp_path / "other", *arguments, "--codebook-size", "99")
    with pytest.raises(InputError, match="holds no image tokenizer"):
        trained_image_tokenizer(folder)


def test_crops_are_whole_cells_of_each_picture():
    pixels = torch.arange(6 * 48 * 48.0).view(6, 1, 48, 48).expand(-1, 3, -1, -1)
    places = torch.tensor([[0, 0], [4, 4], [1, 2], [3, 0], [0, 3], [2, 2]])
    crops = training.random_crops(pixels, 16, 8, places)
    corners = crops[:, 0, 0, 0].long()
    assert crops.shape == (6, 3, 16, 16) and torch.equal(corners // 48**2, torch.arange(6))
    assert torch.equal(corners % 48**2, (places[:, 0] * 48 + places[:, 1]) * 8)


def without_numbers(monkeypatch):
    """On the meta device, an operation between two devices is an error, as on a GPU. Its tensors have no values to count."""
    monkeypatch.setattr(torch, "bincount", lambda tokens, minlength: torch.zeros(minlength, dtype=int, device=tokens.device))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "item", lambda self: self)


def test_a_training_step_moves_everything_to_the_device(monkeypatch, tmp_path):
    loop = Loop("image_tokenizer", runs.options(tmp_path), 80)
    without_numbers(monkeypatch)
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    loop.device = torch.device("meta")
    trainer = training.Trainer(loop, small_vq(), gan_start=2, warmup=1, side=48, perceptual=0.1)
    for loop.step in (0, 2, 3):
        logs = trainer.step(torch.zeros(4, 3, 48, 48, device="meta"))
    held = [*logs.values(), *loop.trained["image_tokenizer"].ema.shadow_params, trainer.codebook.used, trainer.codebook.sums]
    assert "discriminator" in logs and {value.device.type for value in held} == {"meta"}


def test_evaluation_moves_pixels_to_the_device_of_the_model(monkeypatch):
    without_numbers(monkeypatch)
    found, decoded = figures(small_vq().to("meta"), None, [Image.new("RGB", (24, 24))] * 3)
    assert {found[name].device.type for name in ("psnr", "ssim", "perplexity")} == {"meta"} == {decoded.device.type}
    assert decoded.shape == (3, 3, 24, 24)


def test_codebook_is_restored_onto_the_device():
    codebook = Codebook(small_vq().quantize, warmup=0)
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


def test_without_the_perceptual_packages_one_sentence_says_what_to_do(monkeypatch, capsys, folder, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SystemExit):
        training.main(["--data", str(folder), "--out", str(tmp_path), "--preset", "tiny", "--cpu", "--workers", "0"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert "pip install" in said and "--perceptual 0 --adversarial 0" in said


@pytest.mark.parametrize("preset", training.PRESETS)
def test_presets_fit_together(preset):
    args = training.parser().parse_args(["--preset", preset])
    training.complete(args)
    with torch.device("meta"):
        model = new_image_tokenizer(args.codebook_size, tuple(args.channels), args.block_size, args.image_size)
        tokens = image_tokenizer.encode(model, torch.zeros(1, 3, args.image_size, args.image_size))
    assert tokens.shape[1:] == {"tiny": (6, 6), "emoji": (16, 16), "photo-256": (16, 16)}[preset]
    assert image_tokenizer.decode(model, tokens).shape[2:] == (args.image_size, args.image_size)


def test_what_was_asked_for_comes_before_the_preset():
    args = training.parser().parse_args(["--preset", "photo-256", "--codebook-size", "16384", "--image-size", "128"])
    training.complete(args)
    assert (args.codebook_size, args.image_size, args.crop, args.block_size) == (16384, 128, 128, 4)
    with pytest.raises(InputError, match="take multiples of 16"):
        training.complete(training.parser().parse_args(["--preset", "photo-256", "--image-size", "200"]))


def test_half_precision_that_does_not_hold_the_losses_is_refused(folder, tmp_path):
    args = training.parser().parse_args(arguments(folder, tmp_path))
    args.precision = "fp16"  # as a configuration of accelerate may ask for
    with pytest.raises(InputError, match="bf16"):
        training.train(args)


def test_published_formats_are_gone_on_from(tmp_path):
    """minDALL·E's first stage, in its keys."""
    torch.save({"state_dict": plain.vqgan_state()}, tmp_path / "stage1_last.ckpt")
    model = trained_image_tokenizer(tmp_path)
    pixels = torch.rand(1, 3, 32, 32).mul(2).sub(1)
    expected = plain.VQGAN(plain.vqgan_state()).tokens(pixels)
    assert torch.equal(image_tokenizer.encode(model, pixels).flatten(), expected.flatten())


def test_data_sets_go_to_workers_of_any_kind(folder):
    """macOS and Windows start them anew and send them what they need."""
    loader = training.batches(open_dataset(folder, 24), 4, 0, 2)
    loader = loader.loader
    dataset, collate, order = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.batch_sampler)))
    ours, theirs = (
        collate([dataset[key] for key in next(iter(order))])
        for dataset, collate, order in ((dataset, collate, order), (loader.dataset, loader.collate_fn, loader.batch_sampler))
    )
    assert torch.equal(ours[0][0], theirs[0][0]) and ours[0][0].shape == (4, 3, 24, 24)


def arguments(folder, out, *more) -> list[str]:
    return ["--data", str(folder), "--out", str(out), "--preset", "tiny", "--cpu", "--workers", "0", *more]


def run(folder, out, *more):
    args = training.parser().parse_args(arguments(folder, out, *more))
    training.train(args)
    return args


# Crops and whole pictures, the GAN's start, the codebook's and an averaged model on both sides of the third step.
SHORT = "--steps 8 --batch-size 8 --whole-from 0.5 --warmup-steps 2 --ema-decay 0.9 --look-every 7".split()
RESULT = "image_tokenizer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LOG_EVERY", 1)
        run(folder, out, *SHORT)
    return out


def lines(out) -> list[dict]:
    """What is noted of each step, without the figures of held-out pictures."""
    found = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in found if "reconstruction" in line]


def test_a_preset_trains_and_shows_what_it_does(whole):
    assert {"psnr", "perceptual", "discriminator", "perplexity", "codes"} <= lines(whole)[-1].keys()
    held_out = json.loads((whole / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert held_out["held_out_ssim"] <= 1 and held_out["held_out_perceptual_distance"] > 0
    assert held_out["held_out_perplexity"] >= 1
    with Image.open(whole / "pictures" / "reconstructions_000008.png") as image:
        assert image.size == (2 * 48, 2 * 48)  # two are kept out of training
    model = VQModel.from_pretrained(whole / "image_tokenizer")
    assert model.config.num_vq_embeddings == 64 and image_tokenizer.downsampling(model) == 8


def test_a_decoder_goes_on_alone_and_tokens_stay(folder, whole, tmp_path):
    """The codes of `whole` have a price, which must stay too, or they would be others."""
    init = [
        "--init",
        str(whole / "image_tokenizer"),
        "--decoder-only",
        "--batch-size",
        "8",
        "--steps",
        "30",
        "--whole-from",
        "0",
    ]
    run(folder, tmp_path, *init, "--learning-rate", "0.003", "--adversarial", "0", "--ema-decay", "0")
    before, after = (VQModel.from_pretrained(run / "image_tokenizer") for run in (whole, tmp_path))
    old, new = before.state_dict(), after.state_dict()
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"decoder", "post_quant_conv"} and old.keys() == new.keys()
    pixels = image_tokenizer.to_pixels([image for image, _ in open_dataset(str(folder), 48).held_out("caption", 8)])
    tokens = image_tokenizer.encode(before, pixels)
    assert torch.equal(image_tokenizer.encode(after, pixels), tokens)
    near = [psnr(image_tokenizer.decode(model, tokens), pixels).mean() for model in (before, after)]
    assert near[1] > near[0] + 0.5


def test_a_decoder_alone_needs_the_rest(folder, tmp_path):
    with pytest.raises(InputError, match="--decoder-only goes on with a trained image tokenizer: name it by --init"):
        run(folder, tmp_path, "--decoder-only")


def test_killed_the_image_tokenizer_ends_with_the_same_bytes(folder, whole, tmp_path):
    (process,) = runs.start(training.main, arguments(folder, tmp_path, *SHORT, "--save-minutes", "0"))
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        if [step for step, _ in checkpoints.found(tmp_path / "checkpoints") if step >= 3]:
            break
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / RESULT).exists()
    run(folder, tmp_path, *SHORT)
    assert (tmp_path / RESULT).read_bytes() == (whole / RESULT).read_bytes()


def test_two_processes_train_the_image_tokenizer_as_one_does(folder, whole, tmp_path):
    """Rounding grows from step to step, as AdamW divides small gradients by small ones."""
    runs.finish(runs.start(runs.image_tokenizer_noting_every_step, arguments(folder, tmp_path, *SHORT), processes=2))
    for ours, theirs in zip(lines(tmp_path), lines(whole), strict=True):
        close = dict(rel=1e-5, abs=1e-6) if ours["step"] <= 5 else dict(rel=1e-2)
        for name in theirs.keys() - {"time"}:
            assert ours[name] == pytest.approx(theirs[name], **close), (name, ours["step"])
    assert "discriminator" in lines(tmp_path)[4]  # the fifth is its first
