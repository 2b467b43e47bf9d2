"""What the ranker will meet: a model's own candidates, to train the ranker on beside the corpus.

`python -m dalle_core.training.candidates` goes through the first blocks of `EmojiCorpus.contrast(block)`, in which things
that are taken for each other stand together. For each picture it keeps what the image tokenizer restores of it, which is
the picture of its caption, and some candidates that the model draws of the caption, good and bad ones, which are not. No
judge has a say. The folder is an `imagefolder` data set, with "number" (of the corpus picture) and "is_it" in each line of
`metadata.jsonl`; started again, the command goes on.

`python -m dalle_core.training.clip --data FOLDER` trains on `RankerPictures`. Every second block comes from the folder:
each picture of it is the corpus' own, the restored one, or a candidate, a third of the time each, so that the ranker
learns to tell apart what the model itself draws of captions that are nearly the same ("a fox and a pear", "a fox and an
apple"). The other blocks are corpus pictures.
"""

import argparse
import hashlib
import json
from pathlib import Path

from PIL import Image
from tqdm import tqdm

import dalle_core
from dalle_core import image_tokenizer
from dalle_core.training.drawing import add_drawing_arguments, draw_each
from dalle_core.training.emoji import EmojiCorpus


class RankerPictures:
    """A data set, as `training.data` describes them, of a folder that `draw_candidates` filled. A block that is not complete
    is left out. Raises ValueError naming the file and the line where something is missing or not as described."""

    held_out_kinds, licence = EmojiCorpus.held_out_kinds, EmojiCorpus.licence

    def __init__(self, folder: str | Path, image_size: int, seed: int = 0):
        self.folder, self.image_size, self.seed, self.name = Path(folder), image_size, seed, str(folder)
        source = json.loads((self.folder / "ranker.json").read_text(encoding="utf-8"))
        self.block = source["block"]
        self.drawn_for = EmojiCorpus(source["corpus"], seed=source["seed"], image_size=image_size).contrast(self.block)
        self.corpus = EmojiCorpus(source["corpus"], seed=seed + 1_000_003, image_size=image_size).contrast(self.block)
        self.entries = read_candidates(self.folder)
        self.blocks = 0  # complete ones
        while all(self.blocks * self.block + k in self.entries for k in range(self.block)):
            self.blocks += 1
        if not self.blocks:
            raise ValueError(f"{self.folder} has no complete block of {self.block}: run dalle_core.training.candidates again")

    @property
    def fingerprint(self) -> str:
        """Of the corpus, and of how much was drawn."""
        return hashlib.sha256(f"{self.corpus.fingerprint} {self.folder.name} {len(self.entries)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, i: int) -> tuple[Image.Image, str]:
        return self.picture(i), self.caption(i)

    def contrast(self, block: int) -> "RankerPictures":
        """Itself. Raises ValueError for blocks of another size than were drawn."""
        if block != self.block:
            raise ValueError(f"{self.folder} was drawn in blocks of {self.block}: train with --batch-size {self.block}")
        return self

    def picture(self, i: int) -> Image.Image:
        number, turn = self._stored(i)
        if number is None:
            return self.corpus.picture(i)
        restored, candidates = self.entries[number][1:]
        if turn % 3 == 0:
            return self.drawn_for.picture(number)
        return self._open(restored if turn % 3 == 1 else candidates[turn // 3 % len(candidates)])

    def caption(self, i: int, variant: int = 0) -> str:
        """Of a picture that is the corpus' own, any wording; of a candidate, the one that it was drawn from."""
        number, turn = self._stored(i)
        if number is None:
            return self.corpus.caption(i, variant)
        return self.drawn_for.caption(number, variant) if turn % 3 == 0 else self.entries[number][0]

    def wrong(self, i: int) -> list[Image.Image]:
        """Candidates that are not the picture of caption i, where picture i is: a ranker should prefer it to them. None for
        pictures that nothing was drawn of."""
        number, turn = self._stored(i)
        return [] if number is None or turn % 3 == 2 else [self._open(name) for name in self.entries[number][2]]

    def held_out(self, kind: str, count: int) -> list[tuple[Image.Image, str]]:
        return self.corpus.held_out(kind, count)

    def _stored(self, i: int) -> tuple[int | None, int]:
        """(the number of the picture that was drawn for, how often its block came before): None in every other block."""
        block, offset = divmod(i, self.block)
        if block % 2:
            return None, 0
        turn, block = divmod(block // 2, self.blocks)
        return block * self.block + offset, turn + offset  # neighbours differ in what is taken

    def _open(self, name: str) -> Image.Image:
        try:
            with Image.open(self.folder / name) as image:
                return image.convert("RGB").resize((self.image_size, self.image_size), Image.Resampling.LANCZOS)
        except OSError as error:
            raise ValueError(f"{self.folder / name} cannot be read as a picture: {error}") from None


def read_candidates(folder: Path) -> dict[int, tuple[str, str, list[str]]]:
    """number -> (caption, file of the restored picture, files of the candidates), of numbers that have both."""
    metadata, found = folder / "metadata.jsonl", {}
    if not metadata.exists():
        return found
    lines = metadata.read_text(encoding="utf-8").split("\n")
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            number, is_it, name, text = entry["number"], entry["is_it"], entry["file_name"], entry["text"]
            if not (type(number) is int and type(is_it) is bool and isinstance(text, str) and Path(name).name == name):
                raise ValueError("a value of another kind than expected")
        except (ValueError, KeyError, TypeError) as error:
            if place == len(lines):  # half a line: the command was stopped while it wrote
                break
            raise ValueError(f"{metadata}, line {place}: needs number, is_it, file_name and text ({error})") from None
        caption, restored, candidates = found.get(number, (text, None, []))
        found[number] = (caption, name if is_it else restored, candidates if is_it else [*candidates, name])
    return {number: entry for number, entry in found.items() if entry[1] and entry[2]}


def draw_candidates(
    pipe, source: str, folder: Path, blocks: int, block: int, candidates: int, seed: int = 0, at_once: int = 1
) -> None:
    """Fills the folder, or goes on. Each prompt's lines are written together, after its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"corpus": str(source), "seed": seed, "block": block, "model": pipe.name}
    about = folder / "ranker.json"
    if about.exists() and json.loads(about.read_text(encoding="utf-8")) != said:
        raise ValueError(f"{folder} holds candidates of another model, corpus, seed or block: name a new folder")
    about.write_text(json.dumps(said), encoding="utf-8")
    corpus = EmojiCorpus(source, seed=seed, image_size=pipe.image_size).contrast(block)
    metadata, done = folder / "metadata.jsonl", read_candidates(folder)
    if metadata.exists():  # without half a line at the end
        whole = metadata.read_bytes()
        metadata.write_bytes(whole[: whole.rfind(b"\n") + 1])
    with open(metadata, "a", encoding="utf-8", newline="\n") as lines:
        todo = [number for number in range(blocks * block) if number not in done]
        settings = {"num_candidates": candidates, "rerank": False}
        asked = ({"prompt": corpus.caption(number), "seed": seed + number} | settings for number in todo)
        drawn = draw_each(pipe, asked, at_once)
        for number in tqdm(todo, unit="prompt", desc="candidates", mininterval=10):
            pixels = image_tokenizer.to_pixels([corpus.picture(number)]).to(pipe.device)
            tokens = image_tokenizer.encode(pipe.image_tokenizer, pixels)
            caption, found, written = corpus.caption(number), next(drawn).candidates, ""
            for k, image in enumerate([pipe.decode(tokens[0].cpu()), *(candidate.image for candidate in found)]):
                name = f"{number:07}-{k}.png"
                image.save(folder / name)
                entry = {"file_name": name, "text": caption, "number": number, "is_it": k == 0}
                written += json.dumps(entry, ensure_ascii=False) + "\n"
            lines.write(written)
            lines.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw candidates to train a ranker on; run again to go on after a stop.")
    parser.add_argument("--model", default="emoji", help="a name, folder or Hub id (%(default)s)")
    parser.add_argument("--data", default="data/emoji", help="the emoji corpus (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data/candidates"), help="folder (%(default)s)")
    parser.add_argument("--blocks", type=int, default=16, help="how many (%(default)s)")
    parser.add_argument("--block", type=int, default=128, help="prompts of one, the ranker's batch size (%(default)s)")
    parser.add_argument("--candidates", type=int, default=3, help="of each prompt (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    add_drawing_arguments(parser)
    args = parser.parse_args()
    pipe = dalle_core.load(args.model, clip="none")
    draw_candidates(pipe, args.data, args.out, args.blocks, args.block, args.candidates, args.seed, args.at_once)


if __name__ == "__main__":
    main()
