"""The causal decoder of a model: a page with gaps, and their answers behind it, from left to right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from cm3kit.decoders.causal.autoregressive import Autoregressive
from cm3kit.decoders.causal.drafts import BlockDrafter
from cm3kit.decoders.causal.guidance import streams
from cm3kit.decoders.kernels import of_steps
from cm3kit.decoders.precision import auto_precision
from cm3kit.decoders.scoring import Scored
from cm3kit.decoders.settings import DecodeConfig, Precision
from cm3kit.fill.continuing import continued, ends_of
from cm3kit.fill.defaults import DIFFUSION
from cm3kit.fill.denoisers import Denoisers
from cm3kit.fill.fillers import Ids, ModelContext, Progress, ScoreHow, Task, modality_of
from cm3kit.fill.layouts import LayoutParts, Room, gaps_of, layout
from cm3kit.fill.options import ANSWER_TOKENS, GenerateOptions, Modality, chosen_style, cm3_settings
from cm3kit.fill.windows import first_window
from cm3kit.objectives.hints import SizeHints
from cm3kit.objectives.spans import PRESETS
from cm3kit.types import Canvas, Result, Step
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError

# Answers between two reports of progress; those of one page share its prefill.
SCORED = 512

MOST_DECODERS = 8  # settings whose decoders are kept


class CausalFiller:
    """Implements `fillers.Filler`.

    A picture or a page from words is written on from its own start, as a page is read; all else as the model's layout
    says.
    """

    def __init__(self, context: ModelContext) -> None:
        self._context, parts = context, context.parts
        hints = SizeHints.of(parts.vocab, parts.text) if parts.defaults.hints else None
        built = LayoutParts(parts.vocab, context.tokenizer, hints, PRESETS[parts.defaults.preset].end)
        self._layout, self._continue = layout[parts.defaults.layout](built), layout["continue"](built)
        self._hints, (height, width) = hints is not None, parts.image.grid
        self._codes = height * width
        self._decoders: dict[DecodeConfig, Autoregressive] = {}

    def settings(self, modality: Modality, options: GenerateOptions) -> DecodeConfig:
        """The decoder's settings; ConfigError (`bad_value`) for options out of range."""
        config = cm3_settings(self._context.parts.defaults, modality, options)
        return config if config.precision != "auto" else config.model_copy(update={"precision": self._auto})

    @cached_property
    def _auto(self) -> Precision:
        return auto_precision(self._context.parts.weights, many=False)

    def task(self, task: Task, ids: Ids, options: GenerateOptions, seed: int) -> Canvas:
        """The canvas of a task's page; ConfigError (`too_long`) if it does not fit the model's window."""
        parts = self._context.parts
        if parts.public:
            return continued(self._context, ids, options, seed, task)
        chosen_style(parts.defaults, options)
        whole = {"reaches": (True, True), "seed": seed}
        if task == "image":
            guided = self.settings("image", options).guidance != 1
            canvas = self._continue.lay_out(ids, self._room(options), guided=guided, **whole)  # type: ignore[arg-type]
        elif task == "document":
            wanted = min(options.max_tokens or ANSWER_TOKENS["document"].causal, self._left(ids))
            canvas = self._continue.lay_out(ids, lambda gap: Room(wanted, False), guided=False, **whole)  # type: ignore[arg-type]
        else:
            canvas = self._layout.lay_out(ids, self._room(options), guided=False, **whole)  # type: ignore[arg-type]
        self._context.check(len(canvas.ids) + sum(span.max_tokens + 2 for span in canvas.spans))
        return self._as_trained(canvas)

    def window(self, ids: Ids, options: GenerateOptions, seed: int) -> Canvas:
        """The canvas of the first gaps that fit the window; ConfigError (`too_long`) if not even one does."""
        parts, room = self._context.parts, self._room(options)
        if parts.public:
            return continued(self._context, ids, options, seed)
        chosen_style(parts.defaults, options)
        window = first_window(ids, self._layout, room, parts.defaults.window, parts.vocab.image)
        part = ids[window.start : window.stop]
        pictures = all(gap.kind == "image" for _, gap in gaps_of(part))
        guided = pictures and self.settings("image", options).guidance != 1
        reaches = window.start == 0, window.stop == len(ids)
        canvas = self._layout.lay_out(part, room, reaches=reaches, guided=guided, seed=seed)
        return self._as_trained(canvas)

    def _as_trained(self, canvas: Canvas) -> Canvas:
        return replace(canvas, prompt_attention=self._context.parts.defaults.prompt_attention)

    def fill(self, canvases: Sequence[Canvas], options: GenerateOptions, progress: Progress) -> list[Result]:
        """Decode canvases."""

        def on_step(step: Step) -> None:
            progress(step.index + 1, step.total)

        return self._decoder(self.settings(modality_of(canvases[0].spans), options)).fill(canvases, on_step)

    def score(
        self, canvases: Sequence[Canvas], options: GenerateOptions, how: ScoreHow, progress: Progress
    ) -> list[Scored]:
        """How likely the given answers are; spans without one are left out.

        Raises:
            ConfigError: a way is asked for that is not this decoder's, or an answer does not fit (`bad_value`), or the
                window does not hold page and answer (`too_long`).
        """
        if how.method not in ("auto", "exact"):
            raise ConfigError(
                f"method {how.method!r} is of the diffusion decoder; the cm3 decoder scores exactly. Leave it out.",
                code="bad_value",
            )
        config = self.settings(modality_of(canvases[0].spans), options)
        decoder, found = self._decoder(config), list[Scored]()
        for start in range(0, len(canvases), SCORED):
            progress(start, len(canvases))
            found += decoder.score(canvases[start : start + SCORED])
        progress(len(canvases), len(canvases))
        return found

    def batch_key(self, canvas: Canvas, options: GenerateOptions) -> tuple[DecodeConfig, int]:
        """Settings, and streams of a row."""
        config = self.settings(modality_of(canvas.spans), options)
        return config, streams(config, len(canvas.guides))

    def stream(
        self, key: tuple[DecodeConfig, int], canvases: Iterator[Canvas], options: GenerateOptions
    ) -> Iterator[tuple[int, Result | Cm3kitError]]:
        """Decode canvases as they come: a place that is free takes the next one."""
        return self._decoder(key[0]).stream(canvases)

    def room(self, gap: Gap, options: GenerateOptions) -> Room:
        """What a gap of a page may hold."""
        return self._room(options)(gap)

    def end(self, gap: Gap, options: GenerateOptions) -> int:
        """That of the layout: it depends on what follows the gap, but for public models on its style alone."""
        parts = self._context.parts
        return (
            ends_of(self._context, gap, chosen_style(parts.defaults, options), None)[0]
            if parts.public
            else parts.vocab.eoss
        )

    def plan(self, canvas: Canvas, options: GenerateOptions) -> list[list[int]]:
        """There is none: ConfigError (`bad_value`)."""
        raise ConfigError(
            "the cm3 decoder writes one id after the other; only the diffusion decoder has a schedule.",
            code="bad_value",
        )

    def record(self, modality: Modality | None, options: GenerateOptions) -> Mapping[str, Any]:
        """How files say that they were made."""
        return {"sampler": "cm3", "precision": self.settings(modality or "text", options).precision}

    def _decoder(self, config: DecodeConfig) -> Autoregressive:
        # Each holds packed weights; the one that was made first goes.
        while config not in self._decoders and len(self._decoders) >= MOST_DECODERS:
            del self._decoders[next(iter(self._decoders))]
        if config not in self._decoders:
            parts = self._context.parts
            drafter = self._block_drafter(config) if config.draft == "diffusion" else None
            self._decoders[config] = Autoregressive(
                parts.weights, self._context.grammar, config, parts.defaults.window, drafter
            )
        return self._decoders[config]

    @cached_property
    def _denoisers(self) -> Denoisers:
        return Denoisers(self._context.parts)

    def _block_drafter(self, config: DecodeConfig) -> BlockDrafter:
        """The model's other decoder as what guesses; ConfigError (`bad_value`) if it has none that can."""
        parts = self._context.parts
        how = parts.defaults.diffusion
        if (
            DIFFUSION not in parts.defaults.decoders
            or how.trained_cache != "causal"
            or how.layout != "behind"
        ):
            raise ConfigError(
                f"draft 'diffusion': model {parts.name!r} has no second decoder that writes in blocks behind the page;"
                " use lookup or none.",
                code="bad_value",
            )
        denoisers, size = self._denoisers, how.trained_block or 1
        own = how.text.model_copy(
            update={"precision": of_steps(config.precision), "cache": "causal", "block_size": size}
        )
        return BlockDrafter(lambda: denoisers.make(own), size, config)

    def _left(self, ids: Ids) -> int:
        """What the window leaves to a page that begins with these ids."""
        return max(1, self._context.parts.defaults.window - len(ids) - 3)

    def _room(self, options: GenerateOptions) -> _Limits:
        return _Limits(options.max_tokens, self._codes, self._hints)


class _Limits:
    """The longest answer of each gap."""

    def __init__(self, max_tokens: int | None, codes: int, hints: bool) -> None:
        self._max_tokens, self._codes, self._hints = max_tokens, codes, hints

    def __call__(self, gap: Gap) -> Room:
        if gap.length is not None:
            return Room(gap.length, True)
        if gap.kind == "image":
            return Room(self._codes, True)
        # A hint is a guess, so an answer may be twice as long.
        wished = 2 * gap.size if gap.size and self._hints else 0
        return Room(self._max_tokens or max(ANSWER_TOKENS[gap.kind].causal, wished), False)
