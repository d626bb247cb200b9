"""Whether a model of transformers can be used here: it is tested on long rows before it is trained or used.

Training hands a model packed rows and masks of its own, and decoding runs it step by step on a cache of ours. A family
for which one of these means something else would be trained, or decoded, as another model than the one that is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.decoders.fast_llama import Engine
from cm3kit.decoders.hf_engine import make_engine
from cm3kit.models.backbone import forward, head, hidden_states
from cm3kit.models.timestep import is_timed
from cm3kit.rng import generator
from cm3kit_tokenizers.errors import ModelError, in_a_line

TOLERANCE, ROUNDED = 1e-3, 3e-2
"""Largest difference of two logits, as a share of the largest logit where that is over 1; and of weights in 16 bits."""
STEPS, EDGE, SHORT = 4, 8, 48
UNFIT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was compared, and the largest difference of two logits in it."""

    what: str
    difference: float
    passed: bool


def check_backbone(
    model: PreTrainedModel,
    name: str,
    length: int,
    *,
    causal: bool,
    full: bool,
    ids: Sequence[int] | None = None,
) -> list[Checked]:
    """Compare what is computed here with what the model itself computes, in its eval mode.

    Rows are `length` ids long, three documents in one; the model's windows should have been cleared for that
    (`models.windows`). A model that looks at a diffusion time was made here and is not tried.

    Args:
        name: what errors call the model.
        length: ids of the longest row that it will see.
        causal: whether it will be trained and decoded left to right.
        full: whether it will look both ways.
        ids: ids to try; all by default.

    Raises:
        ModelError: something differs (`bad_checkpoint`), with the largest difference of two logits.
    """
    if is_timed(model):
        return []
    done: list[Checked] = []
    training = model.training
    try:
        model.eval()
        for check in checks(model, length, causal=causal, full=full, ids=ids):
            done.append(check)
            if not check.passed:
                raise _refusal(model, name, f"{check.what} (logits are off by {check.difference:.2g})")
    except UNFIT as error:
        # A model that was built for something else fails in ways of its own.
        raise _refusal(model, name, f"it fails with {type(error).__name__}: {in_a_line(error)}") from error
    finally:
        model.train(training)
    return done


def _refusal(model: PreTrainedModel, name: str, cause: str) -> ModelError:
    return ModelError(
        f"{name} ({type(model).__name__}) cannot be the backbone: {cause}; use a decoder such as Llama, Qwen or"
        " GPT-2.",
        code="bad_checkpoint",
    )


@torch.no_grad()
def checks(
    model: PreTrainedModel, length: int, *, causal: bool, full: bool, ids: Sequence[int] | None = None
) -> Iterator[Checked]:
    """What `check_backbone` compares, one after the other; it may raise anything."""
    row_T = _row(model, length, ids)
    own_TV = model(input_ids=row_T[None], use_cache=False).logits[0]
    yield _compared(
        "its logits are more than a product of its last hidden states", forward(model, row_T[None])[0], own_TV
    )
    yield from _packed(model, row_T, "causal")
    if causal:
        yield _stepped(model, row_T, own_TV)
    if full:
        yield from _packed(model, row_T, "full")
        yield _sees_right(model, row_T)


def _row(model: PreTrainedModel, length: int, ids: Sequence[int] | None) -> Tensor:
    embedding = model.get_input_embeddings().weight
    known = torch.tensor(list(ids) if ids is not None else range(len(embedding)))
    most = getattr(model.config, "max_position_embeddings", None)
    length = min(length, most) if isinstance(most, int) else length
    picks_T = torch.randint(len(known), (length,), generator=generator(0, length))
    return known[picks_T].to(embedding.device)


def _compared(what: str, found: Tensor, wanted: Tensor) -> Checked:
    difference = float((found.float() - wanted.float()).abs().max())
    scale = max(1.0, float(wanted.abs().max()))
    # No comparison with what is no number holds.
    most = TOLERANCE if wanted.dtype == torch.float32 else ROUNDED
    return Checked(what, difference, difference <= most * scale)


def _packed(model: PreTrainedModel, row_T: Tensor, attention: str) -> Iterator[Checked]:
    """Three documents in one row against each by itself."""
    cuts = [0, len(row_T) // 2, 5 * len(row_T) // 6, len(row_T)]
    parts = [row_T[start:stop] for start, stop in pairwise(cuts)]
    document_T = torch.cat([torch.full_like(part, number) for number, part in enumerate(parts)])
    place_T = torch.cat([torch.arange(len(part), device=part.device) for part in parts])
    seen_TT = document_T[:, None] == document_T
    if attention == "causal":
        seen_TT = seen_TT.tril()
    together_TD = hidden_states(model, row_T[None], seen_TT[None, None], place_T[None])[0]
    for part, start in zip(parts, cuts, strict=False):
        alone_TD = hidden_states(model, part[None], "causal" if attention == "causal" else "full")[0]
        edges = [*range(min(EDGE, len(part))), *range(max(0, len(part) - EDGE), len(part))]
        found_EV, wanted_EV = (head(model, each[edges]) for each in (together_TD[start:], alone_TD))
        what = f"it does not keep documents of a row apart ({attention} attention)"
        yield _compared(what, found_EV, wanted_EV)


def _stepped(model: PreTrainedModel, row_T: Tensor, own_TV: Tensor) -> Checked:
    """Two prompts of different lengths put into a cache, and a few ids after each, one by one."""
    engine: Engine = make_engine(model, own_TV.shape[-1], "fp32", rows=2)
    prompts = [len(row_T) - STEPS - 1, len(row_T) // 3]
    cache = engine.open(2, len(row_T))
    ids, found, wanted = row_T.tolist(), [], []
    for slot, prompt in enumerate(prompts):
        found.append(engine.prefill(cache, slot, ids[:prompt]))
        wanted.append(own_TV[prompt - 1])
    for step in range(STEPS):
        places = [prompt + step for prompt in prompts]
        write = cache.at(places, [True, True])
        found += engine.step(cache, write, row_T[places])
        wanted += [own_TV[place] for place in places]
    return _compared(
        "its steps with a cache differ from the whole row", torch.stack(found), torch.stack(wanted)
    )


def _sees_right(model: PreTrainedModel, row_T: Tensor) -> Checked:
    """Whether, under full attention, the first position depends on the last id, and the last on the first."""
    moved = 0.0
    whole_TD = hidden_states(model, row_T[None, :SHORT], "full")[0]
    for changed, seen in ((-1, 0), (0, -1)):
        other_T = row_T[:SHORT].clone()
        other_T[changed] = next(id for id in row_T.tolist() if id != int(other_T[changed]))
        found_TD = hidden_states(model, other_T[None], "full")[0]
        moved = float((found_TD[seen] - whole_TD[seen]).abs().max())
        if moved == 0:
            break
    return Checked("it does not look both ways when it is asked to", moved, moved > 0)
