"""The result of `train_all`, which its card and its report show."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cm3kit.pipeline.held import compared
from cm3kit.pipeline.plan import NAMES, Plan
from cm3kit.quantities import duration


@dataclass(frozen=True)
class Made:
    """What `train_all` did: the plan, and unless it stopped there, seconds by stage, memory, figures and a prompt."""

    folder: Path
    plan: Plan
    took: dict[str, float] = field(default_factory=dict)
    peak: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    prompt: str = ""

    def lines(self) -> list[str]:
        """The result as lines of text."""
        out = [f"{NAMES[name]:19}{duration(took):>12}" for name, took in self.took.items()]
        for what, mine, theirs in compared(self.figures):
            out.append(f"{what}: {mine:.3f} held out; {theirs:.3f} of a unigram model")
        if self.prompt:
            out.append(f'try it: cm3kit generate "{self.prompt}" -n 4 -m {self.folder}')
        return out
