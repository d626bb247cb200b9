"""A page of words and pictures that a model writes on from a prompt, one behind the other, as it likes.

A picture begins where the model writes its mark among words, as long as the window has room for all of it; then words
go on. It is the loop of Chameleon's own generator (chameleon/inference/chameleon.py): only pictures are guided.
"""

from __future__ import annotations

from cm3kit.fill.batching import Order
from cm3kit.fill.continuing import guided
from cm3kit.fill.fillers import Ids, LoadedModel
from cm3kit.fill.options import ANSWER_TOKENS, chosen_style
from cm3kit.fill.tasks import Result
from cm3kit.rng import stream
from cm3kit.types import Canvas, MaskSpan
from cm3kit.types import Result as DecoderResult
from cm3kit_tokenizers.document import Image, Markup, Piece, Text
from cm3kit_tokenizers.errors import ConfigError


class Interleaving:
    """Implements `tasks.Generation`.

    Args:
        ids: the page that the prompt stands for, its words in the title.

    Raises:
        ConfigError: the prompt style is one in which pictures do not stand among words (`bad_value`).
    """

    def __init__(self, kit: LoadedModel, order: Order, ids: Ids) -> None:
        parts = kit.parts
        marks, chat, vocab = parts.defaults.pictures, parts.defaults.chat, parts.vocab
        assert marks is not None
        style = chosen_style(parts.defaults, order.options)
        if style == "page":
            raise ConfigError(
                "task document: pictures stand among words here, not in HTML source; use --prompt-style plain or chat.",
                code="bad_value",
            )
        self._kit, self._order, self._marks = kit, order, marks
        self._words = [each for each in ids if isinstance(each, int) and each in vocab.text]
        chatted = style == "chat" and chat is not None
        prompt = chat.ids(self._words, parts.text, vocab) if chatted and chat is not None else self._words
        head = [] if prompt[: len(marks.start)] == [*marks.start] else [*marks.start]
        self._row = [*head, *prompt]
        self._left = order.options.max_tokens or ANSWER_TOKENS["document"].causal
        self._drawing = self._done = self._ended = False
        self._pieces: list[list[int]] = []
        self._logprob, self._rounds = 0.0, 0

    def next_canvas(self) -> Canvas | None:
        """See `Generation`.

        Raises:
            ConfigError: the prompt fills the window (`too_long`).
        """
        window, marks = self._kit.parts.defaults.window, self._marks
        codes = self._kit.image.grid[0] * self._kit.image.grid[1]
        room = window - len(self._row) - 1
        if room < 1 and not self._rounds:
            raise ConfigError(
                f"the prompt takes {len(self._row)} ids, and the model's window is {window}; shorten it.",
                code="too_long",
            )
        if self._done or room < 1 or self._left < 1:
            return None
        at, eoss = len(self._row), self._kit.vocab.eoss
        seed = stream(self._order.seed, self._order.index, *((self._rounds,) if self._rounds else ()))
        if self._drawing:
            span = MaskSpan("image", at, codes, True, end=eoss)
            return guided(Canvas(tuple(self._row), (span,), seed=seed), self._kit.context, marks)
        # Words before which a picture would still fit; behind them there may be none.
        before_picture = room - codes - len((marks.begin, marks.end))
        ends = (marks.begin,) if before_picture >= 1 else ()
        most = min(self._left, before_picture if ends else room)
        span = MaskSpan("attribute", at, most, end=eoss, ends=ends, may_be_empty=True)
        return Canvas(tuple(self._row), (span,), seed=seed)

    def take(self, result: DecoderResult) -> None:
        """See `Generation`."""
        (fill,) = result.fills
        self._rounds, self._logprob = self._rounds + 1, self._logprob + fill.logprob
        self._row += fill.ids
        if fill.ids:
            self._pieces.append(list(fill.ids))
        if self._drawing:
            self._row.append(self._marks.end)
            self._drawing = False
            return
        self._left -= len(fill.ids)
        if fill.end == self._marks.begin:
            self._row.append(self._marks.begin)
            self._drawing = True
        elif fill.ended:
            self._done = self._ended = True

    def result(self) -> Result:
        """See `Generation`."""
        kit, order = self._kit, self._order
        page = kit.page([each for each in kit.tokenizer.encode(self._nodes()) if isinstance(each, int)])
        return Result("page", None, None, page, order.seed, order.index, self._logprob, self._ended)

    def _nodes(self) -> list[Piece]:
        """The page: the prompt as its title, a paragraph for each line of words, a figure for each picture."""
        kit, text = self._kit, list[int]()
        nodes: list[Piece] = [Markup("<title>"), Text(self._said(self._words)), Markup("</title>")]
        for piece in (*self._pieces, []):
            if piece and piece[0] in kit.vocab.text:
                text += piece
                continue
            for line in filter(str.strip, self._said(text).splitlines()):
                nodes += [Markup("<p>"), Text(line.strip()), Markup("</p>")]
            text = []
            if piece:
                codes = Image(tuple(kit.codes(piece)))
                nodes += [Markup("<figure>"), Markup("<img"), Markup(' src="'), codes]
                nodes += [Markup('"'), Markup(">"), Markup("</figure>")]
        return nodes

    def _said(self, ids: list[int]) -> str:
        return self._kit.text.decode([id - self._kit.vocab.text.start for id in ids])
