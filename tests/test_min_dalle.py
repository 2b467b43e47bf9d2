"""min-dalle's files (DALL·E mini and mega), written by its own code: the same texts, states, logits, tokens, pixels."""

import json
import pickle
import zipfile

import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

import dalle_core
from dalle_core import ModelError, image_tokenizer
from dalle_core.checkpoints import min_dalle, vqgan
from dalle_core.checkpoints.tensors import read_torch
from dalle_core.engine import Engine, SamplingSettings, generate
from dalle_core.text_tokenizer import encode_prompts
from tests.published import MinDalleFiles, load_published


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """mini's whole set of keys, a small width."""
    peer = MinDalleFiles(tmp_path_factory.mktemp("min-dalle"), layers=12)
    for name, count in (("encoder", 149), ("decoder", 234)):
        assert len(torch.load(peer.folder / f"{name}_mini.pt", weights_only=True)) == count
    assert len(torch.load(peer.folder / "detoker.pt", weights_only=True)) == 197
    return peer


@pytest.fixture(scope="module")
def parts(peer, tmp_path_factory):
    """What `load` gives: converted, saved and loaded again in float32."""
    return load_published(peer.folder, tmp_path_factory).components


@pytest.fixture(scope="module")
def ids(parts):
    return encode_prompts(parts["text_tokenizer"], ["the red fox and a cat", ""], 64, "min-dalle")


@torch.no_grad()
def test_encoder_states(peer, parts, ids):
    states, _ = parts["prior"].encode_text(ids)
    for row in range(2):  # the encoder's output at padding is never looked at
        text = ids[row] != 1
        expected = peer.encode(ids[row : row + 1])[0, text]
        torch.testing.assert_close(states[row, text], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_logits_at_every_position(peer, parts, ids):
    tokens = torch.randint(16384, (1, 255), generator=torch.Generator().manual_seed(1))
    ours = parts["prior"](ids[:1], tokens)[0]
    expected = peer.logits(ids[:1], tokens)
    assert ours.shape == expected.shape == (256, 16384)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_greedy_tokens_under_guidance(peer, parts, ids):
    steps = generate(Engine(parts["prior"]), ids[:1], ids[1:], torch.zeros(2, 256), SamplingSettings(0.0, 0, 1.0, 4.0))
    for _ in range(40):
        tokens = next(steps)
    steps.close()
    expected = peer.greedy(ids[:1], ids[1:], 4.0, 40)
    assert tokens[0, :40].tolist() == tokens[1, :40].tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 10


@torch.no_grad()
def test_cached_steps_equal_the_full_forward(parts, ids):
    prior, tokens = parts["prior"], torch.randint(16384, (4, 12))
    full = prior(ids.repeat_interleave(2, dim=0), tokens)
    cache, logits = prior.prefill(ids, copies=2)
    torch.testing.assert_close(logits, full[:, 0], atol=1e-4, rtol=0)
    for position in range(12):
        logits = prior.decode([(tokens[:, position], cache, position)])[0]
        torch.testing.assert_close(logits, full[:, position + 1], atol=1e-4, rtol=0)


@torch.no_grad()
def test_pixels(peer, parts):
    tokens = torch.randint(16384, (1, 256))
    expected = peer.detoker.forward(False, tokens) / 255  # [256, 256, 3] in [0, 1]
    pixels = image_tokenizer.decode(parts["image_tokenizer"], tokens.view(1, 16, 16))
    assert expected.std() > 0.02 and (expected > 0).float().mean() > 0.2
    torch.testing.assert_close((pixels[0].permute(1, 2, 0) + 1) / 2, expected, atol=1e-4, rtol=0)
    with pytest.raises(Exception, match="without its encoder"):
        image_tokenizer.encode(parts["image_tokenizer"], pixels)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("acdefhnortx THE!,'\"-9\téñ狐🦊\u200b"), max_size=60))
def test_text(peer, parts, text):
    tokenizer = _peer_tokenizer(peer)
    expected = tokenizer.tokenize(text)
    if len(expected) > 64:
        expected = expected[:63] + expected[-1:]  # min-dalle drops the end mark of a long prompt; training did not
    ids = encode_prompts(parts["text_tokenizer"], [text], 64, "min-dalle")[0]
    assert ids.tolist() == expected + [1] * (64 - len(expected))


def _peer_tokenizer(peer):
    vocab = json.loads((peer.folder / "vocab_mini.json").read_text(encoding="utf-8"))
    merges = (peer.folder / "merges_mini.txt").read_text(encoding="utf-8").split("\n")[1:-1]
    return peer.package.text_tokenizer.TextTokenizer(vocab, merges)


# ---------------------------------------------------------------- what is damaged


