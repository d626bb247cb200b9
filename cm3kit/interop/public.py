"""Public models of text as they were downloaded: their rows at our ids, and pages put to them in their own tokens."""

from __future__ import annotations

from pathlib import Path

from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.settings import DecodeConfig, Sampling
from cm3kit.fill.folder import DIFFUSION, INDEX, Defaults, DiffusionDefaults, Parts, try_out
from cm3kit.fill.openers import Opener, named, openers
from cm3kit.fill.styles import TURN_END, TURN_START, ChatTemplate
from cm3kit.models.families import Family, family_of, read_config
from cm3kit.models.gguf import gguf_file
from cm3kit.models.transplant import borrow_text, load_transplanted
from cm3kit.objectives.masked_diffusion import MaskedDiffusion
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.absent import NoPictures

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
        " together with model assemble, or train on from it with --backbone.",
        code="unknown_model",
    )


def open_public(source: Path) -> Parts:
    """A folder of a public family, or a causal decoder by folder, GGUF file or name.

    Raises:
        ModelError: a tensor is missing, extra or mis-shaped, the tokenizer is no byte-level BPE, or what is computed
            here is not what the model computes (`bad_checkpoint`).
    """
    family = family_of(source)
    return _causal(source) if family is None else _diffusion(source, family)


def _diffusion(folder: Path, family: Family) -> Parts:
    """A folder of a public family of masked-diffusion models, its rows moved to our ids; it has no pictures.

    Raises:
        ModelError: a tensor is missing, extra or mis-shaped, or the tokenizer is no byte-level BPE (`bad_checkpoint`).
    """
    borrowed = borrow_text(str(folder))
    vocab = Vocab(borrowed.text.size, 0)
    backbone = load_transplanted(borrowed, vocab, 1, dtype="auto")
    known = int(backbone.config.max_position_embeddings)
    chat = None
    if family.chat is not None:
        chat = ChatTemplate(before=family.chat.before, after=family.chat.after)
    config = presets[family.preset].config(batch_size=1)
    # A page is longer in its spelling than in our ids.
    window = max(16, min(MOST, known // 2))
    (use,) = MaskedDiffusion(vocab, shift=family.shift).uses(window)
    diffusion = DiffusionDefaults(
        image=config, text=config, mixed=config, shift=use.shift, objective=use.objective
    )
    defaults = Defaults(
        window=window,
        decoders=(DIFFUSION,),
        diffusion=diffusion,
        prompt_style="page",
        chat=chat,
    )
    try_out(backbone, folder, defaults)
    return Parts(named(folder), folder, borrowed.text, NoPictures(), vocab, backbone, defaults)


def _causal(source: Path) -> Parts:
    """A public causal decoder, by folder, GGUF file or name, its rows moved to our ids; it has no pictures.

    Raises:
        ModelError: a tensor is missing, extra or mis-shaped, the tokenizer is no byte-level BPE, or what is computed
            here is not what the model computes (`bad_checkpoint`).
    """
    borrowed = borrow_text(str(source))
    vocab = Vocab(borrowed.text.size, 0)
    backbone = load_transplanted(borrowed, vocab, 1)
    known = getattr(backbone.config, "max_position_embeddings", MOST)
    chat = None
    if TURN_END in borrowed.specials:
        chat = ChatTemplate(before=(TURN_START, "user\n"), after=(TURN_END, "\n", TURN_START, "assistant\n"))
    text = DecodeConfig(text=Sampling(temperature=0.7, top_p=0.9), batch_size=1)
    defaults = Defaults(window=max(16, min(MOST, int(known))), text=text, prompt_style="page", chat=chat)
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
