"""How a decoder is used that was trained, in a file beside its weights: who assembles a model need not say it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from cm3kit.config import Settings
from cm3kit.objectives.contract import Use
from cm3kit_tokenizers.errors import ModelError

NAME = "trained.json"


class Trained(Settings):
    """The uses of a decoder; the first one is the default. Fields of before are read as uses."""

    uses: tuple[Use, ...] = Field((Use(),), min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, given: Any) -> Any:
        return (
            {"uses": uses_of_before(given)} if isinstance(given, Mapping) and "uses" not in given else given
        )

    def of(self, decoder: str) -> Use | None:
        """The use by a decoder, if there is one."""
        return next((use for use in self.uses if use.decoder == decoder), None)

    @property
    def decoders(self) -> tuple[str, ...]:
        """Names of the decoders, that which writes by default first."""
        return tuple(dict.fromkeys(use.decoder for use in self.uses))

    @property
    def window(self) -> int | None:
        """The longest sequence that all uses allow; None where nobody knows."""
        return min((use.window for use in self.uses if use.window is not None), default=None)

    def save(self, folder: Path) -> None:
        """Write the file."""
        (folder / NAME).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What the file of a folder says; None where there is none, as beside other people's weights.

        Raises:
            ModelError: it cannot be read (`bad_checkpoint`).
        """
        path = folder / NAME
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, ValidationError) as error:
            line = " ".join(str(error).split())[:200]
            raise ModelError(
                f"{path} does not say what was trained: {line}.", code="bad_checkpoint"
            ) from error


def uses_of_before(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The uses that the fields of an old `trained.json` stand for; what is unknown goes on into the first use."""
    fields = {"window", "decoders", "hints", "shift", "unseen", "trained_block", "layout"}
    common = {"window": given.get("window"), **{key: given[key] for key in given if key not in fields}}
    uses: list[dict[str, Any]] = []
    for decoder in given.get("decoders", ("cm3",)):
        if decoder == "cm3":
            # What does not concern this decoder is read all the same, so that a wrong value is found.
            wrong = {
                key: given[key] for key in ("shift",) if key in given and not isinstance(given[key], bool)
            }
            uses.append({**common, "hints": given.get("hints", False), **wrong})
        else:
            own = {"shift": "shift", "unseen": "isolated_masks", "trained_block": "block_size"}
            told = {new: given[old] for old, new in own.items() if old in given}
            uses.append({**common, "decoder": decoder, **told, **written_in_place(given)})
    return uses


def written_in_place(given: Mapping[str, Any]) -> dict[str, Any]:
    """Layout, cache and objective of a diffusion decoder, which old files tell by `layout` and `trained_block`."""
    behind, block = given.get("layout") == "behind", given.get("trained_block")
    cache = "none" if block is None else "causal" if behind else "exact"
    how = {"shift": given.get("shift", False)} | ({} if block is None else {"block_size": block})
    name = {"none": "masked-diffusion", "causal": "causal-blocks", "exact": "block-diffusion"}[cache]
    return {
        "layout": "behind" if behind else "in-place", "attention": "full", "cache": cache,
        "objective": {"name": name, "diffusion": how if cache != "exact" else {"block_size": block}},
    }  # fmt: skip
