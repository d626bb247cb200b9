"""Canvases on demand as jobs of the autoregressive decoder, and the results of those that are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from cm3kit.decoders.causal.jobs import Job
from cm3kit.types import Canvas, Cost, Result
from cm3kit_tokenizers.errors import Cm3kitError


class Source:
    """Canvases on demand as jobs, and the canvases whose jobs are all done.

    Jobs of another number of streams than the current one wait for a batch of their own.
    """

    def __init__(
        self, canvases: Iterator[Canvas], jobs: Callable[[int, Canvas, int], Iterable[Job]], window: int
    ) -> None:
        self._canvases, self._make, self._window = canvases, jobs, window
        self._waiting: dict[int, deque[Job]] = {}
        self._open: dict[int, tuple[Canvas, list[Job]]] = {}
        self._count = 0
        self._pulled = 0
        self.ready: deque[tuple[int, Result | Cm3kitError]] = deque()

    def next_count(self) -> int | None:
        """The number of streams of the jobs to be taken now; None where nothing is left."""
        while not any(self._waiting.values()):
            if not self._pull():
                return None
        self._count = next(count for count, jobs in self._waiting.items() if jobs)
        return self._count

    def popleft(self) -> Job:
        """The next job; IndexError while there is none."""
        while not self._waiting.get(self._count):
            if not self._pull():
                raise IndexError
        return self._waiting[self._count].popleft()

    def _pull(self) -> bool:
        if (canvas := next(self._canvases, None)) is None:
            return False
        number, self._pulled = self._pulled, self._pulled + 1
        try:
            jobs = list(self._make(number, canvas, self._window))
        except Cm3kitError as error:
            self.ready.append((number, error))
            return True
        self._open[number] = canvas, jobs
        for job in jobs:
            if not job.done:
                self._waiting.setdefault(len(job.prompts), deque()).append(job)
        self._close(number)
        return True

    def finish(self, job: Job) -> None:
        """Record that a job is done."""
        # Another one of the row may have been done in the same step, and have closed it.
        if job.row in self._open:
            self._close(job.row)

    def _close(self, number: int) -> None:
        canvas, jobs = self._open[number]
        if all(job.done for job in jobs):
            del self._open[number]
            self.ready.append((number, result_of(canvas, jobs)))

    def drain(self) -> Iterator[tuple[int, Result | Cm3kitError]]:
        """Canvases that are done, each once."""
        while self.ready:
            yield self.ready.popleft()


def result_of(canvas: Canvas, jobs: Sequence[Job]) -> Result:
    """The result of a canvas whose jobs are all done."""
    cost = Cost()
    for job in jobs:
        cost.full, cost.partial = cost.full + job.cost.full, cost.partial + job.cost.partial
        cost.token_forwards += job.cost.token_forwards
        cost.head_rows += job.cost.head_rows
    return Result(canvas, tuple(fill for job in jobs for fill in job.fills), cost)
