"""`cm3kit data`: build a corpus, prepare web pages, pack them for training, and inspect the results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, notes_to, progress

if TYPE_CHECKING:
    from cm3kit_tokenizers.text import TextTokenizer
    from cm3kit_tokenizers.vq.model import ImageTokenizer

app = typer.Typer(name="data", help="Build, prepare, pack and describe corpora.")


@app.command()
def build(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="emoji, entity-pages, summaries, task-pages, or pictures (from a checkout)."
        ),
    ],
    packages: Annotated[
        Path,
        typer.Option(
            "--packages",
            help="Folder with the unpacked packages (usr/share, and npm for pictures); for task-pages, with the"
            " corpora entity-pages and summaries.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the corpus.")],
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Processes that draw, where the corpus is drawn.")
    ] = 1,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Build a corpus from unpacked packages: named pictures, pages of entities, or summaries."""
    from cm3kit.data.builders import builder

    with progress("building", quiet) as watch:
        figures = builder(name)(packages, output, watch, workers)
    return Reply(figures, (str(output),))


Prepared = Annotated[Path, typer.Argument(help="Folder that `data prepare` made.")]
Text = Annotated[
    Path | None, typer.Option("--text", help="Folder of a text tokenizer, instead of the model's.")
]
Image = Annotated[
    Path | None, typer.Option("--image", help="Folder of an image tokenizer, instead of the model's.")
]


@app.command()
def prepare(
    src: Annotated[str, typer.Argument(metavar="SRC", help="File, folder or name of the source.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the prepared data.")],
    kind: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="KIND",
            help="auto, folder, warc, obelics, mmc4, webdataset, pairs, parquet, huggingface.",
        ),
    ] = "auto",
    preset: Annotated[str, typer.Option("--preset", help="Preset of the rules: cm3, htlm.")] = "cm3",
    config: options.Config = None,
    overrides: options.Overrides = None,
    shard: Annotated[
        str, typer.Option("--shard", metavar="i/n", help="Do only piece i, i+n, i+2n, …")
    ] = "0/1",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=0, help="Processes; by default one per processor; 0 uses this one."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="Folder of pictures that the source only names.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Split of a Hugging Face data set.")] = "train",
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", metavar="NAME=THEIRS", help="Which column is the caption, url, …; repeatable."
        ),
    ] = None,
    pages: Annotated[int, typer.Option("--pages", min=1, help="Pages or rows of one piece.")] = 500,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Turn web pages into records: minimal HTML, pictures by content, reasons for what is dropped.

    The same command resumes where it was stopped.
    """
    from cm3kit.claims import shard_of
    from cm3kit.devices import processors
    from cm3kit.web import runner
    from cm3kit.web.sources import SourceOptions

    with progress("preparing", quiet) as watch:
        found = runner.prepare(
            src, output, kind=kind, settings=runner.settings_of(preset, config or [], overrides or []),
            options=SourceOptions(pages, str(pictures or ""), split, runner.columns_of(column or [])),
            shard=shard_of(shard),
            workers=processors() if workers is None else workers, watch=watch,
            warn=notes_to(quiet),
        )  # fmt: skip
    return Reply(found, (str(output),))


@app.command()
def pack(
    folder: Prepared,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the token shards.")],
    model: options.Model = None,
    text: Text = None,
    image: Image = None,
    config: options.Config = None,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Turn records into token shards for training, by the tokenizers of a model."""
    from cm3kit.web.pack import pack_records, pack_settings

    tokenizers = _tokenizers(model, text, image)
    settings = pack_settings(config or [], overrides or [])
    with progress("packing", quiet) as watch:
        index = pack_records(folder, *tokenizers, output, settings, watch)
    return Reply(
        {name: index[name] for name in ("documents", "tokens", "duplicates", "dtype")}, (str(output),)
    )


@app.command()
def bundle(
    folder: Annotated[Path, typer.Argument(help="Folder of a corpus of pages.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle.")],
    model: options.Model = None,
    text: Text = None,
    image: Image = None,
    views: Annotated[
        int, typer.Option("--views", min=2, help="Encodings of each picture that has transparent parts.")
    ] = 10,
    cache: Annotated[
        Path, typer.Option("--cache", help="Folder that keeps parsed pages and encodings.")
    ] = Path("data/cache"),
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Turn a corpus into documents with the codes of their pictures, for training on a machine without its pages."""
    from cm3kit.data.bundle import bundle as make
    from cm3kit.devices import resolve_device

    words, codes = _tokenizers(model, text, image)
    with progress("encoding", quiet) as watch:
        figures = make(folder, words, codes.to(resolve_device(device)), output, views, cache, watch)
    return Reply(figures, (str(output),))


def _tokenizers(
    model: str | None, text: Path | None, image: Path | None
) -> tuple[TextTokenizer, ImageTokenizer]:
    from cm3kit.fill.finding import find
    from cm3kit_tokenizers.text import TextTokenizer
    from cm3kit_tokenizers.vq.model import ImageTokenizer

    text = text or find(model) / "text"
    return TextTokenizer.load(text), ImageTokenizer.load(image or find(model) / "image")


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(help="Folder of prepared data or token shards.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML page to write.")],
    model: options.Model = None,
    text: Text = None,
    image: Image = None,
    count: Annotated[
        int, typer.Option("--num-documents", "-n", min=1, help="Documents that are drawn.")
    ] = 20,
    seed: options.Seed = 0,
    force: options.Force = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Write a page that shows what a model will see, token by token, the kinds of tokens in colour."""
    from cm3kit.publish import write_atomic
    from cm3kit.viewing.sample_page import sample as draw

    words, codes = _tokenizers(model, text, image)
    page = draw(folder, words, codes.size, count, seed or 0)
    write_atomic(output, page.encode(), force)
    return Reply({"page": output}, (str(output),))


@app.command()
def inspect(
    folder: Prepared,
    key: Annotated[str | None, typer.Argument(help="A page; by default, the report on all.")] = None,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Show the report on prepared data, or the record of one page."""
    from cm3kit.web.parts import audit_of
    from cm3kit.web.report import inspect as look
    from cm3kit.web.report import report

    if key is None:
        found = audit_of(folder)
        return Reply(found, (report(folder, found).rstrip(),))
    page = look(folder, key)
    return Reply(page, tuple(_table(page)))


@app.command()
def validate(
    folder: Prepared,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Check prepared data whole: hashes, pictures, HTML, keys, counts."""
    from cm3kit.web.report import check

    with progress("validating", quiet) as watch:
        found = check(folder, watch, notes_to(quiet))
    return Reply(found, tuple(_table(found)))


@app.command()
def card(folder: Prepared, as_json: options.Json = False, verbose: options.Verbose = False) -> Reply:
    """Print a data-set card for prepared data."""
    from cm3kit.web.report import card as write

    page = write(folder)
    return Reply({"card": page}, (page.rstrip(),))


@app.command()
def stats(
    folder: Annotated[Path, typer.Argument(help="Folder of a corpus.")],
    as_json: options.Json = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Describe a corpus, prepared data or token shards: pages, pictures, sizes, splits."""
    from cm3kit.web import describe

    figures = describe.stats(folder)
    return Reply(figures, tuple(_table(figures)))


def _table(figures: Mapping[str, Any]) -> list[str]:
    width = max(map(len, figures), default=0)
    return [f"{name:{width}}  {value}" for name, value in figures.items()]
