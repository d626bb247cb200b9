"""Previews of a decoder in training: a sheet of pictures from prompts, and a page with its gaps filled."""

from __future__ import annotations

from html import escape
from pathlib import Path

from transformers import PreTrainedModel

from cm3kit.fill.defaults import Defaults
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.parts import Parts
from cm3kit.images import grid
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

LEAST = 192  # pixels of a side of a tile, so that its caption can be read
PAGE = b"<title><mask></title>\n<h1>%s</h1>\n<p><mask></p>\n"
PICTURE = b'<p><img alt="%s" src="<mask>"></p>\n'


def preview(
    text: TextTokenizer, image: ImageTokenizer, vocab: Vocab, backbone: PreTrainedModel,
    defaults: Defaults, prompts: tuple[str, ...], path: Path,
) -> None:  # fmt: skip
    """Write `path`.png, two pictures per prompt, and `path`.html, a page about the first prompt, if there is one.

    A model of words alone writes only the latter.
    """
    if not prompts:
        return
    training = backbone.training
    kit = Kit(
        Parts("preview", path.parent, text, image, vocab, backbone.eval(), defaults), str(backbone.device)
    )
    options = GenerateOptions(batch_size=8)
    if image.size:
        made = [(prompt, each) for prompt in prompts for each in kit.generate(prompt, n=2, options=options)]
        pictures = [each.image for _, each in made if each.image is not None]
        sheet = grid(pictures, 2 * min(2, len(prompts)), [name for name, _ in made], LEAST)
        sheet.save(path.with_suffix(".png"))
    if defaults.layout == "continue" and defaults.decoders == ("cm3",):
        backbone.train(training)
        return  # such a model fills no gaps
    word = escape(prompts[0]).encode()
    page = PAGE % word + (PICTURE % word if image.size else b"")
    path.with_suffix(".html").write_bytes(kit.infill(Page.parse(page), options=options)[0].html)
    backbone.train(training)
