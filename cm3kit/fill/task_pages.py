"""Pages with gaps that the tasks of `generate` stand for."""

from __future__ import annotations

from collections.abc import Sequence

from cm3kit_tokenizers.document import Gap, Image, Markup, Node, Text


def image_nodes(text: str) -> list[Node]:
    """A picture whose words are given."""
    return [
        Markup("<img"), Markup(' alt="'), Text(text), Markup('"'),
        Markup(' src="'), Gap(0, "image"), Markup('"'), Markup(">"),
    ]  # fmt: skip


def title_nodes(text: str) -> list[Node]:
    """The start of a page about something."""
    return [Markup("<title>"), Text(text), Markup("</title>")]


def pair_nodes(text: str) -> list[Node]:
    """A picture and its words, both missing; of some kind of things where there is `text`."""
    pair: list[Node] = [
        Markup("<img"), Markup(' alt="'), Gap(0, "attribute"), Markup('"'),
        Markup(' src="'), Gap(1, "image"), Markup('"'), Markup(">"),
    ]  # fmt: skip
    if not text:
        return pair
    head: list[Node] = [*title_nodes(text), Markup("<h2>"), Text(text), Markup("</h2>")]
    return [*head, Markup("<figure>"), *pair, Markup("</figure>")]


def caption_nodes(codes: Sequence[int]) -> list[Node]:
    """A picture whose alt text is missing: CM3's masked caption prompt (arXiv:2201.07520, sec. 4.2.3)."""
    return [
        Markup("<img"), Markup(' alt="'), Gap(0, "attribute"), Markup('"'),
        Markup(' src="'), Image(tuple(codes)), Markup('"'), Markup(">"),
    ]  # fmt: skip


def paragraph_nodes(text: str) -> list[Node]:
    """A page about something whose paragraph is missing."""
    heading: list[Node] = [*title_nodes(text), Markup("<h1>"), Text(text), Markup("</h1>")]
    return [*heading, Markup("<p>"), Gap(0, "content"), Markup("</p>")]
