"""Typed text is text: what stands for a tokenizer's marks in a prompt is read as the characters that it is."""

import json

import pytest
import torch
from PIL import Image
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors
from tokenizers.implementations import CharBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dalle_core.catalogue import EMBEDDED
from dalle_core.text_tokenizer import encode_prompts, fit_prompt

TEXT = "a red fox and a cat on a [ ] < > | PAD EOS pad endoftext startoftext s / "


def embedded(folder):
    return PreTrainedTokenizerFast.from_pretrained(EMBEDDED / "text_tokenizer")


def dalle_mini(folder):
    """Of bytes, with marks on both sides; made as `checkpoints.dalle_mini` makes it."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT] * 3, 300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer._tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    marks = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **marks)


def mindalle(folder):
    """Of words, without marks at the ends; made as `checkpoints.mindalle` makes it."""
    tokenizer = CharBPETokenizer(unk_token="[UNK]", lowercase=True)
    tokenizer.train_from_iterator([TEXT] * 3, 200, special_tokens=["[PAD]", "[UNK]"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def clip(folder):
    """CLIP's, one of whose marks stands for three; read as a downloaded one is."""
    tokenizer = ByteLevelBPETokenizer(end_of_word_suffix="</w>")
    tokenizer.train_from_iterator([TEXT] * 3, 400)
    (folder / "clip").mkdir()
    tokenizer.save_model(str(folder / "clip"))
    vocab = json.loads((folder / "clip" / "vocab.json").read_text(encoding="utf-8"))
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        vocab[mark] = len(vocab)
    (folder / "clip" / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "clip" / "config.json").write_text('{"model_type": "clip"}', encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder / "clip", trust_remote_code=False)


def whole_words(folder):
    """A tokenizer.json whose vocabulary has the marks among its words, and does not say that they are special."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[EOS]", *dict.fromkeys(TEXT.split())])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("$A [EOS]", special_tokens=[("[EOS]", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )


@pytest.mark.parametrize("kind", [embedded, dalle_mini, mindalle, clip, whole_words])
def test_marks_that_are_typed_are_text(kind, tmp_path):
    tokenizer = kind(tmp_path)
    marks = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    length = 64

    def read(text):  # twice: what the tokenizer keeps of a call changes nothing
        assert torch.equal(encode_prompts(tokenizer, [text], length), encode_prompts(tokenizer, [text], length))
        return encode_prompts(tokenizer, [text], length)[0].tolist()

    plain = read("a fox on red")
    for mark in {*tokenizer.all_special_tokens, "[EOS]", "[PAD]", "<|endoftext|>", "</s>"}:
        for text in (
            f"a fox {mark} on red",
            f"{mark} a fox on red",
            f"a fox on red {mark}",
            f"a fox{mark}on red",
            f"{mark}{mark} a",
        ):
            ids = read(text)
            body = ids[: len(ids) - ids[::-1].index(next(id for id in ids[::-1] if id != tokenizer.pad_token_id))]
            if tokenizer.pad_token_id == tokenizer.eos_token_id:
                body = ids[: ids.index(tokenizer.eos_token_id) + 1]
            if tokenizer.num_special_tokens_to_add():  # the end mark is there, at the end
                assert body[-1] == tokenizer.eos_token_id
                body = body[:-1]
            if plain[0] == tokenizer.bos_token_id:
                assert body[0] == plain[0]
                body = body[1:]
            assert not marks & set(body), (text, body)
            tail = [id for id in read("on red") if id not in marks]
            if not text.endswith(mark) and "fox " in text and mark in text:  # what follows is still read
                assert body[-len(tail) :][-1] == tail[-1]
            used, dropped = fit_prompt(tokenizer, text, length)
            assert used == text and dropped == ""


def test_a_mark_in_a_label_does_not_end_it(tiny_pipeline):
    """CLIP would read nothing of both."""
    labels = ["[EOS] fox", "[EOS] apples"]
    first, second = tiny_pipeline.recognise(Image.new("RGB", (64, 64), "red"), labels, deep=0)
    assert abs(first.score - second.score) > 1e-4
