"""What a user may change, and the settings of each decoder that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from pydantic import ValidationError

from cm3kit.config import resolve
from cm3kit.decode_options import Choice as Choice
from cm3kit.decode_options import DecoderName, own, table
from cm3kit.decode_options import GenerateOptions as GenerateOptions
from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.diffusion.settings import DiffusionConfig, Eoser
from cm3kit.decoders.kernels import MIXED
from cm3kit.decoders.settings import DecodeConfig, Precision
from cm3kit.fill.defaults import Defaults, DiffusionDefaults
from cm3kit.fill.styles import PromptStyle
from cm3kit_tokenizers.errors import ConfigError

Modality = Literal["image", "text", "mixed"]
"""What there is to write; to a causal decoder, which writes one gap after the other, mixed is text."""

Config = TypeVar("Config", DecodeConfig, DiffusionConfig)


@dataclass(frozen=True, slots=True)
class AnswerTokens:
    """Ids of the longest answer to a gap of unknown length, unless the caller names a limit, by decoder."""

    causal: int
    diffusion: int


ANSWER_TOKENS = {
    "attribute": AnswerTokens(48, 16), "content": AnswerTokens(96, 32), "document": AnswerTokens(256, 256),
}  # fmt: skip

# What a preset leaves as the model has it, unless it names it.
KEPT = ("text", "image", "guidance", "guidance_schedule", "block_size", "cache", "batch_size")
# Schedules that fix the number of steps themselves.
STEPLESS = ("ascending", "explicit")
# What only a sampler by confidence reads.
RANKING = ("schedule", "order", "accept", "threshold")


def chosen_decoder(defaults: Defaults, options: GenerateOptions, model: str) -> DecoderName:
    """The decoder that writes.

    Raises:
        ConfigError: the model was not trained for it, an option belongs to the other one or is out of range
            (`bad_value`).
    """
    options.check()
    name = options.decoder or defaults.decoders[0]
    if name not in defaults.decoders:
        raise ConfigError(
            f"model {model!r} was not trained for the decoder {name!r}; use {' or '.join(defaults.decoders)},"
            " or a model whose `cm3kit model info` lists it.",
            code="bad_value",
        )
    for other in get_args(DecoderName):
        given = [each for each in own(other) if getattr(options, each) != table()[each].default]
        if other != name and given:
            raise ConfigError(
                f"option {given[0]} belongs to the decoder {other!r}, and {name!r} writes; leave it out"
                f" or choose the decoder {other!r}.",
                code="bad_value",
            )
    return name


def chosen_style(defaults: Defaults, options: GenerateOptions) -> PromptStyle:
    """How pages are put to the model.

    Raises:
        ConfigError: the model reads minimal HTML, or knows no conversation (`bad_value`).
    """
    style = options.prompt_style or defaults.prompt_style
    if (style == "minimal") != (defaults.prompt_style == "minimal"):
        kinds = "minimal" if defaults.prompt_style == "minimal" else "page, plain or chat"
        raise ConfigError(
            f"prompt style {style!r}: this model reads {kinds}; leave it out.", code="bad_value"
        )
    if style == "chat" and defaults.chat is None:
        raise ConfigError(
            "prompt style 'chat': this model knows no conversation; use page or plain.", code="bad_value"
        )
    return style


def cm3_settings(defaults: Defaults, modality: Modality, options: GenerateOptions) -> DecodeConfig:
    """The model's defaults for a modality under the user's options; ConfigError (`bad_value`) out of range."""
    base: DecodeConfig = defaults.image if modality == "image" else defaults.text
    updates = {**_drawing(base, options), "parallel": options.parallel}
    updates["precision"] = _precision(base, options)
    updates |= {name: value for name in ("draft", "compile") if (value := getattr(options, name)) is not None}
    if options.guidance == 1:
        updates["guidance_image"] = 1.0
    return _valid(DecodeConfig, {**base.model_dump(), **updates})


def diffusion_settings(
    defaults: DiffusionDefaults, modality: Modality, options: GenerateOptions
) -> DiffusionConfig:
    """The model's defaults for a modality, or those of a preset, under the user's options.

    Raises:
        ConfigError: an option is out of range or contradicts another (`bad_value`), a name is unknown
            (`unknown_name`), or an override is (`bad_config`).
    """
    base: DiffusionConfig = getattr(defaults, modality)
    found = base.model_dump()
    if options.sampler is not None:
        found = {**{name: found[name] for name in KEPT}, **presets[options.sampler].settings}
    for name in ("steps", "schedule", "order", "accept", "modifiers", "block_size", "cache"):
        if getattr(options, name) is not None:
            found[name] = getattr(options, name)
    if options.threshold is not None:
        found["accept"] = _threshold(options)
    if options.eoser is not None:
        found["eoser"] = _eoser(found) if options.eoser else None
    found |= _drawing(_valid(DiffusionConfig, found), options)
    found["precision"] = _precision(base, options)
    if found["precision"] == MIXED:
        raise ConfigError(
            f"precision {MIXED!r} is of the cm3 decoder, which has prompts and steps; use bf16 or fp16-packed.",
            code="bad_value",
        )
    config = _valid(DiffusionConfig, found)
    if options.overrides:
        # What is None is left out, so that `eoser.hard=0.5` finds no `eoser` rather than one that is no group.
        given = {name: value for name, value in config.model_dump().items() if value is not None}
        config = resolve(DiffusionConfig, [given], options.overrides)
    _agree(config, options)
    return config


def _drawing(base: DecodeConfig | DiffusionConfig, options: GenerateOptions) -> dict[str, Any]:
    """What both decoders call alike."""
    chosen = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    changed = {key: value for key, value in chosen.items() if value is not None}
    updates: dict[str, Any] = {
        "text": {**base.text.model_dump(), **changed},
        "image": {**base.image.model_dump(), **changed},
    }
    for name in ("guidance", "batch_size"):
        if getattr(options, name) is not None:
            updates[name] = getattr(options, name)
    return updates


def _precision(base: DecodeConfig | DiffusionConfig, options: GenerateOptions) -> Precision:
    """The user's format, or the model's, of which fp32 is what folders say unless told otherwise: that is auto."""
    return options.precision or ("auto" if base.precision == "fp32" else base.precision)


def _threshold(options: GenerateOptions) -> dict[str, Any]:
    name = options.accept if isinstance(options.accept, str) else (options.accept or {}).get("name")
    if name not in (None, "threshold"):
        raise ConfigError(f"a threshold is of the accept rule 'threshold', not {name!r}.", code="bad_value")
    return {"name": "threshold", "tau": options.threshold}


def _eoser(found: Mapping[str, Any]) -> Eoser:
    """The damping of ends that goes with the schedule (arXiv:2509.23924, sec. 3.2 and 3.3)."""
    if found.get("eoser"):
        return Eoser.model_validate(found["eoser"])
    return Eoser(least=0.01, schedule="ascending") if _name(found.get("schedule")) == "ascending" else Eoser()


def _agree(config: DiffusionConfig, options: GenerateOptions) -> None:
    """Refuse options that would do nothing."""
    if options.steps is not None and _name(config.schedule) in STEPLESS:
        raise ConfigError(
            f"steps = {options.steps}, but the schedule {_name(config.schedule)!r} fixes them itself; leave one out.",
            code="bad_value",
        )
    idle = [name for name in (*RANKING, "steps") if getattr(options, name) is not None]
    if config.sampler == "ancestral":
        idle = [name for name in idle if name != "steps"]
    if config.sampler != "confidence" and idle:
        raise ConfigError(
            f"the sampler {config.sampler!r} does not read {idle[0]}; leave one of them out.",
            code="bad_value",
        )
    if config.cache != "none" and config.block_size is None:
        raise ConfigError(
            f"the cache {config.cache!r} keeps what is outside of a block; give a block size.",
            code="bad_value",
        )
    if options.verify_cache and config.cache == "none":
        raise ConfigError("there is no cache to verify; choose one.", code="bad_value")
    if isinstance(options.length, int):
        if options.length < 1:
            raise ConfigError(f"length = {options.length}: at least 1.", code="bad_value")
        if options.max_tokens is not None:
            raise ConfigError(
                f"length = {options.length} is exact, so max_tokens = {options.max_tokens} limits nothing;"
                " leave one out.",
                code="bad_value",
            )


def _name(choice: Choice | None) -> object:
    return choice.get("name") if isinstance(choice, dict) else choice


def _valid(kind: type[Config], values: Mapping[str, Any]) -> Config:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        line = " ".join(str(error).split("\n")[1:3]).strip()
        raise ConfigError(f"option out of range: {line}.", code="bad_value") from error
