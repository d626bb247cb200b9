"""Sample the rows of a file into a folder, resuming an earlier run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import cm3kit
from cm3kit import json_lines
from cm3kit.batch import equal
from cm3kit.batch.choice import Choice, Chosen, Selector, choose
from cm3kit.batch.companions import beside
from cm3kit.batch.job import How, SampleJob, count, keys, plain, prepare, seed_of, tally
from cm3kit.batch.rows import Row, Rows, options_of
from cm3kit.batch.signals import Signals
from cm3kit.batch.store import Key, Made, Store, file_name, read_lines
from cm3kit.batch.work import SUFFIXES
from cm3kit.claims import claim
from cm3kit.fill.batching import Order
from cm3kit.fill.constraints import pinned
from cm3kit.fill.kit import Filled, Kit, Result
from cm3kit.fill.pages import read_page
from cm3kit.fill.prompts import Prompt
from cm3kit.provenance import outputs
from cm3kit.provenance.records import how_made, outcome, variant, whose
from cm3kit.provenance.reproducing import encode
from cm3kit.publish import write_atomic
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, as_exception, stops
from cm3kit_tokenizers.page import Page

Watch = Callable[[int, int, str], None]
Warn = Callable[[str], None]

# Default batch size; results do not depend on it.
BATCH_SIZE = 16
# Outputs are flushed to disk in groups: after this many, or after this many seconds.
GROUP, SECONDS = 16, 1.0


def run(
    job: SampleJob, how: How | None = None, watch: Watch = lambda done, total, note: None,
    warn: Warn = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Sample the missing outputs.

    Returns:
        For the shard: how many outputs are `done`, `failed` and `missing`, and how many have warnings in the manifest
        (`warned`); the run's `seed`, and the folder.

    Raises:
        ConfigError: the folder belongs to another job, or an option is invalid.
        DataError: the file of rows is invalid. OutputError: the folder cannot be written, or is in use.
        ModelError: see `cm3kit.load`.
    """
    how = how or How()
    job, rows = prepare(job, how)
    with claim(job.output, how.shard):
        return _Run(job, rows, how, watch, warn).work()


