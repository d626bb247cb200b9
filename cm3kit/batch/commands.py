"""The jobs of `generate` and `infill`: plan the outputs, run the model, write all files or none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cm3kit
from cm3kit import images, json_lines
from cm3kit.batch.choice import Choice, Selector, choose
from cm3kit.batch.companions import beside, companions
from cm3kit.batch.work import SUFFIXES, GenerateJob, InfillJob, Saved, Where
from cm3kit.fill import equality, remarks
from cm3kit.fill.batching import Order
from cm3kit.fill.constraints import pinned
from cm3kit.fill.fillers import Progress, Trace
from cm3kit.fill.prompts import Prompt
from cm3kit.provenance import outputs, traces
from cm3kit.provenance.recipes import HASH, encode_sidecar, sidecar
from cm3kit.provenance.records import how_made, outcome, variant, verification, whose
from cm3kit.provenance.reproducing import encode
from cm3kit.provenance.sources import sha256
from cm3kit.publish import write_atomic
from cm3kit.viewing import diff
from cm3kit.viewing.report import build
from cm3kit_tokenizers.errors import ConfigError, OutputError

if TYPE_CHECKING:
    from cm3kit.fill.kit import Kit, Result

MAX_RESULTS = 100_000


def generate(
    model: str | None, device: str, job: GenerateJob, watch: Progress = lambda done, total: None
) -> Saved:
    """Run a generation job; outputs are checked before the model is loaded.

    Raises:
        OutputError: an output exists or cannot be written. ModelError, ConfigError: see `cm3kit.load`
            and `Kit.generate`.
    """
    job = replace(job, options=pinned(job.options, Path.cwd()))
    count = len(job.prompts) * job.n
    if not 1 <= count * job.best_of <= MAX_RESULTS:
        raise ConfigError(
            f"{count * job.best_of} results were requested; 1 to {MAX_RESULTS} are possible", code="bad_value"
        )
    Selector.check(job.score, job.best_of)
    if job.best_of > 1:
        Choice.check(job.score, Order("", job.task, job.seed, 0, job.options))
    rows = [(prompt, job.seed if prompt.seed is None else prompt.seed) for prompt in job.prompts]
    seeds = [seed for _, seed in rows for _ in range(job.n)]
    # Text goes to standard output; pictures and pages are files.
    output = outputs.STDOUT if job.where.output is None and SUFFIXES[job.task] == ".txt" else job.where.output
    sheet = job.where.sheet and SUFFIXES[job.task] == ".png" and count > 1
    planned = outputs.plan(outputs.run_id("generate"), output, SUFFIXES[job.task], seeds, sheet=sheet)
    planned = _ready(planned, job.where)
    traces.check_free(job.where.traj, count, job.where.force)
    kit = cm3kit.load(model, device=device)
    how = how_made(kit, job.options, job.task)
    made = [
        (
            result,
            {
                **how,
                **whose(rows[row][0], job.where.prompt_metadata),
                "seed": result.seed,
                "index": result.index,
            },
            why,
        )
        for row, result, why in _results(kit, job, rows, watch)
    ]
    files = [encode(result, record if job.where.prompt_metadata else None) for result, record, _ in made]
    samples = [{**record, **outcome(result), **why} for result, record, why in made]
    extra = []
    if planned.sheet is not None:
        extra = [(planned.sheet, _sheet([result for result, *_ in made], samples, how, job.where))]
    record = {"run_id": planned.run_id, **how, "prompts": len(rows), "n": job.n, "seed": job.seed}
    if job.best_of > 1:
        record |= {"best_of": job.best_of, "score": job.score}
    written = [(result.trace, record) for result, record, _ in made]
    saved = _save(planned, files, samples, record, extra, job.where, kit, written)
    plain = [equality.content(result) for result, *_ in made]
    rows_of = [plain[at : at + job.n] for at in range(0, count, job.n)]
    said = [*remarks.unknown(kit, [each.content for each in job.prompts]), *equality.equal(rows_of)]
    return replace(saved, warnings=tuple(said))


def _ready(planned: outputs.Plan, where: Where) -> outputs.Plan:
    """The checked plan with its report; ConfigError (`bad_value`) if there is no folder for the report."""
    if where.report and planned.folder is None:
        raise ConfigError("--report needs a folder; give a folder to -o, or omit -o", code="bad_value")
    if where.report and planned.folder is not None:
        planned = replace(planned, overview=planned.folder / "report.html")
    outputs.check_free(planned, where.force)
    return planned


def _results(
    kit: Kit, job: GenerateJob, rows: Sequence[tuple[Prompt, int]], watch: Progress
) -> Iterator[tuple[int, Result, Mapping[str, Any]]]:
    """Each result with the index of its prompt and why it was chosen; `watch` sees the progress of the whole job."""
    selector = Selector(kit, job.score) if job.best_of > 1 else None
    for row, (prompt, seed) in enumerate(rows):

        def share(done: int, total: int, row: int = row) -> None:
            watch(row * total + done, len(rows) * total)

        words, options = prompt.content, job.options
        made = kit.generate(
            words, task=job.task, n=job.n * job.best_of, seed=seed, options=options, watch=share
        )
        for first in range(0, len(made), job.best_of):
            several = made[first : first + job.best_of]
            orders = [Order(words, job.task, seed, each.index, options) for each in several]
            order, _, why = choose([*zip(orders, several, strict=True)], selector)
            yield row, made[order.index], why


def infill(
    model: str | None, device: str, job: InfillJob, watch: Progress = lambda done, total: None
) -> Saved:
    """Run an infill job; outputs are checked before the model is loaded.

    Raises:
        OutputError: an output exists or cannot be written. PageError, ModelError, ConfigError: see
            `cm3kit.load` and `Kit.infill`.
    """
    job = replace(job, options=pinned(job.options, Path.cwd(), job.page))
    planned = outputs.plan(
        outputs.run_id("infill"), job.where.output, ".html", [job.seed] * job.variants, report=job.report
    )
    if job.in_place:
        planned = replace(planned, bare=True)
    planned = _ready(planned, job.where)
    traces.check_free(job.where.traj, job.variants, job.where.force)
    kit = cm3kit.load(model, device=device)
    filled = kit.infill(job.page, variants=job.variants, seed=job.seed, options=job.options, watch=watch)
    pages = [each.html for each in filled]
    how = how_made(kit, job.options, "infill")
    told = job.where.prompt_metadata
    kept_in = planned.folder or (planned.paths[0].parent if planned.paths else None)
    samples = [variant(each, job.page if told else None, kept_in) for each in filled]
    record = {"run_id": planned.run_id, **how, "page": job.name, "variants": job.variants, "seed": job.seed}
    before = job.page.data
    warnings = equality.joined(filled)
    extra = []
    if planned.report is not None:
        sources = [each.get("source") or {} for each in samples]
        report = diff.side_by_side(before, pages, job.name, job.page.base, sources)
        extra = [(planned.report, report.encode())]
    if planned.folder is not None:
        needed = companions(job.page, planned.folder)
        extra += [each for each in needed.files if job.where.force or not each[0].exists()]
        warnings += [
            f"{path} exists and is not overwritten"
            for path, content in needed.files
            if _kept(path, content, job.where)
        ]
        warnings += needed.left
    elif planned.paths:
        warnings += beside(job.page, planned.paths[0])
    text = "".join(diff.unified(before, page, job.name) for page in pages) if job.report else ""
    written = [
        (each.trace, {**how, "page": job.name, "seed": each.seed, "index": each.index}) for each in filled
    ]
    saved = _save(planned, pages, samples, record, extra, job.where, kit, written, text)
    return replace(saved, warnings=tuple(warnings))


def _kept(path: Path, content: bytes, where: Where) -> bool:
    """Whether a different file exists at the path of a companion."""
    return not where.force and path.is_file() and path.read_bytes() != content


def schedule(model: str | None, device: str, job: GenerateJob | InfillJob) -> list[list[list[int]]]:
    """Number of positions that each pass of each block will write, per canvas, without running the model.

    Raises:
        ModelError, ConfigError, PageError, PictureError: see `cm3kit.load` and `Kit.schedule`.
    """
    kit = cm3kit.load(model, device=device)
    if isinstance(job, InfillJob):
        return kit.schedule(job.page, options=job.options)
    prompts = (each.content for each in job.prompts)
    return [canvas for each in prompts for canvas in kit.schedule(each, task=job.task, options=job.options)]


def write_all(files: Sequence[tuple[Path, bytes]], force: bool) -> None:
    """Write files atomically; if one fails, new files and new folders are removed again.

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
    """Folders that do not exist, outer ones first."""
    missing = {parent for path in paths for parent in path.parents if not parent.exists()}
    return sorted(missing, key=lambda folder: len(folder.parts))


