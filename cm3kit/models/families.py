"""Public families whose folders transformers opens with remote code alone: each tells how its weights are a class of
transformers, so that no code of the folder is ever run.

A family registers itself (`cm3kit.interop`, or a plug-in file). It is asked by what the folder's `config.json` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import Tokenizer

from cm3kit.registry import Registry
from cm3kit_tokenizers.errors import ModelError, in_a_line
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BUILT_IN = "cm3kit.interop"
Raw = Mapping[str, Any]
"""What `config.json` says."""


@dataclass(frozen=True)
class Chat:
    """How a conversation of one turn is written; a number is an id of our specials, whose row is the family's.

    The user's words stand between `before` and `after`, and the answer follows, up to `end`.
    """

    before: tuple[str | int, ...]
    after: tuple[str | int, ...]
    end: int = Vocab.eoss


@dataclass(frozen=True)
class Pictures:
    """How a family writes pictures among words.

    Attributes:
        codes: ids of codes 0, 1, …, by what `config.json` says and the tokenizer; no text gives tokens of theirs.
        begin: id of our specials before the codes of a picture, and `end` the one behind them.
        open: the image tokenizer of a folder, by its `config.json`; without a decoder it is a `vq.absent.Undrawn`.
    """

    codes: Callable[[Raw, Tokenizer], Sequence[int]]
    begin: int
    end: int
    open: Callable[[Path, Raw], ImageTokenizer]


@dataclass(frozen=True)
class Family:
    """A family of models whose folders transformers cannot open as what they are.

    Attributes:
        name: as it is registered.
        about: papers, and which of its models it is for.
        owns: whether a folder is of this family, by its configuration and its name.
        config: the configuration of transformers that computes the same; ModelError (`bad_checkpoint`) for shapes
            that were never released.
        architecture: the class of transformers.
        renamed: patterns of tensor names and what takes their place, in order.
        shift: whether the logits of a place stand at the place before it.
        specials: for each of our special ids, the tokens whose row it takes, the first that the folder has.
        mask: id of the mask in a configuration; None of a causal family.
        preset: of the sampler that the authors use, of a family of masked diffusion.
        chat: how an instructed model is asked; None of a family without.
        decoder: how it writes.
        pictures: how it writes pictures; None of a family of words alone.
        defaults: how it is used unless the user says otherwise, fields of `fill.defaults.Defaults`.
    """

    name: str
    about: str
    owns: Callable[[Raw, str], bool]
    config: Callable[[Raw], PretrainedConfig]
    architecture: type[PreTrainedModel]
    mask: Callable[[Raw], int] | None
    shift: bool
    specials: Mapping[int, tuple[str, ...]]
    preset: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    chat: Chat | None = None
    decoder: Literal["cm3", "diffusion"] = "diffusion"
    pictures: Pictures | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


families: Registry[Family] = Registry("public family")


def family_of(source: str | Path) -> Family | None:
    """The family that a local folder is of; None where transformers knows it by itself, or there is no folder.

    Raises:
        ModelError: `config.json` cannot be read (`bad_checkpoint`).
    """
    raw = read_config(Path(source))
    if raw is None:
        return None
    import_module(BUILT_IN)
    name = Path(source).resolve().name
    owners = [families[each] for each in families if families[each].owns(raw, name)]
    return owners[0] if owners else None


def read_config(folder: Path) -> dict[str, Any] | None:
    """What a folder's `config.json` says; None where there is none.

    Raises:
        ModelError: it cannot be read (`bad_checkpoint`).
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", code="bad_checkpoint") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} is no configuration.", code="bad_checkpoint")
    return raw


def refuse_unknown(source: str | Path) -> None:
    """Refuse a path at which nothing is, which would be looked up as a hub's id otherwise, and a folder whose model is
    code in it alone (`unknown_model`)."""
    path = Path(source)
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or path.parts[:1] == ("..",)):
        raise ModelError(f"there is no file or folder {source}.", code="unknown_model")
    raw = read_config(path) or {}
    if not raw.get("auto_map") or family_of(path) is not None:
        return
    from transformers import CONFIG_MAPPING

    if (kind := str(raw.get("model_type"))) not in CONFIG_MAPPING:
        raise ModelError(
            f"{source} holds {kind!r}, which code in the folder computes, and code of a folder is never run; known"
            f" without it: {', '.join(families)}, and the types of transformers.",
            code="unknown_model",
        )


def configured(family: Family, raw: Raw) -> PretrainedConfig:
    """The configuration of transformers that a folder's own one stands for.

    Raises:
        ModelError: it is not of the released models, or holds values that cannot be (`bad_checkpoint`).
    """
    try:
        return family.config(raw)
    except ModelError:
        raise
    except Exception as error:
        # Strict types of transformers name errors of their own.
        raise ModelError(f"config.json cannot be used: {in_a_line(error)}", code="bad_checkpoint") from error


def whole(raw: Raw, name: str, least: int = 1) -> int:
    """A whole number that a configuration says; ModelError (`bad_checkpoint`) if it does not, or a lesser one."""
    said = raw.get(name)
    if not isinstance(said, int) or isinstance(said, bool) or said < least:
        what = "is missing" if said is None else f"= {said!r} is no whole number from {least} up"
        raise ModelError(f"config.json: {name} {what}.", code="bad_checkpoint")
    return said


def mask_of(raw: Raw, released: int) -> int:
    """The id of the mask that a configuration says, or else that of the released models."""
    return released if raw.get("mask_token_id") is None else whole(raw, "mask_token_id", 0)


def refuse_class(raw: Raw, family: str, wanted: str) -> None:
    """Refuse a folder whose weights are of another class than the released models' (`bad_checkpoint`)."""
    said = raw.get("architectures") or [wanted]
    if said != [wanted]:
        named = ", ".join(map(str, said)) if isinstance(said, list) else str(said)
        raise ModelError(
            f"a {family} of the class {named} is another model under the same name, and not known here, only"
            f" {wanted}.",
            code="bad_checkpoint",
        )


def refuse_other(raw: Raw, family: str, wanted: Mapping[str, Any]) -> None:
    """Refuse a configuration that says something else than the released models do (`bad_checkpoint`)."""
    for name, value in wanted.items():
        said = raw.get(name, value)
        if said != value and not (value is False and said is None):
            raise ModelError(
                f"a {family} model with {name} = {said!r} is not known here, only {value!r}, as released.",
                code="bad_checkpoint",
            )
