"""Pages of words alone about the nouns of WordNet, most of which say their noun twice.

A decoder that has met a few thousand names looks names up: behind `<h1>sunset</h1>` it titles a page `sailboat`, which
it knows. Where names are as many as nouns are, a title can only be read off the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cm3kit.data.wordnet import Sense, WordNet

from .pages import Page, in_page, sentence, text
from .things import Thing, chance

LONG = 120  # characters of a definition
WORDS = 3  # of a noun


def noun_pages(wordnet: WordNet, things: Iterable[Thing]) -> Iterator[Page]:
    """Two pages of each sense of a noun, in two of six forms, but for what is held out, by word or by definition."""
    held = [thing for thing in things if thing.split != "train"]
    names = {name.lower() for thing in held for name in (thing.name, thing.base)}
    told = {thing.definition for thing in held if thing.definition}
    for sense in wordnet.all():
        if not 10 <= len(sense.definition) <= LONG or len(sense.words[0].split()) > WORDS:
            continue
        if sense.definition in told or names & {word.lower() for word in sense.words}:
            continue
        forms = _forms(sense)
        first = chance(f"{sense.words[0]}: {sense.definition}") % len(forms)
        for number in (first, (first + 1 + chance(sense.definition, 1) % (len(forms) - 1)) % len(forms)):
            yield Page(forms[number], "noun", (), "train", 0.1)


def _forms(sense: Sense) -> list[str]:
    noun, also = text(sense.words[0]), text(", ".join(sense.words[1:4]))
    kind = f" A kind of {text(sense.kind_of)}." if sense.kind_of else ""
    about = sentence(sense.definition)
    meta = f'<meta name="description" content="{also or about}">\n'
    more = f"<p>Also {also}.</p>\n" if also else ""
    return [
        in_page(sense.words[0], "", f"<h1>{noun}</h1>\n<p>{about}{kind}</p>\n"),
        in_page(sense.words[0], meta, f"<h1>{noun}</h1>\n{more}<p>{about}</p>\n"),
        f"<!DOCTYPE html>\n<title>{noun}</title>\n<h1>{noun}</h1>\n<p>{about}</p>\n{more}",
        f"<h2>{noun}</h2>\n<p>{about}{kind}</p>\n<p>See also <b>{noun}</b>.</p>\n",
        f'<p><a href="#" title="{noun}">{noun}</a>: {about}</p>\n',
        f"<dl>\n<dt>{noun}</dt>\n<dd>{about}{kind}</dd>\n</dl>\n{more}",
    ]
