"""Import of a public text model as a cm3kit folder, with the weights in the number format of their files."""

from __future__ import annotations

from pathlib import Path

from cm3kit.fill.defaults import DIFFUSION, Defaults
from cm3kit.fill.folder import PARTS, write_json
from cm3kit.fill.parts import Parts
from cm3kit.fill.runs import INDEX
from cm3kit.fill.trained import Trained
from cm3kit.interop.public import open_public
from cm3kit.models.backbone import LARGE, save_backbone
from cm3kit.models.families import families, family_of, read_config
from cm3kit.models.quantized import split_format
from cm3kit.objectives.contract import Use
from cm3kit.objectives.masked_diffusion import MaskedDiffusion
from cm3kit.objectives.next_token import NextToken
from cm3kit.publish import publishing
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.absent import undrawn

CARD = """# {name}

{about}, imported by `cm3kit model import`. The decoder is a {kind} of transformers; its rows lie at the ids of
`vocab.json`. It {how}. Terms of use are those of the weights it was made from.
"""


def import_model(source: Path, target: Path) -> Path:
    """Convert the folder of a public family: tokenizers, decoder under the names of transformers, defaults.

    Raises:
        ModelError: it is of no family that is known (`unknown_model`), or cannot be read (`bad_checkpoint`).
        OutputError: the target exists, or the disk is full.
    """
    base, quantize = split_format(str(source))
    if quantize is not None:
        raise ModelError(
            f"{source}: import {base}, whose weights are kept as they are; :{quantize} goes behind the name of what is"
            " made, where it is used.",
            code="unknown_model",
        )
    family = family_of(source)
    if family is None:
        raw = read_config(source)
        what = "there is no config.json" if raw is None else f"it holds {raw.get('model_type')!r}"
        raise ModelError(
            f"{source} is of no family that can be imported: {what}; known: {', '.join(families)}. Training can"
            " start from a causal decoder with train --backbone.",
            code="unknown_model",
        )
    parts = open_public(source)
    if parts.vocab.image_size and not parts.image.draws:
        raise undrawn("model import")
    with publishing(target) as folder:
        (folder / "text").mkdir()
        parts.text.save(folder / "text")
        save_backbone(parts.backbone, folder / "decoder", shard=LARGE)
        if parts.vocab.image_size:
            parts.image.save(folder / "image")
        how, kind = parts.defaults, type(parts.backbone).__name__
        Trained(uses=_uses(parts)).save(folder / "decoder")
        write_json(folder / "vocab.json", parts.vocab.to_dict())
        write_json(folder / "defaults.json", how.model_dump(mode="json"))
        index = {name: PARTS[name] for name in PARTS if (folder / name).is_dir()}
        write_json(folder / INDEX, {"_class_name": "Cm3Pipeline", "_cm3kit_format": 1, **index})
        writes = "writes in place" if DIFFUSION in how.decoders else "writes from left to right"
        pictured = "words and pictures" if parts.vocab.image_size else "words alone"
        card = CARD.format(name=source.name, about=family.about, kind=kind, how=f"{writes}, {pictured}")
        (folder / "README.md").write_text(card, encoding="utf-8")
    return target


def _uses(parts: Parts) -> tuple[Use, ...]:
    """What a public model is used for."""
    how = parts.defaults
    if DIFFUSION in how.decoders:
        return MaskedDiffusion(parts.vocab, shift=how.diffusion.shift).uses(how.window)
    return NextToken(parts.vocab).uses(how.window)


def start_from(kind: str, folder: Path) -> list[str]:
    """Settings of a recipe that starts from a model folder, or from the folder of a public family."""
    if not (folder / INDEX).is_file():
        family = family_of(folder)
        if family is not None and family.pictures is not None:
            raise ModelError(
                f"{folder} has an image tokenizer of its own; import it first:"
                f" cm3kit model import {folder} -o FOLDER.",
                code="bad_checkpoint",
            )
        shift = (
            ["objective.diffusion.shift=true"]
            if family is not None and family.shift and kind != "cm3"
            else []
        )
        return [f"warm.source={folder}", *shift]
    settings = [f"text={folder / 'text'}", f"backbone_from={folder / 'decoder'}"]
    if (folder / "image").is_dir():
        return [*settings[:1], f"image={folder / 'image'}", *settings[1:]]
    # A public model of words alone; its mask is one that it knows.
    defaults = Defaults.of(folder)
    shifted = defaults.diffusion.shift and DIFFUSION in defaults.decoders and kind != "cm3"
    return [*settings, "mask_embedding=keep", *(["objective.diffusion.shift=true"] if shifted else [])]