class _Run:
    """One process that samples one shard."""

    def __init__(self, job: SampleJob, rows: Rows, how: How, watch: Watch, warn: Warn) -> None:
        self._job, self._rows, self._how, self._watch = job, rows, how, watch
        self._started = time.monotonic()
        index, shards = how.shard
        self._mine = [row for row in rows.rows if row.number % shards == index]
        self._total = len(keys(job, rows, how.shard))
        self._lines = self._there(warn)
        self._done_before = len(self._lines)
        self._ready: list[Made] = []
        self._committed = time.monotonic()
        self._alone: tuple[int, tuple[str, ...]] = (-1, ())
        self._records: dict[str, Mapping[str, Any]] = {}
        self._signals = Signals()

    def _there(self, warn: Warn) -> dict[Key, str]:
        """Status of outputs that are not sampled again."""
        mine = set(keys(self._job, self._rows, self._how.shard))
        found, lost = {}, 0
        for key, line in read_lines(self._job.output).items():
            if key not in mine or (line["status"] != "ok" and self._how.retry_errors):
                continue
            if line["status"] == "ok" and not (self._job.output / line["path"]).is_file():
                lost += 1
                continue
            found[key] = str(line["status"])
        if found:
            warn(f"{len(found)} of {self._total} outputs are done already")
        if lost:
            warn(f"{lost} files of the manifest are missing and will be sampled again")
        return found

    def work(self) -> dict[str, Any]:
        """Sample the missing outputs."""
        if len(self._lines) < self._total:
            kit = cm3kit.load(self._job.model, device=self._job.device)
            selector = Selector(kit, self._job.score) if self._job.best_of > 1 else None
            self._log(kit)
            with closing(Store(self._job.output, self._how.shard)) as self._store:
                self._make(kit, selector)
        self._remark()
        return tally(self._job, self._rows, self._how.shard)

    def _remark(self) -> None:
        """Put a warning on the lines of rows whose outputs are all equal."""
        counts = ((row.number, count(row, self._job)) for row in self._mine)
        made = [*equal.remarked(read_lines(self._job.output), counts)]
        if made:
            with closing(Store(self._job.output, self._how.shard)) as store:
                store.commit(made)

    def _make(self, kit: Kit, selector: Selector | None) -> None:
        waiting: dict[Key, list[tuple[Order, Result | Filled | Exception]]] = {}
        with self._signals:
            self._make_all(kit, selector, waiting)

    def _make_all(
        self,
        kit: Kit,
        selector: Selector | None,
        waiting: dict[Key, list[tuple[Order, Result | Filled | Exception]]],
    ) -> None:
        try:
            for order, made in kit.sample(self._orders()):
                key, row = order.key
                found = waiting.setdefault(key, [])
                found.append((order, made))
                if len(found) == self._job.best_of:
                    self._finish(kit, row, key, waiting.pop(key), selector)
                self._commit(False)
                self._signals.check()
        finally:
            # Finished outputs are saved even if an error ends the run.
            self._commit(True)

    def _finish(
        self,
        kit: Kit,
        row: Row,
        key: Key,
        candidates: Sequence[tuple[Order, Result | Filled | Exception]],
        selector: Selector | None,
    ) -> None:
        """Choose among candidates and save the output; errors are recorded for the row."""
        try:
            self._add(kit, row, key, choose(candidates, selector))
        except BaseException as error:
            if stops(error):
                raise
            self._fail(row, [key[1]], as_exception(error))

    def _orders(self) -> Iterator[Order]:
        """Orders for the missing outputs; invalid rows are recorded as errors."""
        limit = self._how.time_limit
        for row in self._mine:
            self._signals.check()
            left = [index for index in range(count(row, self._job)) if (row.number, index) not in self._lines]
            try:
                start = self._order(row) if left else None
            except BaseException as error:
                if stops(error):
                    raise
                self._fail(row, left, as_exception(error))
                continue
            for index in left:
                assert start is not None
                if limit is not None and time.monotonic() - self._started > limit:
                    return
                for candidate in range(self._job.best_of):
                    number = index * self._job.best_of + candidate
                    yield replace(start, index=number, key=((row.number, index), row))

    def _order(self, row: Row) -> Order:
        """The order of a row without its number; raises the row's error."""
        if row.error:
            raise row.error
        asked, seed = row.asked, row.asked.seed
        assert self._job.seed is not None
        options = options_of(row, self._job.options)
        named = self._rows.folder if "constrain" in (row.options or {}) else Path.cwd()
        options = replace(
            options, batch_size=BATCH_SIZE if options.batch_size is None else options.batch_size
        )
        task, page, prompt = asked.task or self._job.task, None, asked.prompt
        if asked.page is not None or asked.html is not None or task == "infill":
            page, task = self._page(row), "document"
        options = pinned(options, named, page)
        order = Order(
            Path(self._rows.folder, prompt) if task == "caption" else prompt,
            task, seed_of(self._job.seed, row.id) if seed is None else seed, 0, options, page,
        )  # fmt: skip
        if self._job.best_of > 1:
            Choice.check(self._job.score, order)
        return order

    def _page(self, row: Row) -> Page:
        asked = row.asked
        if (asked.page is None) == (asked.html is None):
            raise ConfigError(f'{row.where}: give one of "page" and "html".', code="bad_value")
        root = self._rows.folder / asked.root if asked.root is not None else None
        if asked.page is not None:
            return read_page(
                str(self._rows.folder / asked.page), asked.select, root=root, uncover=asked.uncover
            )
        assert asked.html is not None
        page = Page.parse(
            asked.html.encode(), self._rows.folder, root.resolve() if root is not None else None
        )
        for selector in asked.select:
            page = page.select(selector)
        return page.uncovered() if asked.uncover else page

    def _add(self, kit: Kit, row: Row, key: Key, chosen: Chosen) -> None:
        order, made, why = chosen
        if isinstance(made, Exception):
            self._fail(row, [key[1]], made)
            return
        shown, task = self._job.prompt_metadata, "infill" if order.page is not None else order.task
        said = {"row": row.number, "id": row.id, "index": key[1], "status": "ok", "task": task}
        given = {"options": dict(row.options)} if row.options and shown else {}
        carried = {} if row.asked.meta is None else {"meta": row.asked.meta}
        if isinstance(made, Filled):
            suffix, content = ".html", made.html
            prompt: Mapping[str, Any] = {"page": row.asked.page} if row.asked.page and shown else {}
            kept_in = (self._store.folder / file_name(key, suffix)).parent
            assert order.page is not None
            if self._alone[0] != row.number:
                self._alone = (row.number, beside(order.page, self._store.folder / file_name(key, suffix)))
            made = replace(made, warnings=(*made.warnings, *self._alone[1]))
            told: Mapping[str, Any] = variant(made, order.page if shown else None, kept_in)
        else:
            prompt = whose(Prompt(row.asked.prompt), shown)
            place = {"seed": made.seed, "index": made.index}
            record = {**self._record(kit, order), **prompt, "id": row.id, **place} if shown else None
            suffix, content = SUFFIXES[order.task], encode(made, record)
            told = {"seed": made.seed, **outcome(made)}
        several = {equal.CONTENT: equal.fingerprint(made)} if count(row, self._job) > 1 else {}
        line = {**said, **prompt, **told, "index": key[1], "sample": made.index, **several, **why, **given}
        self._take(key, Made({**line, **carried}, suffix, content), "ok")

    def _fail(self, row: Row, indices: Sequence[int], error: Exception) -> None:
        code = error.code if isinstance(error, Cm3kitError) else "internal"
        text = str(error.args[0]) if isinstance(error, Cm3kitError) else f"{type(error).__name__}: {error}"
        for index in indices:
            line = {
                "row": row.number, "id": row.id, "index": index, "status": "error", "code": code,
                "error": " ".join(text.split())[:500], "where": row.where,
            }  # fmt: skip
            self._take((row.number, index), Made(line), "error")

    def _take(self, key: Key, made: Made, status: str) -> None:
        self._ready.append(made)
        self._lines[key] = status

    def _commit(self, all_of_it: bool) -> None:
        now = time.monotonic()
        if self._ready and (all_of_it or len(self._ready) >= GROUP or now - self._committed > SECONDS):
            ready, self._ready = self._ready, []
            self._store.commit(ready)
            self._committed = now
            self._watch(len(self._lines), self._total, self._pace())

    def _pace(self) -> str:
        made, seconds = len(self._lines) - self._done_before, time.monotonic() - self._started
        rate = made / max(seconds, 1e-9)
        left = round((self._total - len(self._lines)) / max(rate, 1e-9))
        return f"{rate:.2f} outputs/s, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"

    def _record(self, kit: Kit, order: Order) -> Mapping[str, Any]:
        """The record of an output, without the batch size, which does not change outputs."""
        options = plain(order.options)
        name = f"{order.task} {options!r}"
        if name not in self._records:
            self._records[name] = how_made(kit, options, order.task)
        return self._records[name]

    def _log(self, kit: Kit) -> None:
        """Save versions, device and time of this process."""
        name = outputs.run_id("sample")
        shard = f"{self._how.shard[0]}/{self._how.shard[1]}"
        said = {
            "run_id": name, "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "process": os.getpid(), "shard": shard, "batch_size": self._job.options.batch_size or BATCH_SIZE,
            **how_made(kit, plain(self._job.options), "infill"),
        }  # fmt: skip
        folder = self._job.output / "runs"
        folder.mkdir(exist_ok=True)
        write_atomic(
            folder / f"{name}.json", f"{json_lines.dump_json(said, indent=1)}\n".encode(), force=True
        )
