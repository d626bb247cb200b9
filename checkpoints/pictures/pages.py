"""The forms of the pages: HTML around drawings of things, each form with how often it comes."""

from __future__ import annotations

import hashlib
import html
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .things import ARTISTS, OPENMOJI, Drawing, Thing, chance


@dataclass(frozen=True, slots=True)
class Page:
    """A page, the name of its form, the slugs of what it shows, its split, and how often it comes."""

    content: str
    form: str
    slugs: tuple[str, ...]
    split: str
    weight: float


class Form(NamedTuple):
    """The name of a form, a page of it, how often it comes among the pages of one drawing, and what else it shows."""

    name: str
    page: str
    share: float
    also: tuple[str, ...] = ()


class Pages:
    """The pages of the corpus: most name a thing once, so that a name has to be read off its picture."""

    def __init__(self, things: dict[str, Thing], drawings: list[Drawing]) -> None:
        self.things, self.drawings = things, drawings
        self.titles = {artist.key: artist.title for artist in (*ARTISTS, OPENMOJI)} | {"clipart": "Clip Art"}
        self.same: dict[tuple[str, str], list[Drawing]] = defaultdict(list)
        self.kin: dict[tuple[str, str], list[Drawing]] = defaultdict(list)
        for each in drawings:
            if each.artist != "scene":
                self.same[each.slug, each.split].append(each)
                self.kin[self.things[each.slug].group, each.artist].append(each)

    def all(self) -> Iterator[Page]:
        """Every page."""
        for drawing in self.drawings:
            found = self.of_scene(drawing) if drawing.artist == "scene" else self.of_thing(drawing)
            for form in found:
                slugs = (drawing.slug, *form.also)
                yield Page(form.page, form.name, slugs, drawing.split, form.share * drawing.weight)
        for thing in self.things.values():
            yield from self.of_words(thing)

    def of_words(self, thing: Thing) -> Iterator[Page]:
        """Pages of a thing that is trained on without a picture: its name twice, once as the title."""
        name, about = text(thing.name), _definition(thing)
        if thing.split != "train" or not about:
            return
        words = text(", ".join(thing.keywords[:6]) or thing.group)
        for head in ("", f'<meta name="description" content="{words}">\n'):
            content = in_page(thing.name, head, f"<h1>{name}</h1>\n{about}\n")
            yield Page(content, "words", (thing.slug,), "train", 0.2 * thing.weight)

    def of_scene(self, drawing: Drawing) -> Iterator[Form]:
        """A picture behind, before and in its caption, each once."""
        words, img = text(drawing.caption), f'<img src="{drawing.file}">'
        yield Form("alt", f'<img alt="{words}" src="{drawing.file}">\n', 0.06)
        yield Form("before", f"<p>{words}</p>\n<p>{img}</p>\n", 0.025)
        yield Form("behind", f"<p>{img}</p>\n<p>{words}</p>\n", 0.045)

    def of_thing(self, drawing: Drawing) -> Iterator[Form]:
        """The forms of one drawing, with how often each is drawn."""
        thing, src = self.things[drawing.slug], drawing.file
        name, img, artist = text(thing.name), f'<img src="{src}">', self.titles[drawing.artist]
        yield Form("alt", f'<img alt="{name}" src="{src}">\n', 0.28)
        if drawing.artist == OPENMOJI.key:  # for evaluation only, which asks for no more
            return
        yield Form("before", f"<p>{name}</p>\n<p>{img}</p>\n", 0.1)
        yield Form("behind", f"<p>{img}</p>\n<p>{name}</p>\n", 0.16)
        yield Form("title", f'<img src="{src}" title="{name}">\n', 0.05)
        yield Form("alt by", f'<img alt="{name}, {artist}" src="{src}">\n', 0.16)
        if drawing.slug.encode()[-1] % 2:
            yield Form("by", f"<p>{name} by {artist}</p>\n<p>{img}</p>\n", 0.05)
        else:
            yield Form("by", f"<p>{img}</p>\n<p>{name} by {artist}</p>\n", 0.05)
        yield from self._other_words(thing, drawing, src)
        yield from self._long(thing, drawing, src)

    def _other_words(self, thing: Thing, drawing: Drawing, src: str) -> Iterator[Form]:
        """Captions by synonyms and tags: some of those that are allowed, by artist."""
        allowed = [word for word in thing.synonyms if chance(f"{thing.name}~{word}") >= 64]
        allowed.sort(
            key=lambda word: hashlib.sha256(f"{drawing.artist}/{thing.name}~{word}".encode()).digest()
        )
        for word in allowed[:3]:
            yield Form("synonym", f'<img alt="{text(word)}" src="{src}">\n', 0.04)
        if len(allowed) > 1:
            yield Form("synonym", f'<p>{text(", ".join(allowed[:4]))}</p>\n<p><img src="{src}"></p>\n', 0.05)

    def _long(self, thing: Thing, drawing: Drawing, src: str) -> Iterator[Form]:
        """Pages with more on them: definition, keywords, other drawings, links."""
        name, words = text(thing.name), text(", ".join(thing.keywords[:6]) or thing.group)
        about = _definition(thing)
        caption = f'<figure>\n<img src="{src}">\n<figcaption>{name}</figcaption>\n</figure>\n'
        figure = f"<h2>{text(thing.group)}</h2>\n{caption}"
        yield Form("group", in_page(thing.group, "", figure), 0.03)
        yield Form(
            "group",
            in_page(
                thing.group,
                "",
                f'<table>\n<tr><td><img alt="{name}" src="{src}"></td><td>{words}</td></tr>\n</table>\n',
            ),
            0.02,
        )
        if about:
            meta = f'<meta name="description" content="{words}">\n'
            yield Form("definition", in_page(thing.name, meta, f'<p><img src="{src}"></p>\n{about}\n'), 0.06)
            yield Form("definition", f'<h1>{name}</h1>\n{about}\n<p><img src="{src}"></p>\n', 0.05)
            yield Form("definition", f'<p><img src="{src}"></p>\n{about}\n', 0.06)
            entry = f'<h1>{name}</h1>\n{about}\n<p><img src="{src}"></p>\n'
            yield Form("entry", in_page(thing.name, "", entry), 0.04)
        others = [each for each in self.same[drawing.slug, drawing.split] if each is not drawing]
        if others:
            other = others[chance(drawing.file, 1) % len(others)]
            pair = (drawing, other) if chance(drawing.file, 2) % 2 else (other, drawing)
            items = "\n".join(
                f'<li><img src="{each.file}"> {name}, {self.titles[each.artist]}</li>' for each in pair
            )
            yield Form("hands", f"<ul>\n{items}\n</ul>\n", 0.03)
        if (other := self._kin(drawing)) is not None:
            links = "\n".join(
                f'<li><a href="{text(each.slug)}.html" title="{text(self.things[each.slug].name)}">'
                f'<img src="{each.file}"></a></li>'
                for each in (drawing, other)
            )
            yield Form("links", f"<ul>\n{links}\n</ul>\n", 0.04, (other.slug,))

    def _kin(self, drawing: Drawing) -> Drawing | None:
        """Another thing of the same group by the same artist."""
        kin = [
            each
            for each in self.kin[self.things[drawing.slug].group, drawing.artist]
            if each.split == drawing.split and each.slug != drawing.slug
        ]
        return kin[(chance(drawing.file, 3) * 256 + chance(drawing.file, 4)) % len(kin)] if kin else None


def text(words: str) -> str:
    """Words as they stand on a page."""
    return html.escape(words)


def _definition(thing: Thing) -> str:
    if not thing.definition:
        return ""
    kind = f" A kind of {text(thing.kind_of)}." if thing.kind_of and thing.group != "clip art" else ""
    return f"<p>{sentence(thing.definition)}{kind}</p>"


def sentence(definition: str) -> str:
    """A definition with a capital and a full stop, as it stands on a page."""
    return f"{text((definition[:1].upper() + definition[1:]).rstrip('.'))}."


def in_page(title: str, head: str, body: str) -> str:
    """A whole page."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{text(title)}</title>\n'
        f"{head}</head>\n<body>\n{body}</body>\n</html>\n"
    )
