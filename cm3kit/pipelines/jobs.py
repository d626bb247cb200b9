"""The jobs behind `generate` and `infill`: name the outputs, run the model, write everything or nothing."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

import cm3kit
from cm3kit.pipelines import diff, outputs
from cm3kit.pipelines.pages import companions
from cm3kit.pipelines.prompts import Prompt
from cm3kit.publish import write_atomic
from cm3kit_tokenizers.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from cm3kit.pipelines.kit import Filled, GenerateOptions, Kit, Result
    from cm3kit_tokenizers.page import Page

Task = Literal["image", "text", "caption", "document"]
Watch = Callable[[int, int], None]

SUFFIXES: Mapping[str, str] = {"image": ".png", "text": ".txt", "caption": ".txt", "document": ".html"}
MAX_RESULTS = 100_000


@dataclass(frozen=True, slots=True)
class Where:
    """What to write and where; `output` as in `outputs.plan`."""

    output: str | None = None
    force: bool = False
    sheet: bool = True
    prompt_metadata: bool = True


@dataclass(frozen=True, slots=True)
class GenerateJob:
    """`n` results for each prompt; result i of a prompt uses the random stream (seed, i)."""

    prompts: tuple[Prompt, ...]
    task: Task
    n: int
    seed: int
    options: GenerateOptions
    where: Where = field(default_factory=Where)


@dataclass(frozen=True, slots=True)
class InfillJob:
    """A page with gaps, filled `variants` times."""

    page: Page
    name: str
    variants: int
    seed: int
    options: GenerateOptions
    report: bool = False
    where: Where = field(default_factory=Where)


@dataclass(frozen=True, slots=True)
class Saved:
    """What a job made. `content` is the result itself where it was not written to files."""

    run_id: str
    samples: tuple[Mapping[str, Any], ...]
    paths: tuple[Path, ...] = ()
    sheet: Path | None = None
    report: Path | None = None
    folder: Path | None = None
    content: bytes | None = None
    diff: str = ""


def generate(
    model: str | None, device: str, job: GenerateJob, watch: Watch = lambda done, total: None
) -> Saved:
    """Run a generation job; outputs are checked before the model is loaded.

    Raises:
        OutputError: an output exists or cannot be written. ModelError, ConfigError: see `cm3kit.load`
            and `Kit.generate`.
    """
    count = len(job.prompts) * job.n
    if not 1 <= count <= MAX_RESULTS:
        raise ConfigError(
            f"{count} results were asked for; 1 to {MAX_RESULTS} are possible", code="bad_value"
        )
    rows = [(prompt, job.seed if prompt.seed is None else prompt.seed) for prompt in job.prompts]
    seeds = [seed for _, seed in rows for _ in range(job.n)]
    # Words are what a pipe wants to read; pictures and pages are files.
    output = outputs.STDOUT if job.where.output is None and SUFFIXES[job.task] == ".txt" else job.where.output
    sheet = job.where.sheet and job.task == "image" and count > 1
    planned = outputs.plan(outputs.run_id("generate"), output, SUFFIXES[job.task], seeds, sheet=sheet)
    outputs.check_free(planned, job.where.force)
    kit = cm3kit.load(model, device=device)
    how = _how(kit, job.options, job.task)
    made = [
        (result, {**how, **_whose(rows[row][0], job.where), "seed": result.seed, "index": result.index})
        for row, result in _results(kit, job, rows, watch)
    ]
    files = [_encode(result, record if job.where.prompt_metadata else None) for result, record in made]
    samples = [{**record, **_outcome(result)} for result, record in made]
    extra = []
    if planned.sheet is not None:
        extra = [(planned.sheet, _sheet([result for result, _ in made], samples, how, job.where))]
    record = {"run_id": planned.run_id, **how, "prompts": len(rows), "n": job.n, "seed": job.seed}
    return _save(planned, files, samples, record, extra, job.where.force)


def _results(
    kit: Kit, job: GenerateJob, rows: Sequence[tuple[Prompt, int]], watch: Watch
) -> Iterator[tuple[int, Result]]:
    """Each result with the number of its prompt; `watch` hears of the share of the whole job."""
    for row, (prompt, seed) in enumerate(rows):

        def share(done: int, total: int, row: int = row) -> None:
            watch(row * total + done, len(rows) * total)

        options = job.options
        for result in kit.generate(
            prompt.content, task=job.task, n=job.n, seed=seed, options=options, watch=share
        ):
            yield row, result


def infill(model: str | None, device: str, job: InfillJob, watch: Watch = lambda done, total: None) -> Saved:
    """Run an infill job; outputs are checked before the model is loaded.

    Raises:
        OutputError: an output exists or cannot be written. PageError, ModelError, ConfigError: see
            `cm3kit.load` and `Kit.infill`.
    """
    planned = outputs.plan(
        outputs.run_id("infill"), job.where.output, ".html", [job.seed] * job.variants, report=job.report
    )
    outputs.check_free(planned, job.where.force)
    kit = cm3kit.load(model, device=device)
    filled = kit.infill(job.page, variants=job.variants, seed=job.seed, options=job.options, watch=watch)
    pages = [each.html for each in filled]
    how = _how(kit, job.options, "infill")
    samples = [_variant(each) for each in filled]
    record = {"run_id": planned.run_id, **how, "page": job.name, "variants": job.variants, "seed": job.seed}
    before = job.page.data
    extra = []
    if planned.report is not None:
        extra = [(planned.report, diff.side_by_side(before, pages, job.name).encode())]
    if planned.folder is not None:
        extra += [
            (path, content)
            for path, content in companions(job.page, planned.folder)
            if job.where.force or not path.exists()
        ]
    text = "".join(diff.unified(before, page, job.name) for page in pages) if job.report else ""
    return _save(planned, pages, samples, record, extra, job.where.force, text)


def write_all(files: Sequence[tuple[Path, bytes]], force: bool) -> None:
    """Write files, each whole; if one fails, those that are new go again, and so do new folders.

    Raises:
        OutputError: see `publish.write_atomic`.
    """
    new_files = [path for path, _ in files if not path.exists()]
    new_folders = _missing_folders(path for path, _ in files)
    try:
        for path, content in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content, force)
    except BaseException as error:
        for path in new_files:
            path.unlink(missing_ok=True)
        for folder in reversed(new_folders):
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(
                f"{error.filename or 'the output'} cannot be written: {error.strerror}; change -o",
                code="cannot_write",
            ) from error
        raise


def _missing_folders(paths: Iterable[Path]) -> list[Path]:
    """Folders that do not exist yet, outer ones first."""
    missing = {parent for path in paths for parent in path.parents if not parent.exists()}
    return sorted(missing, key=lambda folder: len(folder.parts))


def _save(
    planned: outputs.Plan,
    files: Sequence[bytes],
    samples: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    extra: Sequence[tuple[Path, bytes]],
    force: bool,
    text: str = "",
) -> Saved:
    if planned.to_stdout:
        return Saved(planned.run_id, tuple(samples), content=b"".join(files), diff=text)
    listed = [{**sample, "path": str(path)} for sample, path in zip(samples, planned.paths, strict=True)]
    written = [*zip(planned.paths, files, strict=True), *extra]
    if planned.folder is not None:
        manifest = [{**row, "path": Path(str(row["path"])).name} for row in listed]
        written.append((planned.folder / "manifest.jsonl", outputs.dump_jsonl(manifest).encode()))
        written.append((planned.folder / "run.json", f"{outputs.dump_json(record, indent=2)}\n".encode()))
    write_all(written, force)
    return Saved(
        planned.run_id, tuple(listed), planned.paths, planned.sheet, planned.report, planned.folder, diff=text
    )


def _encode(result: Result, how: Mapping[str, Any] | None) -> bytes:
    if result.image is not None:
        return outputs.encode_png(result.image, how)
    if result.html is not None:
        return outputs.mark_html(result.html, how).encode()
    return f"{result.text}\n".encode()


def _sheet(
    results: Sequence[Result], samples: Sequence[Mapping[str, Any]], how: Mapping[str, Any], where: Where
) -> bytes:
    keys = ("prompt", "seed", "index", "logprob")
    tiles = [{key: sample.get(key) for key in keys} for sample in samples]
    captions = [f"{place} · s{sample['seed']}" for place, sample in enumerate(samples)]
    sheet = outputs.grid([result.image for result in results if result.image is not None], captions=captions)
    return outputs.encode_png(sheet, {**how, "tiles": tiles} if where.prompt_metadata else None)


def _outcome(result: Result) -> dict[str, Any]:
    words = {} if result.text is None else {"text": result.text}
    return {**words, "logprob": result.logprob, "ended": result.ended}


def _variant(filled: Filled) -> Mapping[str, Any]:
    return {"seed": filled.seed, "index": filled.index, "gaps": [asdict(gap) for gap in filled.gaps]}


def _whose(prompt: Prompt, where: Where) -> dict[str, Any]:
    """The prompt as a record shows it: words, the path of a picture, or that it was bytes."""
    if not where.prompt_metadata:
        return {}
    shown = "(picture)" if isinstance(prompt.content, bytes) else str(prompt.content)
    return {"prompt": shown} | ({} if prompt.id is None else {"id": prompt.id})


def _how(kit: Kit, options: GenerateOptions, task: str) -> dict[str, Any]:
    """What has to be known to make the same result again."""
    info = kit.info()
    kept: dict[str, Any] = {key: info[key] for key in ("sha256", "device", "dtype") if key in info}
    settings = {key: value for key, value in asdict(options).items() if value is not None}
    return {
        "task": task,
        "sampler": "cm3",
        "options": settings,
        "model": info.get("name"),
        **kept,
        "version": getattr(cm3kit, "__version__", None),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
