"""From a prompt to ranked candidates: `DallePipeline`, a diffusers pipeline of image tokenizer, prior and CLIP."""

import math
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, VQModel
from PIL import Image, ImageOps
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerFast, SiglipImageProcessorPil

from dalle_core import image_tokenizer as images
from dalle_core import memory
from dalle_core import rerank as clip_rerank
from dalle_core.describer import Describer, answer
from dalle_core.engine import Engine, SamplingSettings, generate, on_engine
from dalle_core.errors import InputError, ModelError
from dalle_core.int8 import is_quantized
from dalle_core.priors.bart import BartPrior
from dalle_core.priors.gpt import GPTPrior
from dalle_core.priors.llama import LlamaPrior
from dalle_core.priors.llamagen import LlamaGenPrior
from dalle_core.request import DrawingRequest, Limits, number, token_grid
from dalle_core.sampling import candidate_uniforms
from dalle_core.slots import SlotEngine
from dalle_core.text_normalizer import NORMALIZERS
from dalle_core.text_tokenizer import encode_pair, encode_prompts, encode_question, fit_prompt
from dalle_core.vocabulary import Vocabulary, unknown_words

MOVED = {"dalle_core.gpt_prior": "dalle_core.priors.gpt", "dalle_core.bart_prior": "dalle_core.priors.bart"}
LABELS = 32  # that CLIP reads at a time
QUESTION, QUESTION_LENGTH = "What is in this picture?", 1024  # what is asked where nothing is; ids of a question at most
NOT_DRAWN = 0.86  # light grey in [-1, 1]: cells of a preview whose token is not drawn yet


@dataclass(frozen=True)
class Candidate:
    """One picture. (seed, index) names it among all that its prompt and settings can give."""

    image: Image.Image
    score: float | None  # CLIP's cosine with the prompt; None when not reranked
    tokens: torch.Tensor  # [grid, grid]
    seed: int
    index: int  # in the order of sampling


@dataclass(frozen=True)
class Generation:
    """What one call made: candidates, best first when reranked, else in the order of sampling."""

    candidates: list[Candidate]
    prompt: str
    used_prompt: str
    dropped_prompt: str  # what the model's text length cut off
    negative_prompt: str
    seed: int
    settings: dict  # the sampling arguments that were used


@dataclass(frozen=True)
class Step:
    """Tokens drawn so far over all candidates, of `total`; previews now and then; the generation on the last step."""

    index: int
    total: int
    previews: list[Image.Image] | None = None
    generation: Generation | None = None


class PreviewPace:
    """Where previews take seconds, they become rare and late: all together they take about a tenth of a drawing's time."""

    QUICK = 0.5  # seconds; previews below it are never left out
    SHARE = 0.1

    def __init__(self):
        self._began = time.monotonic()
        self._spent = self._a_cell = 0.0  # seconds

    def allows(self, cells: int) -> bool:
        """Whether a preview of so many drawn tokens is in time."""
        ahead = self._a_cell * cells
        return ahead < self.QUICK or self._spent + ahead < self.SHARE * (time.monotonic() - self._began)

    @contextmanager
    def timed(self, cells: int) -> Iterator[None]:
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._spent, self._a_cell = self._spent + took, took / cells


@dataclass(frozen=True)
class Label:
    """How well a label fits a picture."""

    text: str
    score: float  # CLIP's cosine
    probability: float  # CLIP's, among the labels that were given
    log_likelihood: float | None  # the prior's, nats a token; None where it was not asked


