"""Reinforcement learning on the toy model: pictures of 16 codes, half of which are worth something."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from toys import toy

from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward

WORDS = ("a red apple", "a green pear", "the big book", "the table")


@reward("toy-even")
class Even:
    """The share of even codes."""

    Settings = RewardSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        pass

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        return [sum(code % 2 == 0 for code in each.codes) / max(1, len(each.codes)) for each in samples]


def recipe(
    folder: Path, estimator: Any = "trajectory", loop: dict[str, Any] | None = None, **more: Any
) -> RLRecipe:
    """A recipe whose rollouts take five passes (ascending steps), or sixteen from left to right."""
    (folder / "prompts.txt").write_text("\n".join(WORDS))
    causal = estimator == "causal"
    sampling: dict[str, Any] = {
        "decoder": "cm3" if causal else "diffusion",
        "temperature": 1.0,
        "batch_size": 32,
    }
    if not causal:
        sampling |= {"schedule": "ascending", "overrides": ["eoser=null"]}
    own = {
        "steps": 4, "batch_size": 16, "learning_rate": 1e-2, "final": 1.0, "warmup": 0.0, "ema": 0.0, "clip": 1.0,
        "weight_decay": 0.0, "log_every": 1, "validate_every": 0, "preview_every": 1000, "save_every": 1000,
        "precision": "fp32", **(loop or {}),
    }  # fmt: skip
    chosen = {
        "model": str(toy()), "prompts": folder / "prompts.txt", "held_share": 0, "sampling": sampling,
        "estimator": estimator, "rewards": ["toy-even"], "group": 8, "updates": 2, "rows": 64,
        "loss": {"beta": 0.01}, "previews": 0, **more, "loop": own,
    }  # fmt: skip
    return RLRecipe.model_validate(chosen)


def in_two_processes(folder: Path, work: Callable[[int], Any]) -> None:
    """Fork two processes that train together; each must come to its end."""
    from accelerate.state import AcceleratorState, GradientState

    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child:
            children.append(child)
            continue
        try:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
            }
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work(rank)
                torch.distributed.destroy_process_group()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it was, the parent is told
            (folder / f"failed-{rank}").write_text(traceback.format_exc())
        finally:
            os._exit(1)
    until, ended = time.monotonic() + 300, dict[int, int]()
    while len(ended) < 2 and time.monotonic() < until:
        for child in set(children) - set(ended):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                ended[pid] = status
                until = min(until, time.monotonic() + 10) if status else until
        time.sleep(0.02)
    for pid in set(children) - set(ended):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said = [path.read_text() for path in sorted(folder.glob("failed-*"))]
    assert len(ended) == 2 and not any(ended.values()), "\n".join(said)
