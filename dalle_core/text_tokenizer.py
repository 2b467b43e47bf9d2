"""Prompts -> ids, through a fast tokenizer of `tokenizers`/`transformers`."""

import re

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dalle_core.errors import InputError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
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


def encode_prompts(tokenizer: PreTrainedTokenizerFast, prompts: list[str], length: int) -> torch.Tensor:
    """Prompts -> ids [B, length], padded; a prompt that is too long is cut, its end mark stays."""
    # Cut and padded here: a fast tokenizer keeps those settings in itself, and threads share it.
    rows = tokenizer(prompts)["input_ids"]
    rows = [ids if len(ids) <= length else ids[: length - 1] + ids[-1:] for ids in rows]
    return torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids in rows])


def fit_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str, length: int) -> tuple[str, str]:
    """(what fits `length` ids, what is dropped); control characters are removed from both, outer spaces too.

    Raises InputError for a prompt that is blank, or of which the tokenizer knows nothing.
    """
    prompt = _CONTROL.sub(" ", prompt).strip()
    if not prompt:
        raise InputError("The prompt is empty: describe what to draw.")
    # No token is longer than this many characters in any tokenizer of the field; a million need not be read.
    head = prompt[: 64 * length]
    encoded = tokenizer(head, return_offsets_mapping=True, add_special_tokens=False)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if all(id_ == tokenizer.unk_token_id for id_ in ids):
        raise InputError(f"This model knows none of the characters of {prompt[:40]!r}: try English or Chinese words.")
    room = length - tokenizer.num_special_tokens_to_add()
    if len(ids) <= room:
        return head.strip(), prompt[len(head) :].strip()
    end = offsets[room][0]
    return prompt[:end].strip(), prompt[end:].strip()
