"""The way of the diffusion decoder: a page with open slots where its gaps are, or behind it, written in any order."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, islice
from typing import Any

from cm3kit.decoders.diffusion.denoiser import Denoiser
from cm3kit.decoders.diffusion.lattice import BoardConstraint
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.plan import plan
from cm3kit.decoders.diffusion.settings import EXACT, DiffusionConfig
from cm3kit.decoders.diffusion.written import Written
from cm3kit.objectives.causal_blocks import CausalBlocks
from cm3kit.objectives.gaps import LENGTHS
from cm3kit.objectives.masked_diffusion import MaskedDiffusion
from cm3kit.pipelines import layout
from cm3kit.pipelines.denoisers import Denoisers
from cm3kit.pipelines.lengths import Found, LengthSearch
from cm3kit.pipelines.options import GenerateOptions, Modality, chosen_style, diffusion_settings
from cm3kit.pipelines.styles import PromptStyle
from cm3kit.pipelines.ways import Answer, Ground, Ids, Task, Trace, Watch, modality_of
from cm3kit.types import Board, Laid, Step, Stretch
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError

# Slots of a text gap of unknown length, unless the caller says how much it may hold.
SLOTS = {"attribute": 16, "content": 32}


class Boards:
    """Implements `ways.Way`. All gaps of a window are open at once, and each is written in sight of the others."""

    def __init__(self, ground: Ground) -> None:
        self._ground, parts = ground, ground.parts
        height, width = parts.image.grid
        self._codes = height * width
        how, inner = parts.defaults.diffusion, MaskedDiffusion(parts.vocab)
        self._behind = how.layout == "behind"
        self._objective = (
            CausalBlocks(parts.vocab, how.trained_block or 1, inner=inner) if self._behind else inner
        )
        self._denoisers = Denoisers(parts)

    def settings(self, modality: Modality, options: GenerateOptions) -> DiffusionConfig:
        """The decoder's settings; ConfigError (`bad_value`, `unknown_name`) for options that cannot be used."""
        return diffusion_settings(self._ground.parts.defaults.diffusion, modality, options)

    def task(self, task: Task, ids: Ids, options: GenerateOptions, seed: int) -> Laid:
        """Lay out the page of a task.

        Raises:
            ConfigError: it does not fit the model's window (`too_long`), or it is a whole page (`bad_value`).
        """
        if task == "document":
            raise ConfigError(
                "the diffusion decoder fills gaps and writes no whole pages; use --decoder cm3, or infill a"
                " page with gaps.",
                code="bad_value",
            )
        if task == "text" and self._style(options) in ("plain", "chat"):
            laid = self._answer(ids, options, seed)
        else:
            laid = self._lay(ids, options, seed)
        self._ground.check(len(laid.board.ids))
        return laid

    def window(self, ids: Ids, options: GenerateOptions, seed: int) -> Laid:
        """Lay out the first gaps that fit the model's window; ConfigError (`too_long`) if not even one does."""
        defaults = self._ground.parts.defaults
        slots = {place: self._slots(options, each) for place, each in layout.gaps_of(ids)}
        window = layout.windows(ids, slots, defaults.window, around=2 if self._behind else -1)[0]
        window = layout.trim(ids, window, self._ground.parts.vocab.image)
        whole = window.start == 0, window.stop == len(ids)
        return self._lay(ids[window.start : window.stop], options, seed, whole)

    def fill(self, asked: Sequence[Laid], options: GenerateOptions, watch: Watch) -> list[Answer]:
        """Write boards, and with the length "auto" their texts in several lengths.

        Raises:
            ConfigError: a gap cannot hold any answer (`bad_value`).
        """
        config = self.settings(modality_of(asked[0].gaps), options)
        denoiser, decoder = self._decoder(config, options)

        def write(boards: Sequence[Board], watch: Watch) -> list[Written]:
            def hear(step: Step) -> None:
                watch(step.index + 1, step.total)

            guided = config.guidance != 1
            return decoder.fill([self._objective.guided(each) if guided else each for each in boards], hear)

        boards = [each.board for each in asked]
        if options.length == "auto":
            judge = (
                denoiser
                if config.cache in EXACT
                else self._denoisers.make(plain(config), style=self._style(options))
            )
            search = LengthSearch(write, self._constraint, judge, self._ground.parts.vocab, config)
            found = search.fill(boards, partial(_most, options), watch)
        else:
            found = [Found(*each, each[1].cost) for each in zip(boards, write(boards, watch), strict=True)]
        checked = getattr(denoiser, "verification", None)
        return [
            Answer(laid.gaps, each.written.fills, Trace((each.written.trajectory,), each.cost, checked))
            for laid, each in zip(asked, found, strict=True)
        ]

    def lane(self, asked: Laid, options: GenerateOptions) -> Hashable:
        """What there is to write, and the options; ConfigError if they cannot be used."""
        modality = modality_of(asked.gaps)
        self.settings(modality, options)
        return modality, repr(options)

    def flow(
        self, lane: Any, pull: Callable[[], Laid | None], options: GenerateOptions
    ) -> Iterator[tuple[int, Answer | Cm3kitError]]:
        """Write boards as they come, a batch after the other."""
        size = self.settings(lane[0], options).batch_size
        numbers = count()
        while asked := list(islice(iter(pull, None), size)):
            for answer in self._each(asked, options):
                yield next(numbers), answer

    def _each(self, asked: Sequence[Laid], options: GenerateOptions) -> Sequence[Answer | Cm3kitError]:
        """An answer or an error for each board: one that cannot be filled does not spoil the others."""
        try:
            return self.fill(asked, options, lambda done, total: None)
        except Cm3kitError as error:
            if len(asked) == 1:
                return [error]
        return [answer for each in asked for answer in self._each([each], options)]

    def plan(self, asked: Laid, options: GenerateOptions) -> list[list[int]]:
        """How many slots each pass of each block is to write, without writing.

        Raises:
            ConfigError: lengths that are tried out have no plan of their own (`bad_value`).
        """
        if options.length == "auto":
            raise ConfigError(
                "lengths are tried out, so there is no schedule yet; give a number for the length.",
                code="bad_value",
            )
        return plan(asked.board, self.settings(modality_of(asked.gaps), options))

    def record(self, modality: Modality | None, options: GenerateOptions) -> Mapping[str, Any]:
        """How files say that they were made: the preset, and every setting that was in force."""
        kinds: tuple[Modality, ...] = (modality,) if modality else ("image", "text", "mixed")
        settings = {each: self.settings(each, options).model_dump(mode="json") for each in kinds}
        sampler = options.sampler or "diffusion"
        return {"sampler": sampler, "settings": settings[modality] if modality else settings}

    def _style(self, options: GenerateOptions) -> PromptStyle:
        """How pages are put to the model; ConfigError (`bad_value`) for a style that it has not."""
        return chosen_style(self._ground.parts.defaults, options)

    def _decoder(self, config: DiffusionConfig, options: GenerateOptions) -> tuple[Denoiser, Diffusion]:
        """A decoder for these settings; what a cache keeps, and finds when it is verified, is of one use."""
        denoiser = self._denoisers.make(config, options.verify_cache, self._style(options))
        vocab = self._ground.parts.vocab
        return denoiser, Diffusion(denoiser, self._constraint, config, eoss=vocab.eoss, image=vocab.image)

    def _constraint(self, board: Board) -> BoardConstraint:
        return BoardConstraint(board, self._ground.grammar)

    def _answer(self, ids: Ids, options: GenerateOptions, seed: int) -> Laid:
        """Words and what the model writes behind them, without a page around it; in a chat it is the answer."""
        parts = self._ground.parts
        vocab = parts.vocab
        start, stop = (ids.index(vocab.markup_id(piece)) for piece in ("<title>", "</title>"))
        words = [each for each in ids[start + 1 : stop] if isinstance(each, int)]
        if self._style(options) == "chat" and parts.defaults.chat is not None:
            words = parts.defaults.chat.ids(words, parts.text, vocab)
        gap = Gap(0, "content", options.length if isinstance(options.length, int) else None)
        slots = self._slots(options, gap)
        # Nothing but words may stand there, as in the value of an attribute.
        answer = Stretch("attribute", len(words), len(words) + slots, padded=gap.length is None)
        board = Board((*words, *[vocab.mask] * slots), (answer,), seed=seed)
        if options.max_tokens is not None and options.length != "auto":
            board = _capped(board, options.max_tokens, vocab.eoss)
        return Laid(board, (gap,))

    def _lay(
        self, ids: Ids, options: GenerateOptions, seed: int, whole: tuple[bool, bool] = (True, True)
    ) -> Laid:
        exact = options.length if isinstance(options.length, int) else None
        ids = [_of_length(each, exact) if isinstance(each, Gap) and exact else each for each in ids]
        laid = self._objective.lay(ids, partial(self._slots, options), seed, whole)
        if options.max_tokens is None or options.length == "auto":
            return laid
        return replace(laid, board=_capped(laid.board, options.max_tokens, self._ground.parts.vocab.eoss))

    def _slots(self, options: GenerateOptions, gap: Gap) -> int:
        """Slots of a gap: those of its length, of a whole picture, or the least of training that hold the text."""
        if gap.length is not None or gap.kind == "image":
            return gap.length or self._codes
        if isinstance(options.length, int):
            return options.length
        # Where lengths are tried, or one is wished for, an end must have room behind the longest.
        wanted = _most(options, gap.kind) + (options.length == "auto")
        if gap.size and options.max_tokens is None and options.length != "auto":
            wanted = gap.size + 1
        return next((size for size in LENGTHS if size >= wanted), wanted)


def plain(config: DiffusionConfig) -> DiffusionConfig:
    """The settings without a cache that only approximates."""
    return config.model_copy(update={"cache": "none"})


def _most(options: GenerateOptions, kind: str) -> int:
    """The longest text of a gap of unknown length."""
    return options.max_tokens or SLOTS[kind]


def _of_length(gap: Gap, length: int) -> Gap:
    return gap if gap.kind == "image" or gap.length is not None else replace(gap, length=length)


def _capped(board: Board, most: int, eoss: int) -> Board:
    """The board with `<eoss>` given in every slot of a padded stretch after the first `most`.

    So a gap has one of the sizes that were trained, and its answer not more ids than were allowed.
    """
    ids, stretches = list(board.ids), []
    for each in board.stretches:
        stop = min(each.stop, each.start + most) if each.padded else each.stop
        ids[stop : each.stop] = [eoss] * (each.stop - stop)
        stretches.append(replace(each, stop=stop))
    return replace(board, ids=tuple(ids), stretches=tuple(stretches))
