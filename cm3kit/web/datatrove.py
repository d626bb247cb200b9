"""Prepare pages with datatrove's executors (local, Slurm, Ray): thin pipeline steps over the same functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cm3kit.extras import need
from cm3kit.web.reasons import Refused
from cm3kit.web.record import About, Dropped, html_to_record
from cm3kit.web.runner import begin, finish, run_piece
from cm3kit.web.settings import WebSettings
from cm3kit.web.sources import SourceOptions

need("datatrove", "datatrove", "Preparing pages with datatrove")
from datatrove.data import Document, Media, MediaType  # noqa: E402
from datatrove.pipeline.base import PipelineStep  # noqa: E402

if TYPE_CHECKING:
    from cm3kit.web.record import Find


class PrepareParts(PipelineStep):  # type: ignore[misc]
    """The only step of a pipeline: task r of n prepares the pieces r, r + n, … as `cm3kit data prepare` does.

    The folder is equal byte for byte, so a run started with one can be finished with the other. Keep the number of
    tasks while a run is resumed with datatrove's own markers.
    """

    name = "Prepare pages"
    type = "Reader"

    def __init__(
        self, place: str, output: str, kind: str = "auto", settings: WebSettings | None = None,
        options: SourceOptions | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.place, self.output, self.kind, self.settings, self.options = (
            place,
            output,
            kind,
            settings,
            options,
        )

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write this task's parts; yields nothing."""
        job, pieces = begin(self.place, Path(self.output), self.kind, self.settings, self.options)
        for number in range(rank, len(pieces), world_size):
            if not job.part(number).is_dir():
                counts = run_piece(job, number, pieces[number], {}) or {}
                for reason, count in counts.get("pages", {}).items():
                    self.stat_update(f"pages_{reason}", value=count)
        finish(job, len(pieces))
        yield from ()


class ToRecords(PipelineStep):  # type: ignore[misc]
    """Step between any reader and writer: converts pages in documents to minimal HTML with pictures as media.

    Pictures are the document's media that hold bytes, found by their URL. Drops are counted in the stats.
    """

    name = "Pages to minimal HTML"
    type = "Extractor"

    def __init__(self, settings: WebSettings | None = None) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Iterable[Any], rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Records as documents; their other fields are in `metadata`."""
        for document in data:
            url = str(document.metadata.get("url") or "")
            page = document.text.encode("utf-8", "replace")
            found = html_to_record(
                page, _finder(document.media), self.settings, key=document.id, about=About(url, "datatrove")
            )
            if isinstance(found, Dropped):
                self.stat_update(f"dropped_{found.reason}")
                continue
            pictures = [
                Media(
                    each.sha256,
                    MediaType.IMAGE,
                    each.src,
                    media_bytes=each.data,
                    metadata={"mime": each.mime},
                )
                for each in found.pictures
            ]
            more = {name: getattr(found, name) for name in ("lang", "license", "robots", "tdm", "chars")}
            self.stat_update("kept")
            yield Document(found.html, document.id, pictures, {**document.metadata, **more})


def _finder(media: Iterable[Any]) -> Find:
    held = {each.url: each.media_bytes for each in media if each.media_bytes is not None}

    def find(address: str) -> bytes:
        if address not in held:
            raise Refused("remote" if "//" in address else "no_file")
        return bytes(held[address])

    return find
