"""Rows that are decoded together, step by step, in a fixed number of places.

On a device that runs beside the host, the next step is queued before what was drawn is read: the ids go into it where
they are. Where a row's constraint is a table there (`automata`), so are the next ids, and they are read a step later
still. What a row that has ended writes in that step is the id that is forced then, or nothing.

With a drafter a step takes further ids of a row along, which it may come to write (speculative decoding, Leviathan et
al., arXiv:2211.17192). What is written is drawn at every position from the model's own logits, by the row's own number
in [0, 1), as it is without: a draft only decides whether the logits behind an id are there already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cm3kit.decoders.cache import Cache
from cm3kit.decoders.causal.drafts import Drafter, Unfinished
from cm3kit.decoders.causal.jobs import Job
from cm3kit.decoders.causal.sampler import EITHER, IDLE, IMAGE, TEXT, Sampler, Turn
from cm3kit.decoders.causal.source import Source
from cm3kit.decoders.fast_llama import Engine, LeanEngine
from cm3kit.decoders.prompts import Prompt
from cm3kit.decoders.transfer import Readback, upload

Report = Callable[[Sequence[Job | None], Sequence[int | None]], None]


@dataclass(slots=True)
class _Shared:
    """A prompt that stands at the start of a slot, its first ids that look at one another, and the logits after it."""

    ids: tuple[int, ...]
    prefix: int
    logits_V: Tensor

    def holds(self, prompt: Prompt) -> bool:
        """Whether it is this one."""
        return self.ids == prompt.ids and self.prefix == prompt.prefix


@dataclass(slots=True)
class _Draw:
    """What was drawn in a step, not read yet.

    Attributes:
        jobs: of the places, then.
        found: ids and their log-probabilities; None where all ids were forced.
        waiting: places whose rows cannot go on before their id is known.
        tabled: the others that drew, unless their rows had ended.
    """

    jobs: list[Job | None]
    found: Readback | None = None
    waiting: list[int] = field(default_factory=list)
    tabled: list[int] = field(default_factory=list)


class Batch:
    """Rows of one stream count in a fixed number of places; a free place takes the next row.

    Place b of stream k is slot k * places + b of the cache. Places without a row compute along, so
    that every step has the same shape.
    """

    def __init__(
        self,
        engine: Engine,
        pad: int,
        waiting: deque[Job] | Source,
        cache: Cache,
        sampler: Sampler,
        drafter: Drafter | None = None,
    ) -> None:
        places, self.count = sampler.places, sampler.count
        self.engine, self.pad, self.waiting, self.cache, self.sampler = engine, pad, waiting, cache, sampler
        self.places: list[Job | None] = [None] * places
        self.positions = [0] * (places * self.count)
        # Of each place the id that goes into the next pass, and whether no text of its span has been written.
        self.ids, self.fresh = [pad] * places, [True] * places
        # Whether the span of a place goes by a table; None before its first id.
        self.tabled: list[bool | None] = [None] * places
        self.drawn: deque[_Draw] = deque()
        self.drafter = drafter
        # Ids that were drafted for a place, and at which column of the last pass the logits behind them are.
        self.drafted: list[deque[tuple[int, int]]] = [deque() for _ in range(places)]
        self.fed: list[list[int]] = [[] for _ in range(places)]
        self.shared: dict[int, _Shared] = {}
        self.logits_SV = torch.zeros(places * self.count, sampler.vocab, device=sampler.device)
        self.columns_QSV = self.logits_SV[None]

    def run(self, report: Report) -> Iterator[Job]:
        """Fill every job, and yield each when it is done."""
        self._admit()
        while any(self.places):
            ids_B = self._write(report)
            if any(map(self._goes_on, range(len(self.places)))):
                self._step(ids_B)
            self._read(report)
            for job in self.places:
                if job is not None and job.done:
                    yield job
            self._admit()

    def _goes_on(self, place: int) -> bool:
        """Whether a place has a row that is not over for certain, whatever was drawn for it and is not read yet."""
        job = self.places[place]
        return job is not None and job.goes_on(sum(place in draw.tabled for draw in self.drawn))

    def _write(self, report: Report) -> Tensor:
        """Draw until every place needs a pass; the id (B,) of each that goes into it."""
        ready = [place for place in range(len(self.places)) if self._goes_on(place)]
        ids_B = self._draw(ready)
        if self.engine.ahead:
            return ids_B
        self._read(report)
        while ready := [place for place in ready if self._was_drafted(place)]:
            self._draw(ready)
            self._read(report)
            ids_B = upload(self.ids, self.sampler.device)
        return ids_B

    def _draw(self, ready: Sequence[int]) -> Tensor:
        """Draw for these places, and go on by what is known without looking; the id (B,) of each place."""
        self._begin(ready)
        orders = [
            self._order(place, job if place in ready else None) for place, job in enumerate(self.places)
        ]
        self.drawn.append(draw := _Draw([*self.places]))
        if any(order.how != IDLE for order in orders):
            ids_B, logprobs_B = self.sampler(self.logits_SV, orders)
            draw.found = Readback(ids_B, logprobs_B)
        else:
            ids_B = upload([order.id for order in orders], self.sampler.device)
        for place in ready:
            job = self.places[place]
            assert job is not None
            if orders[place].how == IDLE:
                self._feed(place, self._force(job))
                continue
            (draw.tabled if self.tabled[place] else draw.waiting).append(place)
        return ids_B

    def _begin(self, ready: Sequence[int]) -> None:
        """Put rows that begin a span into tables."""
        if (automata := self.sampler.automata) is None:
            return
        new = [(place, self.places[place]) for place in ready if self.tabled[place] is None]
        jobs = {place: job for place, job in new if job is not None and not job.forced}
        for place, found in automata.begin(jobs).items():
            self.tabled[place] = found

    def _order(self, place: int, job: Job | None) -> Turn:
        if job is None or job.forced:
            return Turn(None, job.forced[0] if job else self.pad)
        fresh, self.fresh[place] = self.fresh[place], False
        if self.tabled[place]:
            kinds = job.run.kinds
            how = EITHER if len(kinds) > 1 else IMAGE if kinds[0] else TEXT
            return Turn(None, self.pad, how, 0, fresh)
        how = IMAGE if job.run.image else TEXT
        return Turn(job.run.allowed(job.left), self.pad, how, job.next_number(), fresh)

    def _read(self, report: Report) -> None:
        """Take down what was drawn: all but the newest where no row waits for that and some go on, else all."""
        late = self.engine.ahead and bool(self.drawn) and not self.drawn[-1].waiting
        late = late and any(map(self._goes_on, range(len(self.places))))
        while len(self.drawn) > late:
            self._take_down(self.drawn.popleft(), report)

    def _take_down(self, draw: _Draw, report: Report) -> None:
        written: list[int | None] = [None] * len(self.places)
        ids, logprobs = draw.found.read() if draw.found is not None else ((), ())
        for place in draw.waiting:
            written[place] = ids[place]
            self._take(place, ids[place], logprobs[place])
        for place in draw.tabled:
            job = draw.jobs[place]
            assert job is not None
            job.drawn += 1
            written[place] = ids[place]
            self._take(place, ids[place], logprobs[place])
            if self.tabled[place] is None and self.drawn and place in self.drawn[0].tabled:
                self.drawn[0].tabled.remove(place)
                self._overtaken(place, job)
        report(draw.jobs, written)

    def _overtaken(self, place: int, job: Job) -> None:
        """A span ended before what is queued already: there the device has put the id that is forced, if one is."""
        if job.forced:
            self._feed(place, self._force(job))
            self._charge(job, 1)
        elif not job.done:
            for slot in range(place, len(self.positions), len(self.places)):
                self.positions[slot] -= 1

    def _take(self, place: int, id: int, logprob: float) -> None:
        job = self.places[place]
        assert job is not None
        filled = len(job.fills)
        job.take(id, logprob)
        self._feed(place, id)
        if len(job.fills) > filled:
            self.fresh[place], self.tabled[place] = True, None
            if job.forced and id == job.forced[0]:
                self._force(job)
        if self.engine.ahead and not job.done:
            self._charge(job, 1)

    def _feed(self, place: int, id: int) -> None:
        self.ids[place] = id
        if self.drafter is not None:
            self.fed[place].append(id)

    def _force(self, job: Job) -> int:
        id = job.forced.popleft()
        if not job.forced:
            job.begin()
        return id

    def _charge(self, job: Job, ids: int) -> None:
        job.cost.partial += self.count
        job.cost.token_forwards += self.count * ids
        job.cost.head_rows += self.count * ids

    def _was_drafted(self, place: int) -> bool:
        """Whether the latest pass took the place's id along: then the logits behind it are those to go on with."""
        job, drafted = self.places[place], self.drafted[place]
        if job is None or job.done or not drafted or drafted[0][0] != self.ids[place]:
            drafted.clear()
            return False
        _, column = drafted.popleft()
        for slot in range(place, len(self.positions), len(self.places)):
            self.logits_SV[slot] = self.columns_QSV[column, slot]
            self.positions[slot] += 1
        return True

    def _admit(self) -> None:
        wanted: list[Prompt] = []
        for place, job in enumerate(self.places):
            if job is not None and job.done:
                self.places[place] = None
            if self.places[place] is None and (new := self._next()) is not None:
                self.places[place] = new
                self.fresh[place], self.fed[place] = True, list(new.prompts[0])
                self.tabled[place] = None
                self.sampler.admit(place, new.uniforms)
                for stream, (prompt, prefix) in enumerate(zip(new.prompts, new.prefix, strict=True)):
                    wanted.append(Prompt(stream * len(self.places) + place, prompt, prefix))
                    new.cost.add(len(prompt), len(prompt))
                    new.cost.head_rows += 1
        self._prefill(wanted)

    def _next(self) -> Job | None:
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def _prefill(self, wanted: Sequence[Prompt]) -> None:
        """Put prompts into their slots: what stands in another already is copied, and equal ones are computed once."""
        new: list[Prompt] = []
        alike: list[tuple[Prompt, Prompt]] = []
        for each in wanted:
            source = next((at for at, there in self.shared.items() if there.holds(each)), None)
            first = next(
                (other for other in new if (other.ids, other.prefix) == (each.ids, each.prefix)), None
            )
            # The previous content of the slot must not be reused.
            stood = self.shared.pop(each.slot, None)
            if source is not None:
                self._fork(source, each, stood if source == each.slot else None)
            elif first is not None:
                alike.append((first, each))
            else:
                new.append(each)
        if new:
            for each, logits_V in zip(new, self.engine.prefill_all(self.cache, new), strict=True):
                self._stands(each, _Shared(tuple(each.ids), each.prefix, logits_V))
        for first, each in alike:
            self._fork(first.slot, each, None)

    def _fork(self, source: int, target: Prompt, stood: _Shared | None) -> None:
        if source != target.slot:
            self.cache.copy(source, target.slot, len(target.ids))
        self._stands(target, stood or self.shared[source])

    def _stands(self, prompt: Prompt, shared: _Shared) -> None:
        self.shared[prompt.slot] = shared
        self.logits_SV[prompt.slot] = shared.logits_V
        self.positions[prompt.slot] = len(prompt.ids)

    def _step(self, ids_B: Tensor) -> None:
        drafts = self._drafts()
        # Those whose ids are not known yet may turn out to be done.
        unknown = {*self.drawn[-1].waiting, *self.drawn[-1].tabled} if self.drawn else ()
        active = [self._goes_on(place) for place in range(len(self.places))]
        for place, (job, draft) in enumerate(zip(self.places, drafts, strict=True)):
            if job is not None and active[place] and place not in unknown:
                self._charge(job, 1 + len(draft))
        active *= self.count
        if any(drafts):
            self._verify(drafts, active)
        else:
            # What a row is given behind its end may come to lie behind the last position, which is of nobody.
            write = self.cache.at([min(at, self.cache.capacity - 1) for at in self.positions], active)
            self.logits_SV = self.engine.step(
                self.cache, write, ids_B.repeat(self.count) if self.count > 1 else ids_B
            )
        self.positions = [at + on for at, on in zip(self.positions, active, strict=True)]

    def _verify(self, drafts: Sequence[Sequence[int]], active: Sequence[bool]) -> None:
        """A pass over an id and a draft for each place; shorter drafts are padded with ids that nobody looks at."""
        assert isinstance(self.engine, LeanEngine)
        last, width = self.cache.capacity - 1, max(map(len, drafts))
        rows = [
            [id, *draft, *[self.pad] * (width - len(draft))]
            for id, draft in zip(self.ids, drafts, strict=True)
        ]
        ids_QS = torch.tensor(rows * self.count).T
        # What is padded may come to lie behind a row's end, where the last position is of nobody.
        writes = [
            self.cache.at([min(at + step, last) for at in self.positions], active)
            for step in range(width + 1)
        ]
        self.columns_QSV = self.engine.verify(self.cache, writes, ids_QS)
        self.logits_SV = self.columns_QSV[0].clone()
        self.drafted = [deque((id, at) for at, id in enumerate(draft, 1)) for draft in drafts]

    def _drafts(self) -> list[list[int]]:
        """For each place ids that it may come to write behind the one that it wrote; those that are forced it will."""
        drafts: list[list[int]] = [[] for _ in self.places]
        if self.drafter is None:
            return drafts
        asked: dict[int, Unfinished] = {}
        for place, job in enumerate(self.places):
            if job is None or job.done:
                continue
            room = job.length - 1 - max(self.positions[place :: len(self.places)])
            if job.forced:
                drafts[place] = [*job.forced][:room]
            elif (most := min(room, job.left, self.drafter.most)) > 0:
                asked[place] = Unfinished(job, self.fed[place], most)
        for place, draft in self.drafter.propose(asked).items():
            drafts[place] = list(draft)
        return drafts
