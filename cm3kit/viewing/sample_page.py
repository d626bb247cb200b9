"""Training data as a page: documents token by token, coloured by kind of token."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from cm3kit.data.token_shards import INDEX, TokenShards, shuffled
from cm3kit.viewing.document import document
from cm3kit.web.parts import Store, part_folders, read_part
from cm3kit.web.record import ADDRESS, read_nodes
from cm3kit_tokenizers.document import Picture
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

STYLE = """
body{font:14px/1.7 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1d2230;background:#fff}
details{border-top:1px solid #ccd;padding:.6rem 0} summary{cursor:pointer;overflow-wrap:anywhere}
.ids{white-space:pre-wrap;overflow-wrap:anywhere;font-family:ui-monospace,monospace;font-size:12px;margin:.6rem 0}
i{font-style:normal;border-radius:2px;margin-right:1px} .m{background:#dbe7ff;color:#123a86} .t{background:#f1f1ec}
.t:nth-of-type(2n){background:#e4e4da} .p{background:#ffe3c2;color:#7a3b00}
img{max-height:96px;vertical-align:middle;margin:2px}
.meta{color:#667}
"""
_SHOWN_IDS = 4000


def sample(folder: Path, text: TextTokenizer, image_codes: int, count: int = 20, seed: int = 0) -> str:
    """One HTML page, without scripts, of some documents of prepared data or of shards.

    Args:
        image_codes: number of codes of the image tokenizer; prepared data are shown with their pictures.
        count: number of documents to sample.
    """
    pages = PageTokenizer(text, Vocab(text.size, image_codes))
    draw = _of_shards if (folder / INDEX).is_file() else _of_parts
    body = "\n".join(draw(folder, pages, count, seed))
    legend = '<p class="meta"><i class="m">markup</i> <i class="t">text</i> <i class="p">picture</i></p>'
    body = f"<h1>A sample of {escape(folder.name)}</h1>{legend}{body}"
    return document("A sample of the data", body, STYLE)


def _of_parts(folder: Path, pages: PageTokenizer, count: int, seed: int) -> Iterator[str]:
    store = Store(folder / "pictures")
    total = sum(1 for part in part_folders(folder) for _ in read_part(part, ["key"]))
    wanted = set(shuffled(np.arange(min(count, total)), total, seed).tolist())
    rows = (row for part in part_folders(folder) for row in read_part(part))
    for number, row in enumerate(rows):
        if number in wanted:
            kinds = {each["sha256"]: each["mime"] for each in row["pictures"]}
            spans, size = _spans(row["html"], pages, store, kinds)
            facts = (
                f"{size:,} ids without pictures",
                row["lang"] or "no language",
                row["license"] or "no licence",
            )
            yield _document(row["key"], " · ".join(facts), spans)


def _spans(html: str, pages: PageTokenizer, store: Store, kinds: dict[str, str]) -> tuple[str, int]:
    """A page as coloured spans with its stored pictures, and the number of its ids without pictures."""
    out, size = [], 0
    for node in read_nodes(html):
        if isinstance(node, Picture):
            sha256 = node.src.removeprefix(ADDRESS)
            data = base64.b64encode(store.path(sha256, kinds[sha256]).read_bytes()).decode()
            out.append(f'<i class="p"><img alt="" src="data:{kinds[sha256]};base64,{data}"></i>')
        else:
            ids = [each for each in pages.encode([node]) if isinstance(each, int)]
            size += len(ids)
            if size <= _SHOWN_IDS:
                out.append(_marked(ids, pages))
    return "".join(out) + (" …" if size > _SHOWN_IDS else ""), size


def _of_shards(folder: Path, pages: PageTokenizer, count: int, seed: int) -> Iterator[str]:
    shards = TokenShards(folder, pages.text.sha256)
    pages = PageTokenizer(pages.text, shards.vocab)
    drawn = shuffled(np.arange(min(count, len(shards))), len(shards), seed)
    for number in sorted(drawn.tolist()):
        key, piece = shards.key(number)
        ids = shards[number]
        facts = f"{len(ids):,} ids" + (f" · piece {piece}" if piece else "")
        facts += " · held out" if shards.held[number] else ""
        yield _document(key, facts, _marked(ids[:_SHOWN_IDS], pages))


def _marked(ids: Sequence[int], pages: PageTokenizer) -> str:
    """Ids as coloured spans, one each; those of a picture as one."""
    out: list[str] = []
    run = 0
    for each in [*ids, -1]:
        if each in pages.vocab.image:
            run += 1
            continue
        if run:
            out.append(f'<i class="p">[{run} codes]</i>')
            run = 0
        if each in pages.vocab.markup:
            out.append(f'<i class="m">{escape(pages.vocab.piece(each))}</i>')
        elif each in pages.vocab.text:
            piece = pages.text.pieces[each - pages.vocab.text.start].decode("utf-8", "backslashreplace")
            out.append(f'<i class="t">{escape(piece)}</i>')
        elif each >= 0:
            raise DataError(f"id {each} is outside of the id space; the data are damaged.", code="bad_data")
    return "".join(out)


def _document(key: str, facts: str, spans: str) -> str:
    head = f'<summary>{escape(key)} <span class="meta">{escape(facts)}</span></summary>'
    return f'<details open>{head}<div class="ids">{spans}</div></details>'
