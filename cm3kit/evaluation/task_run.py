"""A model and the baselines of a task on its rows: figures with intervals, and what they depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cm3kit.claims import Shard
from cm3kit.evaluation.bootstrap import bootstrap, ratios_of
from cm3kit.evaluation.task_baselines import baseline
from cm3kit.evaluation.task_choices import values_of
from cm3kit.evaluation.task_files import Task
from cm3kit.evaluation.task_metrics import Judge, Prediction, metric
from cm3kit.evaluation.task_rows import TaskData, TaskRow, read_data
from cm3kit.evaluation.task_store import Figures, RowStore, figures_of, row_store
from cm3kit.fill import remarks
from cm3kit.fill.batching import Order
from cm3kit.fill.filling import PageFiller
from cm3kit.fill.kit import Filled, GenerateOptions, Kit
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, stops

Progress = Callable[[int, int], None]
Warn = Callable[[str], None]
DRAWS = 2000


@dataclass(frozen=True, slots=True)
class RunHow:
    """How a task is run.

    Attributes:
        data: the folder of the data, instead of the task's.
        limit: at most so many rows, spread over the split.
        output: a folder for the run, in which the same call goes on; None keeps nothing.
        seed: of what is drawn while decoding.
        options: of decoding, over those of the task.
        shard: (i, n): the model is asked only the rows i, i + n, i + 2n, … of those chosen; for several processes or
            machines with one `output`.
        against: folders of whole runs on the same rows, of other models or other forms of the task, which are put
            beside the baselines under these paths.
    """

    data: Path | None = None
    limit: int | None = None
    output: Path | None = None
    seed: int = 0
    options: Mapping[str, Any] | None = None
    shard: Shard = (0, 1)
    against: tuple[Path, ...] = ()


def run_task(
    kit: Kit, task: Task, how: RunHow | None = None,
    progress: Progress = lambda done, total: None, warn: Warn = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Figures of a model and of the baselines on one and the same rows.

    A row that the model cannot be asked counts as one that it got wrong, and is counted as `failed`. Of a shard
    there are figures once the rows of the others are there too; before, `missing` tells how many are not.

    Raises:
        ConfigError: the task or an option is wrong, or `output` was begun for something else.
        DataError: the data are missing or wrong. OutputError: `output` cannot be written.
    """
    how = how or RunHow()
    if how.shard[1] > 1 and how.output is None:
        raise ConfigError(
            "shards meet in a folder; give one that all of them write to (-o).", code="bad_value"
        )
    options = task.options(how.options or {})
    data = read_data(task, how.data, how.limit)
    if data.skipped:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(data.skipped.items()))
        warn(f"{task.name}: rows that are left out: {told}")
    for unread in _unread(kit, data, options):
        warn(f"{task.name}: {unread}")
    judge = metric[task.spec.metric](data)
    answerers = {name: baseline[name](data) for name in task.spec.baselines}
    job = _job(kit, data, how, options)
    with row_store(how.output / task.name if how.output else None, job, how.shard) as store:
        if store.lines:
            warn(f"{task.name}: {len(store.lines)} of {len(data.rows)} rows are there already")
        mine = data.rows[how.shard[0] :: how.shard[1]]
        _ask(kit, data, mine, judge, store, options, how.seed, progress)
        store.look()
        if missing := sum(row.number not in store.lines for row in data.rows):
            return {**_told(data), "missing": missing, "job": job}
        systems: dict[str, Sequence[Figures]] = {
            "model": [store.lines[row.number]["figures"] for row in data.rows]
        }
        for name, answer in answerers.items():
            systems[name] = [judge(row, answer(row)) for row in data.rows]
        for other in how.against:
            numbers = [row.number for row in data.rows]
            systems[str(other)] = figures_of(other, data.sha256, numbers, list(systems["model"][0]))
        failed = [row for row in data.rows if "error" in store.lines[row.number]]
        methods = Counter(store.lines[row.number].get("method", "") for row in data.rows)
        results = {
            **_figures(data, systems),
            "failed": len(failed),
            "skipped": dict(data.skipped),
            "methods": {name: count for name, count in sorted(methods.items()) if name},
            "job": job,
        }
        store.finish(results)
    if failed:
        line = store.lines[failed[0].number]
        warn(f"{task.name}: {len(failed)} rows failed and count as wrong, the first: {line['error']}")
    return results


def _unread(kit: Kit, data: TaskData, options: GenerateOptions) -> tuple[str, ...]:
    """A line on what a model that only reads on does not see of the first row, and so of the others."""
    if kit.parts.defaults.layout != "continue" or data.task.spec.scored != "gap" or not data.rows:
        return ()
    try:
        return remarks.unread(kit, PageFiller(kit, data.rows[0].page, options, writes=False).ids, options)
    except Cm3kitError:
        return ()  # told with the row


def _job(kit: Kit, data: TaskData, how: RunHow, options: GenerateOptions) -> dict[str, Any]:
    usual, info = asdict(GenerateOptions()), kit.info()
    return {
        "task": data.task.name,
        "task_sha256": data.task.sha256,
        "data": str(data.folder),
        "data_sha256": data.sha256,
        "model": info["name"],
        "model_sha256": info["sha256"],
        "decoder": kit.record("text" if data.task.spec.metric != "retrieval" else "image", options),
        "options": {key: value for key, value in asdict(options).items() if value != usual[key]},
        "limit": how.limit,
        "seed": how.seed,
    }