def _save(
    planned: outputs.Plan,
    files: Sequence[bytes],
    samples: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    extra: Sequence[tuple[Path, bytes]],
    where: Where,
    kit: Kit,
    written: Sequence[tuple[Trace | None, Mapping[str, Any]]],
    text: str = "",
) -> Saved:
    """Write all files; `written` has the trajectories of each result."""
    told = traces.files(where.traj, written, kit, where.prompt_metadata)
    checked = verification(trace for trace, _ in written)
    if planned.to_stdout:
        write_all(told, where.force)
        saved = Saved(planned.run_id, tuple(samples), content=b"".join(files), diff=text)
    else:
        listed = [{**sample, "path": str(path)} for sample, path in zip(samples, planned.paths, strict=True)]
        wanted = [*zip(planned.paths, files, strict=True), *extra, *told]
        if planned.folder is not None:
            manifest = [
                {**row, "path": Path(str(row["path"])).name, HASH: sha256(content)}
                for row, content in zip(listed, files, strict=True)
            ]
            wanted.append((planned.folder / "manifest.jsonl", json_lines.dump_jsonl(manifest).encode()))
            wanted.append(
                (planned.folder / "run.json", f"{json_lines.dump_json(record, indent=2)}\n".encode())
            )
        elif where.prompt_metadata:
            wanted += _sidecars(planned, files, listed, record)
        write_all(wanted, where.force)
        saved = Saved(
            planned.run_id,
            tuple(listed),
            planned.paths,
            planned.sheet,
            planned.report,
            planned.folder,
            diff=text,
        )
    if where.report and planned.overview is not None:
        write_all([(planned.overview, build(planned.overview.parent).content)], where.force)
        saved = replace(saved, overview=planned.overview)
    return replace(saved, trajectories=tuple(path for path, _ in told), verification=checked)


def _sidecars(
    planned: outputs.Plan,
    files: Sequence[bytes],
    samples: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
) -> list[tuple[Path, bytes]]:
    """Recipe files for results that cannot embed them: text, and filled pages, which must not change otherwise."""
    if planned.bare:
        return []
    return [
        (sidecar(path), encode_sidecar({**record, **sample, "path": path.name}, content))
        for path, content, sample in zip(planned.paths, files, samples, strict=True)
        if "source" in sample or ("text" in sample and path.suffix.lower() != ".png")
    ]


def _sheet(
    results: Sequence[Result], samples: Sequence[Mapping[str, Any]], how: Mapping[str, Any], where: Where
) -> bytes:
    keys = ("prompt", "seed", "index", "logprob")
    tiles = [{key: sample.get(key) for key in keys} for sample in samples]
    captions = [sample.get("text") or f"{place} · s{sample['seed']}" for place, sample in enumerate(samples)]
    sheet = images.grid([result.image for result in results if result.image is not None], captions=captions)
    return images.encode_png(sheet, {**how, "tiles": tiles} if where.prompt_metadata else None)
