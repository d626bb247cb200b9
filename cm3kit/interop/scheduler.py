"""The decoder's schedules, orders and accept rules as a scheduler of diffusers.

`MaskedDiffusionScheduler` goes where diffusers expects its `BlockRefinementScheduler`: its pipeline for
LLaDA 2, `LLaDA2Pipeline`, runs any combination of the axes with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from torch import Generator, Tensor

from cm3kit.config import resolve
from cm3kit.decoders.diffusion import accepts, axes, orders, schedules  # noqa: F401  (they register themselves)
from cm3kit.decoders.diffusion.axes import Choice
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig, Eoser
from cm3kit.interop.candidates import Candidates, MaskedDiffusionSchedulerOutput, draw_candidates
from cm3kit.rng import generator as seeded
from cm3kit_tokenizers.errors import ConfigError

Method = Literal["auto", "greedy", "multinomial"]
Dice = Generator | Sequence[Generator] | None


class MaskedDiffusionScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Writes blocks of masked ids by a schedule, an order and an accept rule, one block at a time.

    Unlike diffusers' own scheduler it counts each row's masks for the schedule, never writes the mask id, stops a block
    with its last mask instead of one pass later, goes on until no mask is left, and reads `minimal_topk`.

    Args:
        block_length: places of a block.
        num_inference_steps: steps of a block.
        threshold: score above which the accept rule `threshold` takes a place, unless that has a `tau` of its own;
            other rules do not read it.
        editing_threshold: probability above which another id replaces one that was written (LLaDA 2.1); None
            or 0 for never.
        minimal_topk: places that a step writes at least, as far as they are open.
        schedule: how many places a step writes: a name, or a mapping with `name` and options, as in
            `DiffusionConfig`. Here and below.
        order: which of them first.
        accept: which of the scored ones.
        eoser: fields of `Eoser`, to rank end ids lower at first; None leaves them.
        eos_token_ids: the end ids.
        confidence: whether orders read the model's distribution, or that which ids are drawn from ("tempered",
            as diffusers does it).
        per_row: whether the schedule shares out the masks of each row, or `block_length` as diffusers does it.
        seed: of the scheduler's own generator, used where `step` is given none.

    Raises:
        ConfigError: an axis is unknown (`unknown_name`), or an option or number is (`bad_config`).
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        block_length: int = 32,
        num_inference_steps: int = 32,
        threshold: float = 0.95,
        editing_threshold: float | None = None,
        minimal_topk: int = 1,
        schedule: Choice = "uniform",
        order: Choice = "probability",
        accept: Choice = "threshold",
        eoser: dict[str, Any] | None = None,
        eos_token_ids: Sequence[int] = (),
        confidence: Literal["base", "tempered"] = "base",
        per_row: bool = True,
        seed: int = 0,
    ) -> None:
        if confidence not in ("base", "tempered"):
            raise ConfigError(f"confidence is {confidence!r}; give base or tempered.", code="bad_config")
        self._schedule, self._order = axes.bind(axes.schedule, schedule), axes.bind(axes.order, order)
        self._rule = axes.bind(axes.accept, accept)
        name = accept if isinstance(accept, str) else accept["name"]
        self._by_threshold = name == "threshold" and (isinstance(accept, str) or "tau" not in accept)
        if eoser is not None:
            self._order = orders.eoser(self._order, resolve(Eoser, [eoser]), eos_token_ids)
        self._plans: dict[int, list[int]] = {}
        self.set_timesteps(num_inference_steps, block_length=block_length)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        block_length: int | None = None,
    ) -> None:
        """Start again, with so many steps per block; the generator is reset.

        Raises:
            ConfigError: a number is below 1 (`bad_config`).
        """
        self.block_length = self.config.block_length if block_length is None else block_length
        for name, value in (("steps", num_inference_steps), ("places of a block", self.block_length)):
            if value < 1:
                raise ConfigError(f"The number of {name} is {value}; give at least 1.", code="bad_config")
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device)
        self._plans.clear()
        self._open_B = torch.zeros(0, dtype=torch.bool)
        self._rng = seeded(self.config.seed)

    @classmethod
    def of(
        cls, config: DiffusionConfig, eos_token_ids: Sequence[int] = (), block_length: int | None = None
    ) -> Self:
        """The scheduler that writes as a decoder with these settings would; temperatures are the pipeline's.

        Args:
            config: settings, or a preset's.
            eos_token_ids: ids that end an answer.
            block_length: of the pipeline; the settings' if None, or 32.

        Raises:
            ConfigError: the sampler is another than `confidence`, or there are modifiers (`bad_config`).
        """
        if config.sampler != "confidence" or config.modifiers:
            raise ConfigError(
                f"The scheduler has neither the sampler {config.sampler!r} nor modifiers; leave them out.",
                code="bad_config",
            )
        length = block_length or config.block_size or 32
        made: Self = cls(
            block_length=length,
            num_inference_steps=config.steps or length,
            schedule=config.schedule,
            order=config.order,
            accept=config.accept,
            eoser=config.eoser.model_dump() if config.eoser else None,
            eos_token_ids=list(eos_token_ids),
            confidence=config.confidence,
        )
        return made

    @torch.no_grad()
    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: Method = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Tensor | None = None,
        generator: Dice = None,
        return_dict: bool = True,
    ) -> MaskedDiffusionSchedulerOutput | tuple[Tensor, ...]:
        """Write some of the masks of a block, and with an editing threshold replace some of its ids.

        Args:
            model_output: logits (B, L, V) of what belongs at each place.
            timestep: index of the step within the block; at 0 the schedules are dealt out.
            sample: ids (B, L) of the block.
            mask_token_id: id of an open place.
            temperature: 0 takes the best id.
            top_p: share of the nucleus; None cuts nothing.
            top_k: ids that may be drawn; None or 0 cuts nothing.
            sampling_method: "greedy" takes the best id at any temperature; the other two draw.
            threshold: instead of the configured one, as are the next two.
            editing_threshold: as configured if None.
            minimal_topk: as configured if None.
            prompt_mask: bool (L,) or (B, L), places that are never edited.
            generator: one for all rows, or one for each, which makes a row independent of the others.
            return_dict: False for the fields as a tuple.

        Raises:
            ConfigError: there is no mask id, or a number is out of range (`bad_value`).
        """
        mask = _known(mask_token_id, temperature, top_p, sampling_method)
        edit_above = self.config.editing_threshold if editing_threshold is None else editing_threshold
        open_BL: Tensor = torch.eq(sample, mask)
        editable_BL = _editable(open_BL, prompt_mask, edit_above)
        dice = self._dice(generator, len(sample))
        heat, nucleus = 0.0 if sampling_method == "greedy" else temperature, 1.0 if top_p is None else top_p
        tempered = self.config.confidence == "tempered"
        found = draw_candidates(
            model_output, open_BL | editable_BL, mask, (heat, top_k or 0, nucleus), dice, tempered
        )
        tokens_BL, probs_BL = found.spread(sample)
        limit = self.config.threshold if threshold is None else threshold
        least = self.config.minimal_topk if minimal_topk is None else minimal_topk
        written_BL = self._write(found, open_BL, int(timestep), limit, least, dice)
        edited_BL = editable_BL & (tokens_BL != sample) & (probs_BL > (edit_above or 0.0))
        after_BL = torch.where(written_BL | edited_BL, tokens_BL, sample)
        self._open_B = torch.eq(after_BL, mask).any(-1)
        output = MaskedDiffusionSchedulerOutput(
            after_BL, written_BL, edited_BL, tokens_BL, probs_BL, model_output
        )
        return output if return_dict else output.to_tuple()

    def check_eos_finished(
        self,
        cur_x: Tensor,
        sampled_tokens: Tensor,
        final_transfer: Tensor,
        finished: Tensor,
        eos_token_id: int,
        mask_token_id: int,
        prompt_length: int,
    ) -> Tensor:
        """Which rows (B,) are finished: nothing is masked before the first end id after the prompt.

        It does not matter which step wrote that id, nor whether the prompt holds one, so `sampled_tokens` and
        `final_transfer` are not read.

        Args:
            cur_x: ids (B, T), the blocks up to the current one.
            sampled_tokens: as `step` gave them.
            final_transfer: bool (B, L), what was written over.
            finished: bool (B,), rows that were done before and stay so.
            eos_token_id: the end id.
            mask_token_id: id of an open place.
            prompt_length: ids of the prompt.
        """
        answer_BA = cur_x[:, prompt_length:]
        ended_BA = (answer_BA == eos_token_id).cumsum(-1) > 0
        masked_B = ((answer_BA == mask_token_id) & ~ended_BA).any(-1)
        return finished | (ended_BA.any(-1) & ~masked_B)

    def check_block_should_continue(
        self,
        step_idx: int,
        masks_remaining: bool | Tensor,
        editing_enabled: bool,
        editing_transfer_index: Tensor,
        post_steps: int,
        max_post_steps: int,
        finished: Tensor,
    ) -> bool:
        """Whether the block needs another pass: for masks that are left, or to edit what was written.

        Args:
            step_idx: passes that found masks.
            masks_remaining: whether the pass before found some.
            editing_enabled: whether ids may be replaced.
            editing_transfer_index: where the pass before did.
            post_steps: passes that found no mask.
            max_post_steps: most of them.
            finished: bool (B,), rows that are written no more.
        """
        if bool((self._open_B.to(finished.device) & ~finished).any()):
            return True
        if bool(finished.all()) or not editing_enabled:
            return False
        if masks_remaining:
            return step_idx < self.num_inference_steps
        return bool(editing_transfer_index.any()) and post_steps <= max_post_steps

    def _dice(self, generator: Dice, rows: int) -> list[Generator]:
        if generator is None:
            return [self._rng] * rows
        if isinstance(generator, Generator):
            return [generator] * rows
        if len(generator) != rows:
            raise ConfigError(
                f"{len(generator)} generators for {rows} rows; give one, or one for each.", code="bad_value"
            )
        return list(generator)

    def _write(
        self,
        found: Candidates,
        open_BL: Tensor,
        step: int,
        threshold: float,
        least: int,
        dice: Sequence[Generator],
    ) -> Tensor:
        """Which of the open places (B, L) are written now."""
        # The rule takes scores from tau on, diffusers those above its threshold.
        options = {"tau": math.nextafter(threshold, math.inf)} if self._by_threshold else {}
        written_BL = torch.zeros_like(open_BL, device="cpu")
        for row, open_L in enumerate(open_BL.cpu()):
            slots_M = open_L.nonzero()[:, 0]
            if not len(slots_M):
                continue
            plan = self._plan(row, step, len(slots_M))
            at = min(step, len(plan) - 1)
            scores = Scores(slots_M, *found.of(row, slots_M), at, len(plan), dice[row])
            planned = min(max(plan[at], least), len(slots_M))
            written_BL[row, slots_M[self._rule(self._order(scores), planned, **options)]] = True
        return written_BL.to(open_BL.device)

    def _plan(self, row: int, step: int, blanks: int) -> list[int]:
        """How many places each step of the block writes in a row."""
        if step == 0 or row not in self._plans:
            shared = blanks if self.config.per_row else self.block_length
            self._plans[row] = [count for count in self._schedule(shared, self.num_inference_steps) if count]
        return self._plans[row]


def _editable(open_BL: Tensor, prompt_mask: Tensor | None, above: float | None) -> Tensor:
    if above is None or above <= 0:
        return torch.zeros_like(open_BL)
    return ~open_BL if prompt_mask is None else ~open_BL & ~prompt_mask.to(open_BL.device)


def _known(mask: int | None, temperature: float, top_p: float | None, method: str) -> int:
    """The mask id, once it is there and the rest is in range."""
    if mask is None:
        raise ConfigError("There is no mask id; give mask_token_id.", code="bad_value")
    if temperature < 0:
        raise ConfigError(f"temperature is {temperature}; give 0 or more.", code="bad_value")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ConfigError(f"top_p is {top_p}; give a number from 0 to 1.", code="bad_value")
    if method not in ("auto", "greedy", "multinomial"):
        raise ConfigError(
            f"sampling_method is {method!r}; give auto, greedy or multinomial.", code="bad_value"
        )
    return mask