class DallePipeline(DiffusionPipeline):
    """`pipe("a red fox", num_candidates=16, seed=7).candidates[0].image`; see `stream` for the arguments.

    Holds no request's state: several threads may sample from one pipeline, and go through its weights together (`engine`).
    """

    model_cpu_offload_seq = "prior->image_tokenizer->clip"
    _optional_components = ["clip", "clip_processor", "clip_tokenizer", "describer"]

    def __init__(
        self,
        image_tokenizer: VQModel,
        text_tokenizer: PreTrainedTokenizerFast,
        prior: GPTPrior | BartPrior | LlamaPrior | LlamaGenPrior,
        clip: clip_rerank.Ranker | None = None,
        clip_processor: CLIPImageProcessorPil | SiglipImageProcessorPil | None = None,
        clip_tokenizer: PreTrainedTokenizerFast | None = None,
        describer: Describer | None = None,
        name: str = "unnamed",
        defaults: dict | None = None,
        examples: list[str] | None = None,
        text_normalizer: str | None = None,
        licence: str = "unknown",
        labels: list[str] | None = None,
        vocabulary: dict | None = None,
        prompt_template: str | None = None,
        cpu_candidates: int = 64,
    ):
        """clip None: nothing is ranked. clip_tokenizer None: CLIP reads the prior's ids. text_normalizer: a key of
        `text_normalizer.NORMALIZERS`. labels: what the model knows by name, to recognise pictures with. vocabulary: all
        words that it knows, for `unknown_words`, as `Vocabulary.of` reads them. prompt_template: see
        `text_tokenizer.encode_pair`. cpu_candidates: the most that are drawn in one go on a CPU."""
        super().__init__()
        self.register_modules(
            image_tokenizer=image_tokenizer,
            text_tokenizer=text_tokenizer,
            prior=prior,
            clip=clip,
            clip_processor=clip_processor,
            clip_tokenizer=clip_tokenizer,
            describer=describer,
        )
        sampling = {"num_candidates": 16} | asdict(SamplingSettings()) | dict(defaults or {})
        self.register_to_config(
            name=name,
            defaults=sampling,
            examples=list(examples or []),
            text_normalizer=text_normalizer,
            licence=licence,
            labels=list(labels or []),
            vocabulary=vocabulary,
            prompt_template=prompt_template,
            cpu_candidates=cpu_candidates,
        )
        self._vocabulary = Vocabulary.of(vocabulary)
        self.engine = Engine(prior)
        self._memory = memory.Shares()
        self.chunk_size: int | None = None  # candidates sampled at a time; None: what fits, up to 64
        self.max_candidates = 64
        self.bring_describer: Callable[[], Describer] | None = None  # reads it when it is first asked for
        self.revision = ""  # which weights these are, among all of this name; `load` says it

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As diffusers' own; folders that were saved before the priors moved name their modules of then."""
        config = super().load_config(*args, **kwargs)
        if isinstance(config, dict) and isinstance(prior := config.get("prior"), list):
            config["prior"] = [MOVED.get(prior[0], prior[0]), *prior[1:]]
        return config

    def save_pretrained(self, *args, **kwargs) -> None:
        """As diffusers' own. Raises ModelError for 8-bit weights, which are made at loading and never stored."""
        if is_quantized(self.prior):
            raise ModelError("int8 weights are not saved: load the model in float32 or bfloat16 to save it.")
        self.load_describer()
        super().save_pretrained(*args, **kwargs)

    def to(self, *args, **kwargs) -> "DallePipeline":
        """As diffusers' own, but dtype is that of the prior and of the image tokenizer's decoder: CLIP and what reads pictures
        stay in float32, for a nearest code and a rank are a matter of the third digit; the decoder does where the dtype is
        float16, whose range its maps may leave. On CUDA several draw in slots (`slots.py`)."""
        dtypes = [value for value in (*args, kwargs.pop("dtype", None)) if isinstance(value, torch.dtype)]
        others = [value for value in args if not isinstance(value, torch.dtype)]
        if others or kwargs:
            super().to(*others, **kwargs)
        for dtype in dtypes:
            self.prior.to(dtype)
            for part in (self.image_tokenizer.decoder, self.image_tokenizer.post_quant_conv):
                part.to(images.decoder_dtype(dtype))
        if self.prior.device.type == "cuda":  # a new one: slots are of a device and a dtype
            self.engine = SlotEngine(self.prior)
        elif isinstance(self.engine, SlotEngine):
            self.engine = Engine(self.prior)
        return self

    def check_config(self) -> None:
        """Raises InputError naming what in `model_index.json` cannot be."""
        for key in ("name", "licence"):
            if not isinstance(self.config[key], str):
                raise InputError(f"{key} must be text.")
        for key in ("examples", "labels"):
            if not all(isinstance(text, str) for text in self.config[key]):
                raise InputError(f"{key} must be a list of texts.")
        if self.config.text_normalizer not in (None, *NORMALIZERS):
            raise InputError(
                f"text_normalizer is {self.config.text_normalizer!r}; it must be null or one of {', '.join(NORMALIZERS)}."
            )
        template, most = self.config.prompt_template, self.config.cpu_candidates
        if template is not None and not (isinstance(template, str) and template.count("{prompt}") == 1):
            raise InputError('prompt_template must be null, or text with "{prompt}" in one place.')
        if type(most) is not int or most < 1:
            raise InputError(f"cpu_candidates is {str(most)[:20]}; it must be a whole number from 1.")
        DrawingRequest("").checked(self.limits, self.defaults)

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def limits(self) -> Limits:
        return Limits(self.max_candidates, self.grid_size, self.codebook_size)

    @property
    def defaults(self) -> dict:
        """num_candidates, temperature, top_k, top_p, guidance_scale: what a call uses where it names nothing."""
        return dict(self.config.defaults)

    @property
    def examples(self) -> list[str]:
        return list(self.config.examples)

    @property
    def grid_size(self) -> int:
        """Tokens a side."""
        return math.isqrt(self.prior.config.image_length)

    @property
    def image_size(self) -> int:
        """Pixels a side of a picture."""
        return self.grid_size * images.downsampling(self.image_tokenizer)

    @property
    def codebook_size(self) -> int:
        return self.prior.config.image_vocab_size

    def fit_prompt(self, prompt: str) -> tuple[str, str]:
        """(what the model reads of a prompt, what does not fit its text length)."""
        return fit_prompt(self.text_tokenizer, prompt, *self.reading)

    def fit_for_clip(self, prompt: str) -> tuple[str, str]:
        """(what CLIP reads of what the model reads of a prompt, the rest of it); without CLIP there is no rest."""
        used, _ = self.fit_prompt(prompt)
        if self.clip is None:
            return used, ""
        try:
            return clip_rerank.fit(self.clip, self.clip_tokenizer or self.text_tokenizer, used)
        except InputError:  # it knows none of the words: it reads their unknowns
            return used, ""

    @property
    def reading(self) -> tuple[int, str | None, str | None]:
        """How the prior reads a prompt: the ids that it reads at most, the normaliser, the template."""
        return self.prior.config.text_length, self.config.text_normalizer, self.config.prompt_template

    def unknown_words(self, prompt: str) -> list[tuple[str, list[str]]]:
        """The words of a prompt that the model does not know, each with the nearest that it does, see `vocabulary`; none where
        the model does not name its vocabulary."""
        return unknown_words(self.fit_prompt(prompt)[0], self._vocabulary) if self._vocabulary else []

    def encode(self, image: Image.Image) -> torch.Tensor:
        """A picture -> its tokens [grid, grid], by the image tokenizer; cropped to a centred square and resized.

        Raises InputError when the image tokenizer came without its encoder.
        """
        return self._encode(self.square(image))

    def square(self, image: Image.Image) -> Image.Image:
        """What the model sees of a picture: a centred square in its own size, RGB."""
        return ImageOps.fit(images.flat(image), (self.image_size, self.image_size), Image.Resampling.LANCZOS)

    @on_engine
    def _encode(self, square: Image.Image) -> torch.Tensor:
        pixels = images.to_pixels([square]).to(self.image_tokenizer.device)
        return images.encode(self.image_tokenizer, pixels)[0].cpu()

    def decode(self, tokens: torch.Tensor) -> Image.Image:
        """Tokens [grid, grid] -> the picture they stand for. Raises InputError for other shapes or numbers."""
        return self._images(token_grid(tokens, self.limits).flatten()[None])[0]

    @on_engine
    @torch.inference_mode()
    def tile(self, tokens: torch.Tensor) -> Image.Image:
        """Tokens [grid, grid] -> their picture as a seamless tile: decoded as it looks with copies of itself on all sides.

        min-dalle's `is_seamless` decodes a grid of different candidates in this way. Raises InputError as `decode` does.
        """
        half, side = self.grid_size // 2, self.image_size
        around = (
            token_grid(tokens, self.limits).roll((half, half), (0, 1)).repeat(2, 2)
        )  # half a picture on each side of the whole one
        pixels = images.decode(self.image_tokenizer, around[None].to(self.image_tokenizer.device))
        start = half * (side // self.grid_size)
        return images.to_images(pixels[..., start : start + side, start : start + side])[0]

    def log_likelihood(self, tokens: torch.Tensor, prompts: list[str]) -> list[float]:
        """log p(tokens | prompt) of each prompt, in nats a token: how well the prior finds that the picture fits."""
        tokens = token_grid(tokens, self.limits).flatten()
        together = 1 if self.config.prompt_template else 8  # without padding each prompt has a length of its own
        parts = [self._log_likelihoods(tokens, prompts[i : i + together]) for i in range(0, len(prompts), together)]
        return [value for part in parts for value in part]

    @on_engine  # a few at a time: others' tokens are drawn in between
    @torch.inference_mode()
    def _log_likelihoods(self, tokens: torch.Tensor, prompts: list[str]) -> list[float]:
        if self.config.prompt_template:
            text_ids, _ = encode_pair(self.text_tokenizer, prompts[0], "", *self.reading)
        else:
            text_ids = encode_prompts(self.text_tokenizer, prompts, *self.reading[:2])
        text_ids, rows = text_ids.to(self.prior.device), tokens.to(self.prior.device).expand(len(text_ids), -1)
        logits = self.prior(text_ids, rows[:, :-1]).float()
        loss = F.cross_entropy(logits.flatten(0, 1), rows.flatten(), reduction="none")
        return (-loss.view_as(rows).mean(1)).tolist()

    def recognise(self, image: Image.Image, labels: list[str] | None = None, deep: int | None = None) -> list["Label"]:
        """What a picture shows, most likely first by CLIP: each label's CLIP cosine and probability and, for the first
        `deep` (if the image tokenizer can read pictures), the prior's log-likelihood of the picture given the label.

        labels None: the model's own. deep None: twelve, or as many as are drawn in one go. Raises InputError when there are
        no labels, or no CLIP.
        """
        labels = [label.strip() for label in (self.config.labels if labels is None else labels) if label.strip()]
        if not labels:
            raise InputError("Name some labels, one per line: what could the picture show?")
        if self.clip is None:
            raise InputError("This model was loaded without CLIP, which is what recognises.")
        square = self.square(image)
        picture = self._embedding(square)
        cosines = torch.cat([self._cosines(picture, labels[i : i + LABELS]) for i in range(0, len(labels), LABELS)])
        shares = (cosines * self.clip.logit_scale.detach().exp().float().cpu()).softmax(0)
        order = cosines.argsort(descending=True).tolist()
        likelihoods = {}
        deep = min(12, self.max_candidates) if deep is None else deep
        if deep and images.has_encoder(self.image_tokenizer):
            first = [labels[i] for i in order[:deep]]
            likelihoods = dict(zip(first, self.log_likelihood(self._encode(square), first)))
        return [Label(labels[i], cosines[i].item(), shares[i].item(), likelihoods.get(labels[i])) for i in order]

    @on_engine
    def _embedding(self, square: Image.Image) -> torch.Tensor:
        return clip_rerank.image_embeddings(self.clip, self.clip_processor, [square])[0]

    @on_engine  # a few at a time: others' tokens are drawn in between
    @torch.inference_mode()
    def _cosines(self, picture: torch.Tensor, labels: list[str]) -> torch.Tensor:
        """picture [D] -> CLIP's cosines with the labels [B], on the CPU."""
        tokenizer = self.clip_tokenizer or self.text_tokenizer
        return (clip_rerank.text_embeddings(self.clip, tokenizer, labels) @ picture).cpu()

    @property
    def answers(self) -> bool:
        """Whether it can answer a question about a picture in words."""
        return self.describer is not None or self.bring_describer is not None

    @on_engine
    def load_describer(self) -> None:
        """Reads what looks at pictures, if there is one and it is not here yet. Raises ModelError as `load` does."""
        if self.describer is None and self.bring_describer is not None:
            self.register_modules(describer=self.bring_describer())

    def describe(self, image: Image.Image, question: str = QUESTION, most: int = 512) -> str:
        """The answer to a question about a picture, of at most `most` tokens; see `describing`."""
        text = ""
        for text in self.describing(image, question, most):
            pass
        return text

    def describing(self, image: Image.Image, question: str = QUESTION, most: int = 512) -> Generator[str, None, None]:
        """Yields the answer as far as it is written, the whole of it again each time. Closing the iterator stops the work.

        Raises InputError for a blank question, or when the model does not answer.
        """
        if not self.answers:
            raise InputError("This model draws, but it does not answer questions: load Janus-Pro for that (janus-pro-1b).")
        if not question.strip():
            raise InputError("The question is empty: ask something about the picture.")
        return self._describing(image, question.strip(), most)

    def _describing(self, image: Image.Image, question: str, most: int) -> Generator[str, None, None]:
        self.load_describer()
        tokenizer = self.text_tokenizer
        ids, place = encode_question(tokenizer, question, QUESTION_LENGTH, self.describer.config.question_template)
        found = []
        pixels, end = self.describer.look(image), tokenizer.eos_token_id
        with closing(answer(self.engine, self.describer, ids, place, pixels, end, most)) as new:
            for id in new:
                found.append(id)
                # Half of a character of several bytes waits for the rest.
                yield tokenizer.decode(found, skip_special_tokens=True).rstrip("\ufffd").strip()

    def candidates_that_fit(self, guided: bool = True) -> int:
        """How many candidates can be drawn together in the memory that is free, at most `max_candidates`."""
        if isinstance(self.engine, SlotEngine):
            return min(self.max_candidates, self.engine.slots.rows // (2 if guided else 1))
        config, itemsize = self.prior.config, self.prior.dtype.itemsize
        return memory.chunk_that_fits(config, itemsize, 2 if guided else 1, self.prior.device, self.max_candidates)

    def __call__(self, prompt: str, **arguments) -> Generation:
        """Draws candidates for a prompt; the arguments of `stream`."""
        for step in self.stream(prompt, **arguments):
            pass
        assert step.generation is not None  # the last step has it
        return step.generation

    def stream(
        self,
        prompt: str,
        negative_prompt: str = "",
        num_candidates: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        image_tokens: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        preview_every: int = 0,
        rerank: bool = True,
    ) -> Generator[Step, None, None]:
        """Yields a `Step` after every token; the last one holds the `Generation`. Closing the iterator stops the work.

        What is None comes from the model's `defaults`; a seed that is None is drawn at random. The negative prompt
        takes the null prompt's place in guidance, so it needs a guidance scale other than 1. image_tokens with keep
        (both [grid, grid], keep boolean) forces the tokens where keep is true and draws the others. preview_every:
        positions between previews, 0 for none; fewer come where they would take much of the time (`PreviewPace`).

        Raises InputError, before anything is computed, naming the argument, its value and what is allowed.
        """
        request = DrawingRequest(
            prompt, negative_prompt, num_candidates, seed, temperature, top_k, top_p, guidance_scale, image_tokens, keep
        ).checked(self.limits, self.defaults)
        preview_every = number("preview_every", preview_every, self.limits)
        used, dropped = self.fit_prompt(request.prompt)
        try:
            negative = request.negative_prompt.strip() and self.fit_prompt(request.negative_prompt)[0]
        except InputError:
            raise InputError(
                f"This model knows nothing of the negative prompt {negative_prompt[:40]!r}: leave it empty or try other words."
            ) from None
        seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        settings = SamplingSettings(request.temperature, request.top_k, request.top_p, request.guidance_scale)
        forced, keep = (None if tokens is None else tokens.flatten() for tokens in (request.image_tokens, request.keep))
        generation = Generation(
            candidates=[],
            prompt=request.prompt,
            used_prompt=used,
            dropped_prompt=dropped,
            negative_prompt=request.negative_prompt,
            seed=seed,
            settings=request.settings,
        )
        return self._stream(generation, negative, settings, forced, keep, preview_every, rerank)

    def _stream(self, generation, negative, settings, forced, keep, preview_every, rerank) -> Generator[Step, None, None]:
        config, prompts = self.prior.config, 1 if settings.guidance_scale == 1 else 2
        most = min(self.chunk_size or self.max_candidates, generation.settings["num_candidates"])
        if isinstance(self.engine, SlotEngine):
            chunk = min(most, self.engine.slots.rows // prompts)
            yield from self._chunks(generation, negative, settings, forced, keep, preview_every, rerank, chunk)
            return
        with self._memory.chunk(config, self.prior.dtype.itemsize, prompts, self.prior.device, most) as chunk:
            chunk = most if self.chunk_size else chunk
            yield from self._chunks(generation, negative, settings, forced, keep, preview_every, rerank, chunk)

    def _chunks(
        self, generation, negative, settings, forced, keep, preview_every, rerank, chunk
    ) -> Generator[Step, None, None]:
        count, length = generation.settings["num_candidates"], self.prior.config.image_length
        device = self.prior.device
        text_ids, null_ids = (
            ids.to(device) for ids in encode_pair(self.text_tokenizer, generation.used_prompt, negative, *self.reading)
        )
        pace = PreviewPace()
        finished = torch.empty(0, length, dtype=torch.long)  # tokens, on the CPU
        shown: list[Image.Image] = []  # of the finished ones
        while len(finished) < count:
            rows = range(len(finished), min(len(finished) + chunk, count))
            uniforms = torch.stack([candidate_uniforms(generation.seed, i, length) for i in rows])
            every = preview_every or length
            steps = generate(self.engine, text_ids, null_ids, uniforms, settings, forced, keep, every)
            out_of_memory = False
            try:
                for position, tokens in enumerate(steps, 1):
                    previews = None
                    asked = preview_every and position % preview_every == 0 and position < length
                    if asked and pace.allows(position * len(rows)):
                        waiting = [self._not_drawn()] * (count - rows.stop)
                        with pace.timed(position * len(rows)):
                            previews = shown + self._preview(tokens, position) + waiting
                    index = len(finished) * length + len(rows) * position
                    if index < count * length:
                        yield Step(index, count * length, previews)
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
                out_of_memory = True  # handled outside: the traceback would keep the memory
            finally:
                steps.close()
            if out_of_memory:
                if chunk == 1:
                    raise memory.too_little(device)
                chunk = chunk // 2
                continue
            finished = torch.cat([finished, tokens.cpu()])
            for part in finished[rows.start :].split(images.at_a_time(self.image_tokenizer, self.grid_size)):
                shown += self._images(part)
                if len(shown) < len(finished):  # pixels take long: a place to stop
                    yield Step(len(finished) * length, count * length)
        generation = replace(generation, candidates=self._candidates(generation, finished, shown, rerank))
        yield Step(count * length, count * length, shown if preview_every else None, generation)

    @on_engine
    def _candidates(self, generation, tokens, shown, rerank) -> list[Candidate]:
        scores, rerank = [None] * len(shown), rerank and self.clip is not None
        if rerank:
            tokenizer = self.clip_tokenizer or self.text_tokenizer

            def score(images):
                return clip_rerank.scores(self.clip, self.clip_processor, tokenizer, generation.used_prompt, images)

            scores = memory.by_halves(score, shown, self.clip.device)
        grids = tokens.unflatten(1, (self.grid_size, self.grid_size))
        candidates = [
            Candidate(image, score, grid.clone(), generation.seed, index)
            for index, (image, score, grid) in enumerate(zip(shown, scores, grids, strict=True))
        ]
        return sorted(candidates, key=lambda candidate: -candidate.score) if rerank else candidates

    @on_engine
    @torch.inference_mode()
    def _images(self, tokens: torch.Tensor) -> list[Image.Image]:
        """Tokens [B, N] -> pictures."""
        grids = tokens.to(self.image_tokenizer.device).unflatten(1, (self.grid_size, self.grid_size))

        def decode(grids):
            return images.to_images(images.decode(self.image_tokenizer, grids))

        return memory.by_halves(decode, grids, self.image_tokenizer.device)

    @on_engine
    @torch.inference_mode()
    def _preview(self, tokens: torch.Tensor, position: int) -> list[Image.Image]:
        """Pictures of unfinished candidates [B, N]: cells not drawn yet (-1) are grey."""
        drawn = tokens >= 0
        # The decoder looks beyond a cell's edges: what is missing is filled with the latest token, then painted over.
        last = tokens[:, position - 1 : position].clamp(min=0)
        grids = torch.where(drawn, tokens, last).unflatten(1, (self.grid_size, self.grid_size))
        mask = drawn.unflatten(1, (1, self.grid_size, self.grid_size))  # [B, 1, h, w]
        begun = int(mask[0, 0].any(1).nonzero().max()) + 1  # rows; those below need no pixels
        factor = images.downsampling(self.image_tokenizer)
        mask = mask[:, :, :begun].float().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        pixels = images.decode(self.image_tokenizer, grids[:, :begun]) * mask + NOT_DRAWN * (1 - mask)
        return images.to_images(F.pad(pixels, (0, 0, 0, self.image_size - pixels.shape[2]), value=NOT_DRAWN))

    def _not_drawn(self) -> Image.Image:
        """The grey picture of a candidate that has not been begun."""
        return Image.new("RGB", (self.image_size, self.image_size), (round((NOT_DRAWN + 1) * 127.5),) * 3)
