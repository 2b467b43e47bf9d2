"""Prompts -> ids, through a fast tokenizer of `tokenizers`/`transformers`."""

import bisect
import re

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dalle_core.errors import InputError
from dalle_core.text_normalizer import NORMALIZERS

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_WORD = re.compile(r"[A-Za-z0-9'\u00c0-\u024f-]+|.", re.DOTALL)  # a word of letters, or any other single character
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]  # transformers' CLIP has a special case for eos_token_id == 2


def train_text_tokenizer(captions: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-pair merges within words, digits one by one, lower case; every text ends in [EOS].

    Chinese has no spaces: its runs are cut after the particles 的 and 和, so that a style, a background and a name are
    learned apart.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Whitespace(),
            pre_tokenizers.Split(Regex(r"\p{Han}+"), "isolated"),
            pre_tokenizers.Split(Regex("[的和]"), "merged_with_previous"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [EOS]", special_tokens=[("[EOS]", tokenizer.token_to_id("[EOS]"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    )


def encode_prompts(
    tokenizer: PreTrainedTokenizerFast, prompts: list[str], length: int, normalizer: str | None = None
) -> torch.Tensor:
    """Prompts -> ids [B, length], padded; a prompt that is too long is cut, its end mark stays.

    normalizer: a key of NORMALIZERS. The empty (null) prompt is not normalised.
    """
    # Cut and padded here: a fast tokenizer keeps those settings in itself, and threads share it.
    rows = _ids(tokenizer, prompts, normalizer)
    if tokenizer.num_special_tokens_to_add() > 0:
        rows = [ids if len(ids) <= length else ids[: length - 1] + ids[-1:] for ids in rows]
    return torch.tensor([ids[:length] + [tokenizer.pad_token_id] * (length - len(ids)) for ids in rows])


def fit_prompt(
    tokenizer: PreTrainedTokenizerFast, prompt: str, length: int, normalizer: str | None = None
) -> tuple[str, str]:
    """(what fits `length` ids, what is dropped), cut between words; control characters and outer spaces are removed.

    Raises InputError for a prompt that is blank, or of which the tokenizer knows nothing.
    """
    prompt = prompt.encode("utf-8", "ignore").decode()  # half of a surrogate pair is no character
    prompt = _CONTROL.sub(" ", prompt).strip()
    if not prompt:
        raise InputError("The prompt is empty: describe what to draw.")
    # No token is longer than this many characters in any tokenizer of the field; a million need not be read.
    head = prompt[: 64 * length]
    ids = _ids(tokenizer, [head], normalizer)[0]
    known = set(ids) - {tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    if not known:
        raise InputError(f"This model knows none of the characters of {prompt[:40]!r}: try other words.")
    if len(ids) <= length and head == prompt:
        return prompt, ""
    ends = [match.end() for match in _WORD.finditer(head)]
    if len(_ids(tokenizer, [head[: ends[0]]], normalizer)[0]) > length:
        ends = list(range(1, len(head) + 1))  # not even the first word fits
    count = bisect.bisect_right(ends, length, key=lambda end: len(_ids(tokenizer, [head[:end]], normalizer)[0]))
    end = ends[max(count, 1) - 1]
    return prompt[:end].strip(), prompt[end:].strip()


def _ids(tokenizer, prompts: list[str], normalizer: str | None) -> list[list[int]]:
    """The marks that the tokenizer adds are the only ones: "[EOS]" in a prompt is read as the characters that it is."""
    if normalizer is not None:
        prompts = [NORMALIZERS[normalizer](prompt) if prompt else prompt for prompt in prompts]
    # Always the same setting: it stays in the tokenizer, which threads share.
    encoded = tokenizer(prompts, split_special_tokens=True, return_special_tokens_mask=True)
    # A vocabulary of whole words has its marks among them.
    marks = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    unknown = [] if tokenizer.unk_token_id in marks | {None} else [tokenizer.unk_token_id]
    rows = []
    for ids, added in zip(encoded["input_ids"], encoded["special_tokens_mask"]):
        parts = [[id] if mark or id not in marks else unknown for id, mark in zip(ids, added)]
        rows.append([id for part in parts for id in part])
    return rows
