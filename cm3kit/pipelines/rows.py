"""The way of the cm3 decoder: a page with gaps, and their answers behind it, left to right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cm3kit.decoders.autoregressive import Autoregressive
from cm3kit.decoders.guidance import streams
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.objectives import CausalMask, SizeHints
from cm3kit.pipelines import layout
from cm3kit.pipelines.continuing import continued
from cm3kit.pipelines.options import GenerateOptions, Modality, chosen_style, cm3_settings
from cm3kit.pipelines.ways import Answer, Ground, Ids, Task, Watch, modality_of
from cm3kit.types import Blank, Canvas, Posed, Row, Step
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError


class Rows:
    """Implements `ways.Way`.

    A picture or a page from words is written on from its own start, as a page is read; all else behind the
    page, at a sentinel.
    """

    def __init__(self, ground: Ground) -> None:
        self._ground, parts = ground, ground.parts
        hints = SizeHints.of(parts.vocab, parts.text) if parts.defaults.hints else None
        self._objective = CausalMask(
            parts.vocab,
            parts.defaults.preset,
            tuple(parts.text.continues),
            grid=parts.image.grid,
            hints=hints,
        )
        self._decoders: dict[DecodeConfig, Autoregressive] = {}

    def settings(self, modality: Modality, options: GenerateOptions) -> DecodeConfig:
        """The decoder's settings; ConfigError (`bad_value`) for options out of range."""
        return cm3_settings(self._ground.parts.defaults, modality, options)

    def task(self, task: Task, ids: Ids, options: GenerateOptions, seed: int) -> Posed:
        """Lay out the page of a task; ConfigError (`too_long`) if it does not fit the model's window."""
        if self._ground.parts.public:
            return continued(self._ground, ids, options, seed, task)
        chosen_style(self._ground.parts.defaults, options)
        if task == "image":
            posed = self._picture(ids, options, seed)
        elif task == "document":
            posed = self._document(ids, options, seed)
        else:
            posed = self._limited(self._objective.pose(ids, 0, seed), options)
        blanks = posed.row.blanks
        self._ground.check(len(posed.row.prompt) + sum(blank.max_tokens + 2 for blank in blanks))
        return posed

    def window(self, ids: Ids, options: GenerateOptions, seed: int) -> Posed:
        """Lay out the first gaps that fit the model's window; ConfigError (`too_long`) if not even one does."""
        if self._ground.parts.public:
            return continued(self._ground, ids, options, seed)
        chosen_style(self._ground.parts.defaults, options)
        # Of a gap's hole, its sentinel is counted by `windows`.
        longest = {
            place: self._longest(each, options) + len(self._objective.hole(each, 0)) - 1
            for place, each in layout.gaps_of(ids)
        }
        window = layout.windows(ids, longest, self._ground.parts.defaults.window)[0]
        window = layout.trim(ids, window, self._ground.parts.vocab.image)
        posed = self._limited(layout.pose_window(self._objective, ids, window, 0, seed), options)
        guides = self._guides(ids[window.start : window.stop], posed, options)
        return replace(posed, row=replace(posed.row, guides=guides))

    def fill(self, asked: Sequence[Posed], options: GenerateOptions, watch: Watch) -> list[Answer]:
        """Decode rows."""
        decoder = self._decoder(self.settings(modality_of(asked[0].gaps), options))

        def hear(step: Step) -> None:
            watch(step.index + 1, step.total)

        fills = decoder.fill(Canvas(tuple(each.row for each in asked)), hear)
        return [Answer(each.gaps, wrote) for each, wrote in zip(asked, fills, strict=True)]

    def lane(self, asked: Posed, options: GenerateOptions) -> tuple[DecodeConfig, int]:
        """Settings, and streams of a row."""
        config = self.settings(modality_of(asked.gaps), options)
        return config, streams(config, len(asked.row.guides))

    def flow(
        self, lane: tuple[DecodeConfig, int], pull: Callable[[], Posed | None], options: GenerateOptions
    ) -> Iterator[tuple[int, Answer | Cm3kitError]]:
        """Decode rows as they come: a place that is free takes the next one."""
        gaps: list[tuple[Gap, ...]] = []

        def next_row() -> Row | None:
            if (asked := pull()) is None:
                return None
            gaps.append(asked.gaps)
            return asked.row

        config, count = lane
        window = self._ground.parts.defaults.window
        for number, wrote in self._decoder(config).flow(next_row, count, window):
            yield number, Answer(gaps[number], wrote) if isinstance(wrote, tuple) else wrote

    def _decoder(self, config: DecodeConfig) -> Autoregressive:
        if config not in self._decoders:
            self._decoders[config] = Autoregressive(self._ground.parts.backbone, self._ground.grammar, config)
        return self._decoders[config]

    def plan(self, asked: Posed, options: GenerateOptions) -> list[list[int]]:
        """There is none: ConfigError (`bad_value`)."""
        raise ConfigError(
            "the cm3 decoder writes one id after the other; only the diffusion decoder has a schedule.",
            code="bad_value",
        )

    def record(self, modality: Modality | None, options: GenerateOptions) -> Mapping[str, Any]:
        """How files say that they were made."""
        return {"sampler": "cm3"}

    def _picture(self, ids: Ids, options: GenerateOptions, seed: int) -> Posed:
        guided = self.settings("image", options).guidance != 1
        gap = next(each for each in ids if isinstance(each, Gap))
        height, width = self._ground.parts.image.grid
        row = layout.picture_row(self._ground.parts.vocab, ids, height * width, guided)
        return Posed(replace(row, seed=seed), (gap,))

    def _document(self, ids: Ids, options: GenerateOptions, seed: int) -> Posed:
        prompt = (self._ground.parts.vocab.eod, *(each for each in ids if isinstance(each, int)))
        room = self._ground.parts.defaults.window - len(prompt) - 1
        wanted = min(options.max_tokens or layout.MAX_TOKENS["document"], max(1, room))
        return Posed(Row(prompt, (Blank("document", wanted),), seed=seed))

    def _limited(self, posed: Posed, options: GenerateOptions) -> Posed:
        blanks = tuple(
            replace(each, max_tokens=self._most(gap, each.max_tokens, options))
            for each, gap in zip(posed.row.blanks, posed.gaps, strict=True)
        )
        return replace(posed, row=replace(posed.row, blanks=blanks))

    def _longest(self, gap: Gap, options: GenerateOptions) -> int:
        height, width = self._ground.parts.image.grid
        return gap.length or self._most(gap, height * width, options)

    def _most(self, gap: Gap, otherwise: int, options: GenerateOptions) -> int:
        if gap.kind == "image":
            return otherwise
        # A hint is a guess, so an answer may be twice as long.
        wished = 2 * gap.size if gap.size and self._objective.hints else 0
        return options.max_tokens or max(layout.MAX_TOKENS[gap.kind], wished)

    def _guides(self, ids: Ids, posed: Posed, options: GenerateOptions) -> tuple[tuple[int, ...], ...]:
        if self.settings("image", options).guidance == 1 or modality_of(posed.gaps) != "image":
            return ()
        bare = layout.without_words(self._ground.tokenizer, ids)
        return (self._objective.pose(bare, 0, 0).row.prompt,)
