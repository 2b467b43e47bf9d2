"""Prompts -> ids, through a fast tokenizer of `tokenizers`/`transformers`."""

import bisect
import re
from itertools import chain

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


def encode_pair(
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    negative: str,
    length: int,
    normalizer: str | None = None,
    template: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids of a prompt and of what guidance leads away from, the null prompt ("") or a negative one: both [1, T].

    Without a template T is `length`, as of `encode_prompts`. With one the prompt stands in the place of "{prompt}", nothing
    is padded, and the null row has as many ids: all but the marks at its ends are [PAD], which are seen like any other
    (deepseek-ai/Janus, generation_inference.py). A negative prompt is made as long by [PAD] behind its words, or by leaving
    out the last of them.
    """
    if template is None:
        text, null = (encode_prompts(tokenizer, [text], length, normalizer) for text in (prompt, negative))
        return text, null
    pad = tokenizer.pad_token_id
    before, words, after = _in_template(tokenizer, prompt, normalizer, template)
    words = words[: max(length - len(before) - len(after), 0)]
    if negative:
        other = _in_template(tokenizer, negative, normalizer, template)[1]
        null = [*before, *(other + [pad] * len(words))[: len(words)], *after]
    else:
        null = [*before[:1], *[pad] * len([*before[1:], *words, *after[:-1]]), after[-1]]
    return torch.tensor([[*before, *words, *after]]), torch.tensor([null])


def encode_question(tokenizer: PreTrainedTokenizerFast, question: str, length: int, template: str) -> tuple[list[int], int]:
    """The ids of a question about a picture, whose end is cut where there are more than `length`, and the place among them
    of the one that stands for the picture ("<image_placeholder>" in the template)."""
    before, words, after = _in_template(tokenizer, question, None, template)
    ids = [*before, *words[: max(length - len(before) - len(after), 0)], *after]
    return ids, before.index(tokenizer.convert_tokens_to_ids("<image_placeholder>"))


def _in_template(tokenizer, prompt: str, normalizer: str | None, template: str) -> tuple[list[int], list[int], list[int]]:
    """The ids before, of, and behind the piece between two marks in which the prompt stands.

    The marks of the template are marks; in a prompt they are dropped, or read as the characters that they are.
    """
    marks = tokenizer.get_added_vocab()
    pieces = re.split("(" + "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True)) + ")", template)
    place = next(i for i, piece in enumerate(pieces) if "{prompt}" in piece)
    pieces[place] = pieces[place].replace("{prompt}", NORMALIZERS[normalizer](prompt) if normalizer else prompt)
    # Always the same setting: it stays in the tokenizer, which threads share.
    plain = tokenizer(pieces, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    ids = [[marks[piece]] if piece in marks else found for piece, found in zip(pieces, plain)]
    own = {*tokenizer.all_special_ids, *(marks[piece] for piece in pieces if piece in marks)} - {tokenizer.unk_token_id}
    before, after = (list(chain.from_iterable(part)) for part in (ids[:place], ids[place + 1 :]))
    return before, [id for id in ids[place] if id not in own], after


def fit_prompt(
    tokenizer: PreTrainedTokenizerFast, prompt: str, length: int, normalizer: str | None = None, template: str | None = None
) -> tuple[str, str]:
    """(what fits `length` ids, what is dropped), cut between words; control characters and outer spaces are removed.

    template: as of `encode_pair`. Raises InputError for a prompt that is blank, or of which the tokenizer knows nothing.
    """
    prompt = prompt.encode("utf-8", "ignore").decode()  # half of a surrogate pair is no character
    prompt = _CONTROL.sub(" ", prompt).strip()
    if not prompt:
        raise InputError("The prompt is empty: describe what to draw.")
    # No token is longer than this many characters in any tokenizer of the field; a million need not be read.
    head = prompt[: 64 * length]

    def ids_of(end: int) -> list[int]:
        if template is None:
            return _ids(tokenizer, [head[:end]], normalizer)[0]
        return list(chain.from_iterable(_in_template(tokenizer, head[:end], normalizer, template)))

    ids = ids_of(len(head))
    known = set(ids) - {tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}
    if not known:
        raise InputError(f"This model knows none of the characters of {prompt[:40]!r}: try other words.")
    if len(ids) <= length and head == prompt:
        return prompt, ""
    ends = [match.end() for match in _WORD.finditer(head)]
    if len(ids_of(ends[0])) > length:
        ends = list(range(1, len(head) + 1))  # not even the first word fits
    count = bisect.bisect_right(ends, length, key=lambda end: len(ids_of(end)))
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
