"""Tasks as YAML files: where rows come from, what the model is asked, and how an answer is judged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cm3kit.config import Settings, read_yaml, resolve
from cm3kit.fill.kit import GenerateOptions
from cm3kit_tokenizers.errors import ConfigError

Scored = Literal["gap", "left", "page"]
Method = Literal["auto", "exact", "left-to-right", "bound"]
SHIPPED = Path(__file__).parent / "tasks"


class TaskSpec(Settings):
    """A task.

    In templates `{field}` is a field of the row, escaped for HTML; one whose name ends in `_html` goes in as it stands.

    Attributes:
        about: a description of one line.
        data: the folder, unless the command names another.
        source: `rows`, the JSON lines of `file`; or `pages`, which `manifest.jsonl` lists.
        split: values of a row's `split` that are asked; empty is all rows.
        known: values of it that baselines may learn from.
        prompt: template of a page with one `<mask>`; pictures are found from the folder of the data.
        select: of `pages`, the CSS selector of the gap.
        answer: template of the right answer; of `pages` it is the original content of the gap.
        candidates: name of a field with a list of answers, of which the likeliest is chosen.
        scored: what a candidate is chosen by: log p of it in the `gap`, as the model fills gaps; of it behind what is
            `left` of the gap; or of the whole `page` with it in its place (arXiv:1806.02847). The latter two ask any
            model as a plain language model.
        method: how a diffusion decoder scores (`Kit.score`), and `rounds`, the random masks of a bound.
        pmi: whether log p of the candidate alone is taken away.
        picture: template of the picture of a row, for metrics and baselines that look at it.
        group: name of a field; rows that share it are drawn together in the bootstrap.
        metric: how answers are judged (`task_metrics`); baselines: what answers too (`task_baselines`).
        options: of decoding, by the names of `GenerateOptions`.
    """

    about: str = ""
    data: str = ""
    source: Literal["rows", "pages"] = "rows"
    file: str = "rows.jsonl"
    split: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    prompt: str = ""
    select: str = ""
    answer: str = ""
    candidates: str = ""
    scored: Scored = "gap"
    method: Method = "auto"
    rounds: int = Field(64, ge=1)
    pmi: bool = False
    picture: str = ""
    group: str = "page"
    metric: str
    baselines: tuple[str, ...] = ()
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> TaskSpec:
        if self.source == "rows" and not (self.prompt and self.answer):
            raise ValueError("rows need prompt and answer")
        if self.source == "pages" and not self.select:
            raise ValueError("pages need select, a CSS selector of what is to be missing")
        if self.source == "rows" and self.prompt.count("<mask") != 1:
            raise ValueError("prompt needs exactly one <mask>")
        if self.scored != "gap" and (self.pmi or not self.candidates):
            raise ValueError(f"scored: {self.scored} is of candidates, and without pmi")
        return self


@dataclass(frozen=True, slots=True)
class Task:
    """A task by the name of its file, and the SHA-256 of that and of what was set over it."""

    name: str
    spec: TaskSpec
    sha256: str

    def options(self, changes: Mapping[str, Any]) -> GenerateOptions:
        """How answers are decoded.

        Raises:
            ConfigError: an option is unknown (`unknown_name`) or out of range (`bad_value`).
        """
        given = {**self.spec.options, **{key: value for key, value in changes.items() if value is not None}}
        known = {each.name for each in fields(GenerateOptions)}
        if wrong := sorted(set(given) - known):
            raise ConfigError(
                f"task {self.name}: unknown option {wrong[0]!r}; known: {', '.join(sorted(known))}.",
                code="unknown_name",
            )
        options = GenerateOptions(**given)
        options.check()
        return options


def shipped() -> list[str]:
    """Names of the tasks that ship."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_task(name: str, overrides: Sequence[str] = ()) -> Task:
    """A task that ships, by name, or that of a YAML file.

    Args:
        overrides: settings over those of the file, `a.b=c`.

    Raises:
        ConfigError: there is no such task (`unknown_name`, `no_file`), or a setting is wrong (`bad_config`).
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name}.yaml"
        if name not in shipped():
            raise ConfigError(
                f"no task {name!r}: there are {', '.join(shipped())}, or give a file that ends in .yaml.",
                code="unknown_name",
            )
    spec = resolve(TaskSpec, [read_yaml(path)], overrides)
    read = "\0".join(overrides).encode()
    return Task(path.stem, spec, hashlib.sha256(path.read_bytes() + read).hexdigest())