def _ask(
    kit: Kit, data: TaskData, rows: Sequence[TaskRow], judge: Judge, store: RowStore, options: GenerateOptions,
    seed: int, progress: Progress,
) -> None:  # fmt: skip
    """Put those of some rows that are not there yet to the model."""
    left = [row for row in rows if row.number not in store.lines]
    done = len(rows) - len(left)
    progress(done, len(rows))
    chooses = data.task.spec.candidates
    found = _chosen(kit, data, left, options) if chooses else _written(kit, left, options, seed)
    for row, answer in found:
        if isinstance(answer, Exception):
            line: dict[str, Any] = {
                "figures": judge(row, Prediction()),
                "error": " ".join(str(answer).split()),
            }
        else:
            line = {"figures": judge(row, answer), "right": row.right, **answer.told}
        store.add(row.number, line)
        done += 1
        progress(done, len(rows))


def _chosen(
    kit: Kit, data: TaskData, rows: Sequence[TaskRow], options: GenerateOptions
) -> Iterator[tuple[TaskRow, Prediction | Exception]]:
    """The likeliest candidate of each row; the model is not asked where there is but one."""
    for row in rows:
        given = row.candidates or ()
        if len(given) < 2:
            yield row, Prediction(choices=dict.fromkeys(given, 1.0), told={"chosen": "".join(given)})
            continue
        try:
            values, method = values_of(kit, row.page, given, data.task.spec, options)
        except Cm3kitError as error:
            if stops(error):
                raise
            yield row, error
            continue
        best = max(range(len(given)), key=lambda number: values[number])
        told = {
            "chosen": given[best],
            "method": method,
            "scores": dict(zip(given, values, strict=True)),
        }
        yield row, Prediction(choices={given[best]: 1.0}, told=told)


def _written(
    kit: Kit, rows: Sequence[TaskRow], options: GenerateOptions, seed: int
) -> Iterator[tuple[TaskRow, Prediction | Exception]]:
    """What the model writes or draws into the gap of each row, as it is finished."""
    wrong: list[tuple[TaskRow, Exception]] = []

    def orders() -> Iterator[Order]:
        for row in rows:
            try:
                page = row.page
            except Cm3kitError as error:
                wrong.append((row, error))
                continue
            yield Order(seed=seed, index=row.number, options=options, page=page, key=row)

    for order, made in kit.sample(orders()):
        if isinstance(made, Exception):
            if stops(made):
                raise made
            yield order.key, made
        elif isinstance(made, Filled):
            yield order.key, _prediction(kit, made)
    yield from wrong


def _prediction(kit: Kit, made: Filled) -> Prediction:
    gap = made.gaps[0]
    if gap.kind != "image":
        told = {"text": gap.text, "logprob": gap.logprob, "ended": gap.ended}
        # What was cut before it could keep to its constraint is no answer.
        return Prediction(text=None if gap.satisfied is False else gap.text, told=told)
    codes = kit.codes([id for key in sorted(made.answers) for id in made.answers[key]])
    return Prediction(picture=kit.pictures([codes])[0], told={"codes": codes, "logprob": gap.logprob})


def _figures(data: TaskData, systems: Mapping[str, Sequence[Figures]]) -> dict[str, Any]:
    """Each system's figures with intervals, and by how much the model is above each baseline."""
    groups = [row.group for row in data.rows]
    names = list(dict.fromkeys(name for each in systems["model"] for name in each))
    figures: dict[str, Any] = {}
    for system, rows in systems.items():
        figures[system] = {
            name: bootstrap(ratios_of(rows, name), groups, draws=DRAWS).record() for name in names
        }
    above = {
        system: {
            name: bootstrap(
                ratios_of(systems["model"], name), groups, minus=ratios_of(rows, name), draws=DRAWS
            ).record()
            for name in names
        }
        for system, rows in systems.items()
        if system != "model"
    }
    return {
        **_told(data),
        "interval": f"95 %, percentiles of {DRAWS} resamples of groups ({data.task.spec.group}), seed 0",
        "figures": figures, "model_minus": above,
    }  # fmt: skip


def _told(data: TaskData) -> dict[str, Any]:
    groups = {row.group for row in data.rows}
    spec = data.task.spec
    return {"task": data.task.name, "about": spec.about, "rows": len(data.rows), "groups": len(groups)}


def table(results: Mapping[str, Any]) -> list[str]:
    """Results as lines of text."""
    if missing := results.get("missing"):
        there = results["rows"] - missing
        return [
            f"{results['task']}: {there} of {results['rows']} rows are there; figures come with the last shard"
        ]
    figures = results["figures"]
    names = list(figures["model"])
    head = f"{results['task']}: {results['about']} ({results['rows']} rows in {results['groups']} groups)"
    wide = max(len(each) for each in figures)
    cells = {
        system: [f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" for each in row.values()]
        for system, row in figures.items()
    }
    sizes = [max(len(name), *(len(row[at]) for row in cells.values())) for at, name in enumerate(names)]
    lines = [
        head,
        "  ".join(
            [" " * wide, *(f"{name:{size}}" for name, size in zip(names, sizes, strict=True))]
        ).rstrip(),
    ]
    for system, row in cells.items():
        lines.append(
            "  ".join(
                [f"{system:{wide}}", *(f"{c:{size}}" for c, size in zip(row, sizes, strict=True))]
            ).rstrip()
        )
    return lines
