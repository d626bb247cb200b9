"""The diffusion decoder of a model: masked positions where a page has its gaps, or behind it, written in any order."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from cm3kit.decoders.diffusion.denoiser import Denoiser
from cm3kit.decoders.diffusion.loop import Diffusion, in_batches
from cm3kit.decoders.diffusion.plan import plan
from cm3kit.decoders.diffusion.scoring import score_bound, score_left_to_right
from cm3kit.decoders.diffusion.settings import EXACT, DiffusionConfig
from cm3kit.decoders.grammar.canvas_constraint import CanvasConstraint
from cm3kit.decoders.scoring import Scored
from cm3kit.decoders.settings import Precision
from cm3kit.fill.denoisers import Denoisers
from cm3kit.fill.fillers import Ids, ModelContext, Progress, ScoreHow, Task, modality_of
from cm3kit.fill.layouts import LayoutParts, Room, layout, without_given
from cm3kit.fill.lengths import LengthSearch
from cm3kit.fill.options import (
    ANSWER_TOKENS,
    GenerateOptions,
    Modality,
    chosen_style,
    diffusion_settings,
)
from cm3kit.fill.styles import PromptStyle
from cm3kit.fill.windows import first_window
from cm3kit.objectives.gaps import LENGTHS
from cm3kit.types import Canvas, MaskSpan, OnStep, Result, Step
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError


class DiffusionFiller:
    """Implements `fillers.Filler`. All gaps of a window are masked at once, and each is written given the others."""

    def __init__(self, context: ModelContext) -> None:
        self._context, parts = context, context.parts
        height, width = parts.image.grid
        self._codes = height * width
        self._layout = layout[parts.defaults.diffusion.layout](LayoutParts(parts.vocab, context.tokenizer))
        self._denoisers = Denoisers(parts)

    def settings(self, modality: Modality, options: GenerateOptions) -> DiffusionConfig:
        """The decoder's settings; ConfigError (`bad_value`, `unknown_name`) for options that cannot be used."""
        config = diffusion_settings(self._context.parts.defaults.diffusion, modality, options)
        return config if config.precision != "auto" else config.model_copy(update={"precision": self._auto})

    @cached_property
    def _auto(self) -> Precision:
        return self._denoisers.auto()

    def task(self, task: Task, ids: Ids, options: GenerateOptions, seed: int) -> Canvas:
        """The canvas of a task's page.

        Raises:
            ConfigError: it does not fit the model's window (`too_long`), or it is a whole page (`bad_value`).
        """
        if task == "document":
            raise ConfigError(
                "the diffusion decoder fills gaps and writes no whole pages; use --decoder cm3, or infill a"
                " page with gaps.",
                code="bad_value",
            )
        limits = _Limits(options, self._codes)
        if task == "text" and self._style(options) in ("plain", "chat"):
            canvas = self._answer(ids, limits, options, seed)
        else:
            canvas = self._layout.lay_out(ids, limits, reaches=(True, True), guided=False, seed=seed)
        self._context.check(len(canvas.flatten(self._context.parts.vocab.mask).ids))
        return canvas

    def window(self, ids: Ids, options: GenerateOptions, seed: int) -> Canvas:
        """The canvas of the first gaps that fit the window; ConfigError (`too_long`) if not even one does."""
        parts, limits = self._context.parts, _Limits(options, self._codes)
        window = first_window(ids, self._layout, limits, parts.defaults.window, parts.vocab.image)
        reaches = window.start == 0, window.stop == len(ids)
        part = ids[window.start : window.stop]
        return self._layout.lay_out(part, limits, reaches=reaches, guided=False, seed=seed)

    def fill(self, canvases: Sequence[Canvas], options: GenerateOptions, progress: Progress) -> list[Result]:
        """Fill canvases, and with the length "auto" their texts in several lengths.

        Raises:
            ConfigError: a gap cannot hold any answer (`bad_value`).
        """
        config = self.settings(modality_of(canvases[0].spans), options)
        denoiser, decoder = self._decoder(config, options)
        vocab = self._context.parts.vocab

        def write(canvases: Sequence[Canvas], progress: Progress) -> list[Result]:
            if config.guidance != 1:
                canvases = [without_given(each, vocab) for each in canvases]
            return decoder.fill(canvases, _reporting(progress))

        if options.length == "auto":
            judge = denoiser
            if config.cache not in EXACT:
                judge = self._denoisers.make(_uncached(config), style=self._style(options))
            search = LengthSearch(write, self._constraint, judge, vocab, config)
            results = search.fill(canvases, lambda kind: _most(options, kind), progress)
        else:
            results = write(canvases, progress)
        checked = getattr(denoiser, "verification", None)
        return [replace(each, verification=checked) for each in results]

    def score(
        self, canvases: Sequence[Canvas], options: GenerateOptions, how: ScoreHow, progress: Progress
    ) -> list[Scored]:
        """How likely the given answers are, whatever guides or cuts; gaps without one stay masked.

        Models that were trained block by block are scored exactly, as they write from left to right one id at a pass.
        Others give a bound, unless `how` asks for that order.

        Raises:
            ConfigError: a bound is asked for of a model that is scored exactly, or an answer does not fit
                (`bad_value`).
        """
        config = self.settings(modality_of(canvases[0].spans), options)
        eoss, exact = self._context.parts.vocab.eoss, config.cache in EXACT
        method: str = how.method if how.method != "auto" else "exact" if exact else "bound"
        if method not in (("exact", "left-to-right") if exact else ("left-to-right", "bound")):
            kind = "exactly" if exact else "by a bound, or with left-to-right"
            raise ConfigError(
                f"method {method!r}: this model is scored {kind}; leave it out.", code="bad_value"
            )
        style: PromptStyle = "minimal" if how.spelt else self._style(options)
        denoiser = self._denoisers.make(config if exact else _uncached(config), style=style)
        if method == "bound":
            return score_bound(denoiser, canvases, config, eoss=eoss, rounds=how.rounds, report=progress)
        return score_left_to_right(
            denoiser,
            canvases,
            config,
            eoss=eoss,
            method="exact" if exact else "left-to-right",
            report=progress,
        )

    def batch_key(self, canvas: Canvas, options: GenerateOptions) -> Hashable:
        """What there is to write, and the options; ConfigError if they cannot be used."""
        modality = modality_of(canvas.spans)
        self.settings(modality, options)
        return modality, repr(options)

    def stream(
        self, key: Any, canvases: Iterator[Canvas], options: GenerateOptions
    ) -> Iterator[tuple[int, Result | Cm3kitError]]:
        """Fill canvases as they come, a batch after the other."""
        size = self.settings(key[0], options).batch_size
        return in_batches(canvases, size, lambda batch: self.fill(batch, options, lambda done, total: None))

    def room(self, gap: Gap, options: GenerateOptions) -> Room:
        """What a gap of a page may hold; with the length "auto" the longest."""
        return _Limits(options, self._codes)(gap)

    def end(self, gap: Gap, options: GenerateOptions) -> int:
        """`<eoss>`."""
        return self._context.parts.vocab.eoss

    def plan(self, canvas: Canvas, options: GenerateOptions) -> list[list[int]]:
        """How many positions each pass of each block is to write, without writing.

        Raises:
            ConfigError: lengths that are tried out have no plan of their own (`bad_value`).
        """
        if options.length == "auto":
            raise ConfigError(
                "lengths are tried out, so there is no schedule yet; give a number for the length.",
                code="bad_value",
            )
        return plan(canvas, self.settings(modality_of(canvas.spans), options))

    def record(self, modality: Modality | None, options: GenerateOptions) -> Mapping[str, Any]:
        """How files say that they were made: the preset, and every setting that was in force."""
        kinds: tuple[Modality, ...] = (modality,) if modality else ("image", "text", "mixed")
        settings = {each: self.settings(each, options).model_dump(mode="json") for each in kinds}
        sampler = options.sampler or "diffusion"
        told = settings[modality] if modality else settings
        return {"sampler": sampler, "precision": settings[kinds[0]]["precision"], "settings": told}

    def _style(self, options: GenerateOptions) -> PromptStyle:
        """How pages are put to the model; ConfigError (`bad_value`) for a style that it has not."""
        return chosen_style(self._context.parts.defaults, options)

    def _answer(self, ids: Ids, limits: _Limits, options: GenerateOptions, seed: int) -> Canvas:
        """Words and what the model writes behind them, without a page around it; in a chat it is the answer."""
        parts = self._context.parts
        vocab, chat = parts.vocab, parts.defaults.chat
        start, stop = (ids.index(vocab.markup_id(piece)) for piece in ("<title>", "</title>"))
        words = [each for each in ids[start + 1 : stop] if isinstance(each, int)]
        if self._style(options) == "chat" and chat is not None:
            words = chat.ids(words, parts.text, vocab)
        room = limits(Gap(0, "content"))
        # Nothing but words may stand there, as in the value of an attribute.
        answer = MaskSpan("attribute", len(words), room.max_tokens, room.exact, room.slots, end=vocab.eoss)
        return Canvas(tuple(words), (answer,), seed=seed)

    def _decoder(self, config: DiffusionConfig, options: GenerateOptions) -> tuple[Denoiser, Diffusion]:
        """A decoder for these settings; what a cache keeps, and finds when it is verified, is of one use."""
        denoiser = self._denoisers.make(config, options.verify_cache, self._style(options))
        vocab = self._context.parts.vocab
        return denoiser, Diffusion(denoiser, self._constraint, config, eoss=vocab.eoss, image=vocab.image)

    def _constraint(self, canvas: Canvas) -> CanvasConstraint:
        return CanvasConstraint(canvas, self._context.grammar)


