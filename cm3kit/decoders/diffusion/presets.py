"""Named settings of the diffusion decoder: published samplers as their code has them, and what we recommend.

A preset says what it reproduces of the code it is named after, and which of its slips it leaves out. All leave
out one more: that code writes the mask id again where the model prefers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cm3kit.config import resolve
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.registry import Registry

GREEDY = {"temperature": 0.0}
PLAIN = {"temperature": 1.0}


@dataclass(frozen=True, slots=True)
class Preset:
    """Settings by name.

    Attributes:
        about: where they come from, and what they reproduce.
        settings: fields of `DiffusionConfig`, the first source for `cm3kit.config.resolve`.
    """

    about: str
    settings: Mapping[str, Any]

    def config(self, **overrides: Any) -> DiffusionConfig:
        """The settings with some of them replaced; ConfigError (`bad_config`) if one is wrong."""
        return resolve(DiffusionConfig, [{**self.settings, **overrides}])


presets: Registry[Preset] = Registry("preset")


def _add(name: str, about: str, **settings: Any) -> None:
    presets(name)(Preset(" ".join(about.split()), settings))


# --- Published samplers. They have no early exit: every slot is written by the model. ---

_add(
    "llada",
    """LLaDA (arXiv:2502.09992, alg. 5; generate.py). Equal schedules, the surest first, and that is read off
    the model's own distribution at any temperature. Give block_size for the semi-autoregressive mode, whose
    steps are then of a block, and guidance = 1 + cfg_scale. Left out: masks in the prompt count against the
    schedule.""",
    schedule="uniform",
    order="probability",
    text=GREEDY,
    image=GREEDY,
    early_exit=False,
)
_add(
    "dream",
    """Dream (arXiv:2508.15487; generation_utils.py, alg entropy, as evaluated). Schedules follow t = 1…0.001 in
    equal steps, and the entropy is read after temperature and top-p: at a temperature of 0.1 most slots tie
    at 0, and ties go left to right. The model predicts one place ahead: use ModuleDenoiser(shift=True).
    Left out: schedules that are the mean over a batch.""",
    schedule="dream",
    order="entropy",
    confidence="tempered",
    text={"temperature": 0.1, "top_p": 0.9},
    image={"temperature": 0.1, "top_p": 0.9},
    early_exit=False,
)
_add(
    "diffucoder",
    """DiffuCoder (arXiv:2506.20639; inference_demo.py). Dream's sampler at temperature 0.3 and top-p 0.95.""",
    schedule="dream",
    order="entropy",
    confidence="tempered",
    text={"temperature": 0.3, "top_p": 0.95},
    image={"temperature": 0.3, "top_p": 0.95},
    early_exit=False,
)
_add(
    "maskgit",
    """MaskGIT (arXiv:2202.04200; parallel_decode.py). Cosine schedules of the slots open at the start, ids
    sampled at temperature 1, highest confidence first with Gumbel noise of 4.5 that fades to none at the last step.
    The cosine is taken in fp32, where two thirds of the way it falls short of one half and moves a slot.""",
    steps=12,
    schedule={"name": "cosine", "precision": "fp32"},
    order={"name": "maskgit", "tau": 4.5},
    text=PLAIN,
    image=PLAIN,
    early_exit=False,
)
_add(
    "medim",
    """MeDiM (arXiv:2510.06131; model_eval.py, which has it from UniDisc, arXiv:2503.20853). Arccos schedules over
    text and picture together, each rounded by itself, with one slot at least, for which the last step writes
    fewer; Gumbel
    noise of 10 times t; guidance 1 + 5 (1 - t) with t falling from 1 in equal steps, as many as were asked for even
    where the plan is done before. Left out: a first pass
    that exponentiates raw logits, ties that write too much, and a closing pass over nothing.""",
    steps=128,
    schedule={"name": "arccos", "rounding": "nearest"},
    order={"name": "maskgit", "tau": 10.0, "ratio": "now"},
    text=PLAIN,
    image=PLAIN,
    guidance=6.0,
    guidance_schedule="steps",
    early_exit=False,
)
_add(
    "eoser",
    """EOS early rejection (arXiv:2509.23924, sec. 3.2; eoser_generate). LLaDA's sampler with end ids ranked
    at γ = 0.4 of their confidence at first, and in full at the last step. Left out: blocks that count their own
    steps against the sum of all and so never reach γ = 1.""",
    schedule="uniform",
    order="probability",
    eoser={"least": 0.4, "most": 1.0, "schedule": "linear"},
    text=GREEDY,
    image=GREEDY,
    early_exit=False,
)
_add(
    "eoser-ass",
    """Ascending step sizes with EOS early rejection (arXiv:2509.23924, sec. 3.3; eoser_ass_generate, one
    block). As released: floor(log2 N) steps, the last of which takes more than half (256 slots: 1, 2, … 64,
    129), and γ grows with 2^s from 0.01 but stays below 1; over several blocks (`ascending_blocks`) it counts the
    steps of all of them. Steps are not read.""",
    schedule={"name": "ascending", "mode": "paper"},
    order="probability",
    eoser={"least": 0.01, "most": 1.0, "schedule": "ascending"},
    text=GREEDY,
    image=GREEDY,
    early_exit=False,
)

_add(
    "ancestral",
    """The reverse process in steps (MDLM, arXiv:2406.07524, eq. 7): each open slot is written by chance, and what
    it is drawn at temperature 1. Steps that write nothing cost no pass, which MDLM's cache spares only models
    that do not look at the time. Left out: MDLM's last pass, for what rounding has left open.""",
    sampler="ancestral",
    text=PLAIN,
    image=PLAIN,
    early_exit=False,
)
_add(
    "first-hitting",
    """The reverse process without steps (arXiv:2409.02908, alg. 2; BD3-LM): one slot a pass, whichever is next.""",
    sampler="first-hitting",
    text=PLAIN,
    image=PLAIN,
    early_exit=False,
)

# --- What we recommend for pages. Padding is not written by the model. ---

_add(
    "uniform",
    """One slot per pass unless steps are given, highest confidence first: the best and slowest.""",
    schedule="uniform",
    order="probability",
)
_add(
    "ascending",
    """1, 2, 4, … slots, the last step what is left: ceil(log2(N + 1)) passes for N slots.""",
    schedule="ascending",
    order="probability",
)
_add(
    "ascending-eoser",
    """Ascending steps that keep ends back at first, for gaps that are much longer than their answer.""",
    schedule="ascending",
    order="probability",
    eoser={"least": 0.01, "most": 1.0, "schedule": "ascending"},
)
_add(
    "threshold",
    """Every slot with a confidence of 0.9 or more, and one at least (Fast-dLLM, arXiv:2505.22618, sec. 3.3).""",
    schedule="uniform",
    order="probability",
    accept={"name": "threshold", "tau": 0.9},
)
_add(
    "cosine",
    """For pictures: MaskGIT's schedules and noise in 12 passes.""",
    steps=12,
    schedule="cosine",
    order={"name": "maskgit", "tau": 4.5},
)