@pytest.fixture
def small(tmp_path):
    return MinDalleFiles(tmp_path / "files", width=64, ffn=8, layers=1, detoker=False, suffix="")


def read(folder):
    return min_dalle.convert_prior(read_torch(folder / "encoder.pt"), read_torch(folder / "decoder.pt"))


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("encoder", "layers.0.glu.fc2.weight"),
        ("decoder", "layers.0.encoder_attn.k_proj.weight"),
        ("decoder", "lm_head.weight"),
        ("encoder", "final_ln.bias"),
    ],
)
def test_missing_unexpected_misshapen_and_nan_keys_name_themselves(small, file, key):
    path = small.folder / f"{file}.pt"
    state = torch.load(path, weights_only=True)

    def fails_with(changed, message):
        torch.save(changed, path)
        with pytest.raises(ModelError, match=message) as error:
            read(small.folder)
        assert path.name in str(error.value)

    fails_with({k: v for k, v in state.items() if k != key}, f"{key} is missing")
    fails_with(state | {key: torch.zeros(3, 3)}, f"{key} has the shape")
    fails_with(state | {"layers.0.intruder": torch.zeros(1)}, "layers.0.intruder is unexpected")
    fails_with(state | {key: torch.full_like(state[key], torch.nan)}, f"{key} holds NaN")
    fails_with(state | {key: state[key].long()}, f"{key} holds torch.int64")
    torch.save(state, path)
    read(small.folder)


def test_a_config_decides_heads_and_the_first_token(small, monkeypatch):
    path = small.folder / "config.json"
    config, files = json.loads(path.read_text(encoding="utf-8")), [small.folder / "encoder.pt", small.folder / "decoder.pt"]

    def converted(**said):
        return min_dalle.convert_prior(*map(read_torch, files), config | said, path).config

    assert converted().num_heads == 1 and converted().start_token_id == 16384
    other = converted(encoder_attention_heads=4, decoder_attention_heads=4, decoder_start_token_id=16383)
    assert other.num_heads == 4 and other.start_token_id == 16383
    monkeypatch.setattr(min_dalle, "empty_prior", lambda **sizes: pytest.fail("it was built"))
    for said, message in (
        *(({key: 10**9}, f"config.json: {key} is 1000000000, but the weights have") for key in min_dalle.SAID),
        ({"decoder_attention_heads": 10**9}, "config.json: the width 64 does not go into 1000000000 heads"),
        ({"decoder_start_token_id": 10**9}, "none for the token 1000000000"),
        ({"d_model": 128}, "d_model is 128, but the weights have 64"),
        ({"encoder_layers": 2}, "encoder_layers is 2"),
        ({"decoder_attention_heads": 3}, "does not go into 3 heads"),
        ({"decoder_attention_heads": "x" * 1000}, "does not go into x{20} heads"),
        ({"decoder_start_token_id": 16385}, "none for the token 16385"),
        ({"decoder_start_token_id": -1}, "config.json: decoder_start_token_id is -1"),
    ):
        with pytest.raises(ModelError, match=message):
            converted(**said)


def test_what_claims_more_than_the_file_holds_is_not_allocated(small):
    path = small.folder / "encoder.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"embed_tokens.weight": torch.zeros(1, 1).expand(2**40, 64)}, path)
    with pytest.raises(ModelError, match="encoder.pt declares more numbers than it holds"):
        read(small.folder)
    torch.save(state | {f"layers.{i}.x": torch.zeros(1) for i in range(1500)}, path)
    with pytest.raises(ModelError, match="encoder.pt: it has 1500 of layers.0, layers.1"):
        read(small.folder)
    torch.save(state | {"embed_tokens.weight": torch.zeros(0, 64)}, path)
    with pytest.raises(ModelError, match=r"embed_tokens.weight has the shape \[0, 64\]"):
        read(small.folder)
    # A compressed archive may hold a thousand times as much as it is long.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(ModelError, match="encoder.pt is compressed"):
        read(small.folder)