class _Limits:
    """Masked positions of a gap: its length, those of a whole picture, or the least of training that hold the text."""

    def __init__(self, options: GenerateOptions, codes: int) -> None:
        self._options, self._codes = options, codes

    def __call__(self, gap: Gap) -> Room:
        options = self._options
        exact = gap.length
        if exact is None and gap.kind == "image":
            exact = self._codes
        if exact is None and isinstance(options.length, int):
            exact = options.length
        if exact is not None:
            return Room(exact, True, exact)
        # Where lengths are tried, or one is wished for, an end must have room behind the longest.
        auto = options.length == "auto"
        wanted = _most(options, gap.kind) + auto
        if gap.size and options.max_tokens is None and not auto:
            wanted = gap.size + 1
        slots = next((size for size in LENGTHS if size >= wanted), wanted)
        # A gap has one of the sizes that were trained, and its answer not more ids than were allowed.
        capped = options.max_tokens is not None and not auto
        return Room(min(slots, options.max_tokens or slots) if capped else slots, False, slots)


def _uncached(config: DiffusionConfig) -> DiffusionConfig:
    """The settings without a cache that only approximates."""
    return config.model_copy(update={"cache": "none"})


def _most(options: GenerateOptions, kind: str) -> int:
    """The longest text of a gap of unknown length."""
    return options.max_tokens or ANSWER_TOKENS[kind].diffusion


def _reporting(progress: Progress) -> OnStep:
    def on_step(step: Step) -> None:
        progress(step.index + 1, step.total)

    return on_step
