"""What `generate` makes, and how: canvases of one task after the other until nothing is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image as Pillow

from cm3kit.fill.fillers import Filler, Ids, Progress, Trace
from cm3kit.fill.layouts import put_in
from cm3kit.fill.options import GenerateOptions
from cm3kit.types import Canvas
from cm3kit.types import Result as DecoderResult
from cm3kit_tokenizers.document import Gap


@dataclass(frozen=True, slots=True)
class Result:
    """One sample: a picture, words, a picture with its words, or a page. `seed` and `index` make it again.

    `trace` tells how it was written, where that was done in place; `codes` are those of the picture.
    """

    kind: Literal["image", "text", "pair", "page"]
    image: Pillow.Image | None
    text: str | None
    html: str | None
    seed: int
    index: int
    logprob: float
    ended: bool
    trace: Trace | None = None
    codes: tuple[int, ...] = ()


class Generation(Protocol):
    """A `batching.Filling` of one sample."""

    def next_canvas(self) -> Canvas | None:
        """What is to be filled next; None once all is."""

    def take(self, result: DecoderResult) -> None:
        """Take the result of the last canvas."""

    def result(self) -> Result:
        """The sample, once there is no next canvas."""


class TaskFilling:
    """The page of a task, whose gaps one canvas holds, or one canvas each.

    Args:
        lay_out: the canvas of what is missing, by the page so far and the number of canvases before.
        read: the sample of all results.
    """

    def __init__(
        self,
        ids: Ids,
        lay_out: Callable[[Ids, int], Canvas],
        read: Callable[[Sequence[DecoderResult]], Result],
    ) -> None:
        self._ids, self._lay_out, self._read = list(ids), lay_out, read
        self._results: list[DecoderResult] = []

    def next_canvas(self) -> Canvas | None:
        """See `Generation`."""
        if self._results and not any(isinstance(each, Gap) for each in self._ids):
            return None
        return self._lay_out(self._ids, len(self._results))

    def take(self, result: DecoderResult) -> None:
        """See `Generation`."""
        self._results.append(result)
        spans = zip(result.canvas.spans, result.fills, strict=True)
        self._ids = put_in(self._ids, {(span.gap, span.part): fill.ids for span, fill in spans})

    def result(self) -> Result:
        """See `Generation`."""
        return self._read(self._results)


def fill_together(
    filler: Filler, tasks: Sequence[Generation], options: GenerateOptions, progress: Progress
) -> None:
    """Fill tasks to their ends, in each round together what can be."""
    while True:
        groups: dict[Hashable, list[tuple[Generation, Canvas]]] = defaultdict(list)
        for each in tasks:
            if (canvas := each.next_canvas()) is not None:
                groups[filler.batch_key(canvas, options)].append((each, canvas))
        if not groups:
            return
        for group in groups.values():
            results = filler.fill([canvas for _, canvas in group], options, progress)
            for (task, _), result in zip(group, results, strict=True):
                task.take(result)