def test_the_published_ids_of_texts(tmp_path):
    """The golden ids, with a vocabulary that holds their words at the published places: text is cut, lowered and marked
    as published. (Which pieces a word falls into is the real vocabulary's to decide.)"""
    words = {
        8925: "alien",
        742: "life",
        6316: "artificial",
        7815: "intelligence",
        58: "a",
        29872: "comfy",
        2408: "chair",
        766: "that",
        4126: "looks",
        1572: "like",
        101: "an",
        16632: "avocado",
        2634: "court",
        4189: "sketch",
        111: "of",
        14450: "godzilla",
        133: "on",
        5167: "trial",
        21853: "dali",
        1545: "painting",
        563: "wall",
    }
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "e": 92, "<mask>": 50_300}
    vocab |= {f"Ġ{word}": i for i, word in words.items()}
    merges, free = [], iter(range(30_000, 60_000))
    letters = sorted(set("".join(words.values())) | {"Ġ"})
    for piece in letters + [f"Ġ{word[:n]}" for word in words.values() for n in range(1, len(word))]:
        if piece not in vocab:
            vocab[piece] = next(free)
    for word in words.values():
        merges += [f"Ġ{word[:n]} {word[n]}" for n in range(len(word)) if f"Ġ{word[:n]} {word[n]}" not in merges]
    taken = set(vocab.values())
    vocab |= {f"filler {i}": i for i in range(4, 60_000) if i not in taken}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = min_dalle.text_tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert "<mask>" not in tokenizer.get_vocab()
    for prompt, ids in min_dalle.GOLDEN.items():
        assert encode_prompts(tokenizer, [prompt], 64, "min-dalle")[0, : len(ids)].tolist() == ids, prompt


def test_another_vocabulary_of_the_published_size_is_warned_of(tmp_path, caplog):
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "Ġ": 4, "a": 5, "Ġa": 6} | {
        f"filler {i}": i for i in range(7, 50_264)
    }
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\n", encoding="utf-8")
    min_dalle.text_tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert "'alien life' gives the ids" in caplog.text


def test_truncated_and_flipped_files_are_found(small):
    path = small.folder / "decoder.pt"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:100], content[:-200]):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="decoder.pt"):
            read(small.folder)
    with zipfile.ZipFile(small.folder / "encoder.pt") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    for offset in (len(content) // 3, len(content) // 2, len(content) * 2 // 3):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 0x40]) + content[offset + 1 :])
        with pytest.raises(ModelError, match="decoder.pt"):
            read(small.folder)
    assert largest.file_size > 1000


def test_a_pickle_never_runs(small, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = small.folder / "decoder.pt"
    torch.save({"lm_head.weight": Bomb()}, path)
    with pytest.raises(ModelError, match="more than weights"):
        read(small.folder)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="decoder.pt"):
        read(small.folder)
    assert not (tmp_path / "ran").exists()


def test_a_folder_with_both_models_and_one_with_neither(small, tmp_path):
    assert min_dalle.find(tmp_path) is None
    (small.folder / "decoder_mini.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="both DALL·E mini and mega"):
        min_dalle.find(small.folder)


def test_the_package_s_own_folders_are_found(tmp_path):
    for name in ("dalle_bart_mini/decoder.pt", "vqgan/detoker.pt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    for folder in (tmp_path, tmp_path / "dalle_bart_mini"):
        files = min_dalle.find(folder)
        assert files["decoder"] == tmp_path / "dalle_bart_mini" / "decoder.pt" and files["detoker"].exists()


def test_an_image_tokenizer_with_a_wrong_key_names_it(peer, tmp_path):
    state = peer.detoker.state_dict()
    torch.save({k: v for k, v in state.items() if k != "decoder.mid.attn_1.q.weight"}, tmp_path / "detoker.pt")
    with pytest.raises(ModelError, match="decoder.mid.attn_1.q.weight is missing"):
        vqgan.convert(read_torch(tmp_path / "detoker.pt"), True, "embedding.weight")


@pytest.mark.full
@torch.no_grad()
def test_the_full_shapes_of_mini(tmp_path, monkeypatch):
    """Run by `pytest -m full`: two gigabytes of files, minutes."""
    full = MinDalleFiles(tmp_path / "files", width=1024, ffn=2730, layers=12, text_vocab=50264)
    for name, count in (("encoder", 202_591_224), ("decoder", 235_242_488), ("detoker", 46_709_891)):
        path = next(full.folder.glob(f"{name}*.pt"))
        assert sum(value.numel() for value in torch.load(path, weights_only=True).values()) == count
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    pipe = dalle_core.load(full.folder, clip="none")
    ids = encode_prompts(pipe.text_tokenizer, ["the red fox and a cat"], 64, "min-dalle")
    states, text = pipe.prior.encode_text(ids)[0], ids[0] != 1
    torch.testing.assert_close(states[0, text], full.encode(ids)[0, text], atol=1e-4, rtol=0)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(16384, (1, 255), generator=generator)
    torch.testing.assert_close(pipe.prior(ids, tokens)[0], full.logits(ids, tokens), atol=1e-4, rtol=0)
    tokens = torch.randint(16384, (1, 256), generator=generator)
    expected = full.detoker.forward(False, tokens) / 255
    pixels = image_tokenizer.decode(pipe.image_tokenizer, tokens.view(1, 16, 16))[0].permute(1, 2, 0)
    torch.testing.assert_close((pixels + 1) / 2, expected, atol=1e-4, rtol=0)
