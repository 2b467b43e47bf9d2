"""Training the text tokenizer: byte-pair merges learned from the captions of a data set.

`python -m dalle_core.training.text_tokenizer --help`. The prior and the CLIP models of a pipeline share the result.
"""

import argparse
from pathlib import Path

from dalle_core.errors import InputError
from dalle_core.text_tokenizer import train_text_tokenizer
from dalle_core.training.data import add_data_arguments, first_captions, open_from


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the text tokenizer of a pipeline on the captions of a data set.")
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/text_tokenizer"))
    parser.add_argument("--max-captions", type=int, default=60_000, help="how many captions to read (%(default)s)")
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args()
    try:
        captions = first_captions(open_from(args, image_size=96), args.max_captions)
    except InputError as error:
        raise SystemExit(str(error)) from None
    tokenizer = train_text_tokenizer(captions, args.vocab_size)
    tokenizer.save_pretrained(args.out)
    lengths = sorted(len(ids) for ids in tokenizer(captions[:5000])["input_ids"])
    print(f"{len(tokenizer)} tokens; a caption takes {lengths[len(lengths) // 2]} of them, {lengths[-1]} at most")


if __name__ == "__main__":
    main()
