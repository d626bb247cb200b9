"""The page templates (forms) of a dictionary entry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from html import escape
from typing import Protocol


class Word(Protocol):
    """Fields of a dictionary entry that forms use."""

    @property
    def slug(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def base(self) -> str: ...  # noqa: D102
    @property
    def group(self) -> str: ...  # noqa: D102
    @property
    def keywords(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def definition(self) -> str: ...  # noqa: D102
    @property
    def kind_of(self) -> str: ...  # noqa: D102
    @property
    def related(self) -> tuple[str, ...]: ...  # noqa: D102


Form = Callable[[Word, Mapping[str, Word]], str]


def _img(word: Word, title: str = "") -> str:
    shown = f' title="{escape(title)}"' if title else ""
    return f'<img alt="{escape(word.name)}" src="pictures/{word.slug}.png"{shown}>'


def _link(word: Word) -> str:
    return f'<a href="{word.slug}.html" title="{escape(word.name)}">{escape(word.name)}</a>'


def _definition(word: Word, words: Mapping[str, Word]) -> str:
    if not word.definition:
        return ""
    kind = f" A kind of {_kind(word.kind_of, words)}." if word.kind_of else ""
    return f"<p>{escape(_sentence(word.definition))}.{kind}</p>"


def _kind(name: str, words: Mapping[str, Word]) -> str:
    slug = name.replace(" ", "-")
    if slug not in words:  # most kinds are too general to have a picture, hence a page
        return escape(name)
    return f'<a href="{escape(slug)}.html" title="{escape(name)}">{escape(name)}</a>'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(word: Word) -> str:
    return escape(", ".join(word.keywords[:6]) or word.group)


def _page(title: str, head: str, body: str) -> str:
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"{head}</head>\n<body>\n{body}</body>\n</html>\n"
    )


def entry(word: Word, words: Mapping[str, Word]) -> str:
    """A dictionary page: title, description, heading, picture, definition, related entries."""
    related = ", ".join(_link(words[slug]) for slug in word.related[:2])
    see = f"<p>See also {related}.</p>\n" if related else ""
    body = f"<h1>{escape(word.name)}</h1>\n<p>{_img(word)}</p>\n{_definition(word, words)}\n{see}"
    return _page(word.name, f'<meta name="description" content="{_words(word)}">\n', body)


def plate(word: Word, words: Mapping[str, Word]) -> str:
    """A bare picture with its name before it."""
    return f"{_img(word)}\n"


def caption(word: Word, words: Mapping[str, Word]) -> str:
    """A bare picture with its name after it."""
    return f'<img src="pictures/{word.slug}.png" title="{escape(word.name)}">\n'


def figure(word: Word, words: Mapping[str, Word]) -> str:
    """A figure with a caption below."""
    text = f"<figcaption>{escape(word.name)}</figcaption>"
    return _page(
        word.group, "", f"<h2>{escape(word.group)}</h2>\n<figure>\n{_img(word)}\n{text}\n</figure>\n"
    )


def article(word: Word, words: Mapping[str, Word]) -> str:
    """A heading, the definition, then the picture."""
    return _page(
        word.name, "", f"<h1>{escape(word.name)}</h1>\n{_definition(word, words)}\n<p>{_img(word)}</p>\n"
    )


def table(word: Word, words: Mapping[str, Word]) -> str:
    """A row of a table: picture, name, keywords."""
    cells = f"<td>{_img(word)}</td><td>{escape(word.name)}</td><td>{_words(word)}</td>"
    return _page(word.group, "", f"<table>\n<tr>{cells}</tr>\n</table>\n")


def shelf(word: Word, words: Mapping[str, Word]) -> str:
    """Two pictures of one kind in a list."""
    other = words[word.related[0]] if word.related else word
    first, second = (word, other) if hashlib.sha256(word.slug.encode()).digest()[2] % 2 else (other, word)
    items = "\n".join(f"<li>{_img(each)} {escape(each.name)}</li>" for each in (first, second))
    return _page(word.group, "", f"<ul>\n{items}\n</ul>\n")


FORMS: dict[str, Form] = {
    "entry": entry, "plate": plate, "caption": caption, "figure": figure,
    "article": article, "table": table, "shelf": shelf,
}  # fmt: skip
# Sampling weight of each form; the bare picture is the shortest context from text to codes.
SHARES = {
    "entry": 0.12,
    "plate": 0.6,
    "caption": 0.07,
    "figure": 0.05,
    "article": 0.08,
    "table": 0.03,
    "shelf": 0.05,
}  # fmt: skip


def pages(word: Word, words: Mapping[str, Word]) -> dict[str, str]:
    """Every form of an entry, by the form's name."""
    return {name: form(word, words) for name, form in FORMS.items()}
