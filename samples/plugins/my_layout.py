"""A layout: the page is shown twice before the answers, so that a causal model has read all of it. Models name it."""

from dataclasses import replace

from cm3kit.fill.layouts import Behind, Ids, Limits, layout
from cm3kit.types import Canvas
from cm3kit_tokenizers.document import Gap


@layout("read-twice")
class ReadTwice(Behind):
    """`Behind`, with the known ids repeated."""

    def cost(self, gap: Gap, limits: Limits) -> int:
        """A gap stands on both copies."""
        return super().cost(gap, limits) + 1

    def lay_out(
        self, ids: Ids, limits: Limits, *, reaches: tuple[bool, bool], guided: bool, seed: int
    ) -> Canvas:
        """See `Layout`."""
        once = super().lay_out(ids, limits, reaches=reaches, guided=False, seed=seed)
        spans = [replace(span, at=2 * len(once.ids)) for span in once.spans]
        return replace(once, ids=once.ids * 2, spans=tuple(spans))
