"""Public models as they were downloaded: their embedding rows moved to our ids, and pages spelt in their own tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.settings import DecodeConfig, Sampling
from cm3kit.fill.defaults import DIFFUSION, Defaults, DiffusionDefaults
from cm3kit.fill.openers import Opener, openers, try_out
from cm3kit.fill.parts import Parts
from cm3kit.fill.runs import INDEX, named
from cm3kit.fill.styles import TURN_END, TURN_START, ChatTemplate, PictureMarks
from cm3kit.models.families import Family, family_of, read_config
from cm3kit.models.gguf import gguf_file
from cm3kit.models.quantized import Format, split_format
from cm3kit.models.transplant import Borrowed, borrow_text, load_transplanted
from cm3kit.objectives.masked_diffusion import MaskedDiffusion
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.absent import NoPictures
from cm3kit_tokenizers.vq.model import ImageTokenizer

AS_IT_STANDS = {"objective": {"name": "next-token"}}  # the objective that scores a public causal model
MOST = 2048  # ids of a row of a public model, unless it sees fewer


def is_public(wanted: str) -> bool:
    """Whether a name is that of a public model of text: a folder with its tokenizer, a GGUF file, or one by name.

    Raises:
        ModelError: it is a folder of weights without a tokenizer (`unknown_model`).
        ConfigError: it is one by name whose package is not installed (`missing_extra`).
    """
    folder = Path(wanted)
    if gguf_file(wanted) is not None:
        return True
    if (raw := read_config(folder)) is None:
        return False
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return True
    raise ModelError(
        f"{wanted} holds weights of {raw.get('model_type')!r} without a tokenizer and no {INDEX}; put its parts"
        " together with model assemble, or train from it with --backbone.",
        code="unknown_model",
    )


def open_public(source: Path) -> Parts:
    """A folder of a public family, or a causal decoder by folder, GGUF file or name.

    Raises:
        ModelError: a tensor is missing, extra or mis-shaped, the tokenizer is no byte-level BPE, or what is computed
            here is not what the model computes (`bad_checkpoint`).
    """
    base, quantize = split_format(str(source))
    folder = Path(base)
    family = family_of(folder)
    if family is None:
        parts = _causal(folder, quantize)
    elif family.decoder == DIFFUSION:
        parts = _diffusion(folder, family, quantize)
    else:
        parts = _causal_family(folder, family, quantize)
    return parts if quantize is None else replace(parts, name=f"{parts.name}:{quantize}")


def _diffusion(folder: Path, family: Family, quantize: Format | None) -> Parts:
    """A folder of a public family of masked-diffusion models, its rows moved to our ids."""
    borrowed, image, backbone = _moved_in(folder, family, quantize)
    config = presets[family.preset].config(batch_size=1)
    known = int(backbone.config.max_position_embeddings)
    vocab = Vocab(borrowed.text.size, image.size)
    # A page is longer in its spelling than in our ids.
    window = max(16, min(MOST, known // 2))
    (use,) = MaskedDiffusion(vocab, shift=family.shift).uses(window)
    told = {"image": config, "text": config, "mixed": config, "shift": use.shift, "objective": use.objective}
    own = dict(family.defaults)
    fields: dict[str, Any] = {
        "window": window,
        "decoders": (DIFFUSION,),
        "prompt_style": "page",
        "chat": _chat(family),
    }
    fields |= {"diffusion": DiffusionDefaults.model_validate({**told, **own.pop("diffusion", {})}), **own}
    defaults = Defaults.model_validate(fields)
    try_out(backbone, folder, defaults)
    return Parts(named(folder), folder, borrowed.text, image, vocab, backbone, defaults)


def _causal_family(folder: Path, family: Family, quantize: Format | None) -> Parts:
    """A folder of a public family of causal models, with pictures where it writes some."""
    borrowed, image, backbone = _moved_in(folder, family, quantize)
    marks = None
    if (told := family.pictures) is not None:
        marks = PictureMarks(begin=told.begin, end=told.end, start=(Vocab.eod,))
    fields: dict[str, Any] = {
        "prompt_style": "page",
        "chat": _chat(family),
        "pictures": marks,
        **AS_IT_STANDS,
    }
    fields |= {"window": max(16, int(backbone.config.max_position_embeddings)), **family.defaults}
    defaults = Defaults.model_validate(fields)
    try_out(backbone, folder, defaults)
    vocab = Vocab(borrowed.text.size, image.size)
    return Parts(named(folder), folder, borrowed.text, image, vocab, backbone, defaults)


def _moved_in(
    folder: Path, family: Family, quantize: Format | None
) -> tuple[Borrowed, ImageTokenizer, PreTrainedModel]:
    """The text tokenizer, the image tokenizer and the weights of a folder, its rows at our ids."""
    borrowed = borrow_text(str(folder))
    image: ImageTokenizer = NoPictures()
    if family.pictures is not None:
        image = family.pictures.open(folder, read_config(folder) or {})
        if image.size != len(borrowed.codes):
            raise ModelError(
                f"{folder}: the image tokenizer has {image.size:,} codes, and the text tokenizer names"
                f" {len(borrowed.codes):,}; the files are of different models.",
                code="bad_checkpoint",
            )
    vocab = Vocab(borrowed.text.size, image.size)
    return borrowed, image, load_transplanted(borrowed, vocab, 1, dtype="auto", quantize=quantize)


def _chat(family: Family) -> ChatTemplate | None:
    told = family.chat
    return None if told is None else ChatTemplate(before=told.before, after=told.after, end=told.end)


def _causal(source: Path, quantize: Format | None) -> Parts:
    """A public causal decoder, by folder, GGUF file or name, its rows moved to our ids; it has no pictures.

    Raises:
        ModelError: a tensor is missing, extra or mis-shaped, the tokenizer is no byte-level BPE, or what is computed
            here is not what the model computes (`bad_checkpoint`).
    """
    borrowed = borrow_text(str(source))
    vocab = Vocab(borrowed.text.size, 0)
    backbone = load_transplanted(borrowed, vocab, 1, quantize=quantize)
    known = getattr(backbone.config, "max_position_embeddings", MOST)
    chat = None
    if TURN_END in borrowed.specials:
        chat = ChatTemplate(before=(TURN_START, "user\n"), after=(TURN_END, "\n", TURN_START, "assistant\n"))
    text = DecodeConfig(text=Sampling(temperature=0.7, top_p=0.9), batch_size=1)
    fields: dict[str, Any] = {"window": max(16, min(MOST, int(known))), "text": text, "chat": chat}
    defaults = Defaults(**fields, **AS_IT_STANDS, prompt_style="page")
    try_out(backbone, source, defaults)
    file = gguf_file(str(source))
    folder = source if file is None else file.parent
    return Parts(source.stem, folder, borrowed.text, NoPictures(), vocab, backbone, defaults)


class Public(Opener):
    """Public models among the models that `load` opens."""

    def find(self, wanted: str) -> Path | None:
        """A folder, a GGUF file, or what a package carries."""
        return Path(wanted) if is_public(wanted) else None

    def open(self, source: Path) -> Parts:
        """Its parts, see `open_public`."""
        return open_public(source)


openers("public")(Public())
