"""Language detection from the text of a page, independent of what the page declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from cm3kit_tokenizers.document import Markup, Piece

# From ISO 639-3, as the detector returns, to the primary tags that pages declare; others are unchanged.
_TAGS = dict(
    pair.split(":")
    for pair in (
        "afr:af aka:ak amh:am ara:ar aze:az bel:be ben:bn bul:bg cat:ca ces:cs cmn:zh cym:cy dan:da deu:de"
        " ell:el eng:en epo:eo est:et fin:fi fra:fr guj:gu heb:he hin:hi hrv:hr hun:hu hye:hy ind:id ita:it"
        " jav:jv jpn:ja kan:kn kat:ka khm:km kor:ko lat:la lav:lv lit:lt mal:ml mar:mr mkd:mk mya:my nep:ne"
        " nld:nl nob:nb ori:or pan:pa pes:fa pol:pl por:pt ron:ro rus:ru sin:si slk:sk slv:sl sna:sn spa:es"
        " srp:sr swe:sv tam:ta tel:te tgl:tl tha:th tuk:tk tur:tr ukr:uk urd:ur uzb:uz vie:vi yid:yi zul:zu"
    ).split()
)
# Characters of a page given to the detector; more do not raise its confidence.
_CHARACTERS = 8192
# Below this confidence a text is too short or too mixed.
_SURE = 0.2


def language_of(text: str) -> str:
    """The primary tag of a text's language, such as `en`, by turbohtml's trigrams; "" if it is not certain."""
    from turbohtml.detect import LanguageDetection, detect_language

    found = detect_language(text, LanguageDetection(threshold=_SURE)).language
    return _TAGS.get(found, str(found)) if found else ""


def readable(pieces: Sequence[Piece]) -> str:
    """The visible text of a page from its start, without attributes and code."""
    return " ".join(_texts(pieces))[:_CHARACTERS]


def _texts(pieces: Sequence[Piece]) -> Iterable[str]:
    size = code = 0
    for before, piece in pairwise(("", *pieces)):
        if isinstance(piece, Markup):
            code += (piece.piece in ("<code>", "<pre>")) - (piece.piece in ("</code>", "</pre>"))
        elif isinstance(piece, str) and not code and not _opens_value(before):
            yield piece
            size += len(piece) + 1
            if size > _CHARACTERS:
                return


def _opens_value(piece: Piece) -> bool:
    return isinstance(piece, Markup) and piece.piece.startswith(" ")
