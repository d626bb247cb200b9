"""Rows that are decoded together, step by step, in a fixed number of places.

With a drafter a step takes further ids of a row along, which it may come to write (speculative decoding, Leviathan et
al., arXiv:2211.17192). What is written is drawn at every position from the model's own logits, by the row's own number
in [0, 1), as it is without: a draft only decides whether the logits behind an id are there already.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kit.decoders.cache import Cache
from cm3kit.decoders.causal.drafts import Drafter, Unfinished
from cm3kit.decoders.causal.guidance import combine
from cm3kit.decoders.causal.jobs import Job
from cm3kit.decoders.causal.source import Source
from cm3kit.decoders.fast_llama import Engine, LeanEngine, Prompt
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.decoders.token_sampling import draw, penalize

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


class Batch:
    """Rows of one stream count in a fixed number of places; a free place takes the next row.

    Place b of stream k is slot k * places + b of the cache. Places without a row compute along, so
    that every step has the same shape.
    """

    def __init__(
        self,
        engine: Engine,
        grammar: Grammar,
        config: DecodeConfig,
        waiting: deque[Job] | Source,
        capacity: int,
        count: int,
        drafter: Drafter | None = None,
    ) -> None:
        places, vocab = config.batch_size, len(grammar)
        self.engine, self.grammar, self.config, self.count = engine, grammar, config, count
        self.waiting = waiting
        self.places: list[Job | None] = [None] * places
        self.cache: Cache = engine.open(places * count, capacity)
        self.positions = [0] * (places * count)
        self.drafter = drafter
        # Ids that were drafted for a place, and at which column of the last pass the logits behind them are.
        self.drafted: list[deque[tuple[int, int]]] = [deque() for _ in range(places)]
        self.fed: list[list[int]] = [[] for _ in range(places)]
        self.shared: dict[int, _Shared] = {}
        device = self.cache.layers[0].device
        self.logits_SV = torch.zeros(places * count, vocab, device=device)
        self.columns_QSV = self.logits_SV[None]
        self.masks: list[Tensor] = [torch.ones(vocab, dtype=torch.bool)] * places
        self.mask_BV = torch.ones(places, vocab, dtype=torch.bool, device=device)
        self.seen_BV = torch.zeros(places, vocab, dtype=torch.bool, device=device)
        self.bias_V = torch.zeros(vocab, device=device)
        # Sentinels are allowed only where one ends a run.
        ends = [grammar.vocab.eoss, grammar.vocab.eod, *grammar.vocab.sentinel_range]
        self.bias_V[ends] = config.eoss_bias

    def run(self, report: Report) -> Iterator[Job]:
        """Fill every job, and yield each when it is done."""
        self._admit()
        while any(self.places):
            ids = self._write(report)
            if any(job is not None and not job.done for job in self.places):
                self._step(ids)
            for job in self.places:
                if job is not None and job.done:
                    yield job
            self._admit()

    def _write(self, report: Report) -> list[int]:
        """Take ids down until every place needs a pass; the id of each place that goes into it."""
        ids = [self.grammar.vocab.pad] * len(self.places)
        ready = [place for place, job in enumerate(self.places) if job is not None]
        while ready:
            sampled = self._sample(ready)
            for place in ready:
                ids[place] = self._advance(place, sampled[place])
                self.fed[place].append(ids[place])
            report(self.places, [choice and choice[0] for choice in sampled])
            ready = [place for place in ready if self._was_drafted(place, ids[place])]
        return ids

    def _was_drafted(self, place: int, id: int) -> bool:
        """Whether the latest pass took this id along: then the logits behind it are those to go on with."""
        job, drafted = self.places[place], self.drafted[place]
        if job is None or job.done or not drafted or drafted[0][0] != id:
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
                self.seen_BV[place] = False
                self.fed[place] = list(new.prompts[0])
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

    def _sample(self, ready: Sequence[int]) -> list[tuple[int, float] | None]:
        """For each place an id and its log-probability, or None where an id is forced or that is not ready."""
        asking = [
            job if job and not job.forced and place in ready else None
            for place, job in enumerate(self.places)
        ]
        if not any(asking):
            return [None] * len(asking)
        for place, job in enumerate(asking):
            if job is not None:
                self._show(place, job.run.allowed(job.left))
        logits_KBV = self.logits_SV.view(self.count, len(asking), -1)
        scores_BV = combine(logits_KBV, self.mask_BV, self.config)
        if self.config.eoss_bias:
            scores_BV = scores_BV + self.bias_V
        if self.config.repetition_penalty != 1:
            scores_BV = penalize(scores_BV, self.seen_BV, self.config.repetition_penalty)
        ids_B = self._draw(scores_BV, asking)
        chosen_B = logits_KBV[0].log_softmax(-1).gather(-1, ids_B[:, None])[:, 0]
        choices = zip(asking, ids_B.tolist(), chosen_B.tolist(), strict=True)
        return [(id, logprob) if job is not None else None for job, id, logprob in choices]

    def _show(self, place: int, mask_V: Tensor) -> None:
        # Masks are cached by the grammar, and most steps in a picture or a word keep theirs.
        if mask_V is not self.masks[place]:
            self.masks[place] = mask_V
            self.mask_BV[place] = mask_V

    def _draw(self, scores_BV: Tensor, asking: Sequence[Job | None]) -> Tensor:
        config, device = self.config, scores_BV.device
        ways = [config.image if job and job.run.image else config.text for job in asking]
        heat_B = torch.tensor([way.temperature for way in ways], dtype=torch.float64, device=device)
        top_k_B = torch.tensor([way.top_k for way in ways], device=device)
        top_p_B = torch.tensor([way.top_p for way in ways], dtype=torch.float64, device=device)
        dice = [job.next_uniform() if job else 0.0 for job in asking]
        uniforms_B = torch.tensor(dice, dtype=torch.float64, device=device)
        return draw(scores_BV, uniforms_B, heat_B, top_k_B, top_p_B)

    def _advance(self, place: int, choice: tuple[int, float] | None) -> int:
        """Take a choice down, and return the id that goes into the model."""
        job = self.places[place]
        if job is None:
            return self.grammar.vocab.pad
        if choice is None:
            return self._force(job)
        id, filled = choice[0], len(job.fills)
        job.take(id, choice[1])
        if id in self.grammar.vocab.text:
            self.seen_BV[place, id] = True
        if len(job.fills) > filled:
            self.seen_BV[place] = False
            if job.forced and id == job.forced[0]:
                self._force(job)
        return id

    def _force(self, job: Job) -> int:
        id = job.forced.popleft()
        if not job.forced:
            job.begin()
        return id

    def _step(self, ids: list[int]) -> None:
        drafts = self._drafts()
        for job, draft in zip(self.places, drafts, strict=True):
            if job is not None and not job.done:
                job.cost.partial += self.count
                job.cost.token_forwards += self.count * (1 + len(draft))
                job.cost.head_rows += self.count * (1 + len(draft))
        active = [job is not None and not job.done for job in self.places] * self.count
        width = max(map(len, drafts))
        if width:
            self._verify(ids, drafts, active, width)
        else:
            write = self.cache.at(self.positions, active)
            ids_S = torch.tensor(ids * self.count, device=write.rows.device)
            self.logits_SV = self.engine.step(self.cache, write, ids_S)
        self.positions = [at + on for at, on in zip(self.positions, active, strict=True)]

    def _verify(
        self, ids: list[int], drafts: Sequence[Sequence[int]], active: Sequence[bool], width: int
    ) -> None:
        """A pass over an id and a draft for each place; shorter drafts are padded with ids that nobody looks at."""
        assert isinstance(self.engine, LeanEngine)
        pad, last = self.grammar.vocab.pad, self.cache.capacity - 1
        rows = [[id, *draft, *[pad] * (width - len(draft))] for id, draft in zip(ids, drafts, strict=True)]
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
