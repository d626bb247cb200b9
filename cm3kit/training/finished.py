"""The tokenizers that a decoder's recipe names, or the command that makes a missing one."""

from __future__ import annotations

from pathlib import Path

from cm3kit.training.decoder_recipe import DecoderRecipe
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vq.absent import NoPictures
from cm3kit_tokenizers.vq.model import ImageTokenizer

TRAINS = {"text": "text", "image": "vqgan"}  # what trains each of them


def text_of(recipe: DecoderRecipe) -> TextTokenizer:
    """The text tokenizer; ModelError (`no_file`) with the command that makes one, if there is none."""
    return TextTokenizer.load(_there(recipe.text, "text", recipe))


def image_of(recipe: DecoderRecipe) -> ImageTokenizer:
    """The image tokenizer, or none for a model of words alone; see `text_of`."""
    return (
        NoPictures() if recipe.image is None else ImageTokenizer.load(_there(recipe.image, "image", recipe))
    )


def _there(folder: Path, name: str, recipe: DecoderRecipe) -> Path:
    if folder.is_dir():
        return folder
    run = folder.parent if folder.name == "final" else folder
    kind = TRAINS[name]
    if (run / "config.yaml").is_file() and run != folder:
        raise ModelError(
            f"{name} = {folder}: the training in {run} has not finished; give its command again, which resumes it.",
            code="no_file",
        )
    raise ModelError(
        f"{name} = {folder} does not exist; name a finished {name} tokenizer with --set {name}=FOLDER, or train one:"
        f" cm3kit train {kind} --set data={recipe.data} -o {run}",
        code="no_file",
    )
