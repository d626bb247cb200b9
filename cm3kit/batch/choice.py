"""Which of several candidates is kept: by the model's own likelihood, by ends, or by a CLIP model of the user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from cm3kit.decoders.hf_engine import make_engine
from cm3kit.fill import task_pages
from cm3kit.fill.batching import Order
from cm3kit.fill.kit import Filled, Kit, Result
from cm3kit.fill.layouts import LayoutParts, Room, layout
from cm3kit.objectives.spans import PRESETS
from cm3kit.registry import Registry
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError, ModelError
from cm3kit_tokenizers.pictures import load_picture


@dataclass(frozen=True, slots=True)
class Choice:
    """How good a candidate is: larger is better; `parts` say what it is made of."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def check(score: str, order: Order) -> None:
        """ConfigError (`bad_value`) if the score is not for this kind of results."""
        kind = "infill" if order.page is not None else order.task
        if score.partition(":")[0] != "ends" and kind not in ("image", "caption", "pair"):
            raise ConfigError(
                f"the score {score!r} compares a picture with words, and the task is {kind!r}; use ends.",
                code="bad_value",
            )


class Judge(Protocol):
    """Scores one candidate."""

    def __call__(self, order: Order, made: Result | Filled) -> Choice:
        """How good it is."""


judge: Registry[Callable[[Kit, str], Judge]] = Registry("score")
"""Makes a judge of a model, and of what stands behind the name and a colon."""


class Selector:
    """A judge by name: `likelihood`, `ends`, or `clip:FOLDER`."""

    def __init__(self, kit: Kit, name: str) -> None:
        kind, _, what = self.check(name)
        self._judge = judge[kind](kit, what)

    @staticmethod
    def check(name: str) -> tuple[str, str, str]:
        """Name, colon and what is behind it; ConfigError (`unknown_name`) if there is no such score."""
        parts = name.partition(":")
        judge[parts[0]]
        return parts

    def score(self, order: Order, made: Result | Filled) -> Choice:
        """How good a candidate is."""
        return self._judge(order, made)


@judge("ends")
class Ends:
    """The share of texts that ended by themselves; among equals, the log-probability."""

    def __init__(self, kit: Kit, what: str) -> None:
        pass

    def __call__(self, order: Order, made: Result | Filled) -> Choice:
        """A share of 1 beats any smaller one; log-probabilities are squeezed into what is between."""
        gaps = made.gaps if isinstance(made, Filled) else [made]
        ended = sum(each.ended for each in gaps) / max(1, len(gaps))
        logprob = sum(each.logprob for each in gaps)
        return Choice(ended * (len(gaps) + 1) + 1 / (1 - logprob), {"ended_share": ended})


@judge("likelihood")
class Likelihood:
    """log p(picture | words) + log p(words | picture), both by the causal decoder itself.

    The first reads the picture behind its words, as it is drawn; the second the words as CM3's masked caption
    (arXiv:2201.07520, sec. 4.2.3), with their end. Neither sees guidance, temperature or cuts.
    """

    def __init__(self, kit: Kit, what: str) -> None:
        if "cm3" not in kit.parts.defaults.decoders:
            raise ConfigError(
                f"the score 'likelihood' needs the decoder 'cm3', which {kit.parts.name!r} was not trained for;"
                " use ends or clip:FOLDER.",
                code="bad_value",
            )
        self._kit = kit
        self._engine = make_engine(kit.backbone, len(kit.vocab), "fp32", 64)
        built = LayoutParts(kit.vocab, kit.tokenizer, span_end=PRESETS[kit.parts.defaults.preset].end)
        self._behind, self._continue = layout["behind"](built), layout["continue"](built)

    def __call__(self, order: Order, made: Result | Filled) -> Choice:
        """The sum of both."""
        assert isinstance(made, Result)
        words, codes = (
            _words(order, made),
            made.codes or tuple(self._kit.encode_picture(_picture(order, made))),
        )
        picture, caption = self.picture_given_words(words, codes), self.words_given_picture(words, codes)
        return Choice(picture + caption, {"picture_given_words": picture, "words_given_picture": caption})

    def picture_given_words(self, words: str, codes: Sequence[int]) -> float:
        """log p of the codes, in nats."""
        vocab = self._kit.vocab
        ids = self._kit.tokenizer.encode(task_pages.image_nodes(words))
        canvas = self._continue.lay_out(
            ids, lambda gap: Room(len(codes), True), reaches=(True, True), guided=False, seed=0
        )
        return self._logprob(canvas.ids, [vocab.image.start + code for code in codes])

    def words_given_picture(self, words: str, codes: Sequence[int]) -> float:
        """log p of the words and their end, in nats."""
        kit, vocab = self._kit, self._kit.vocab
        ids = kit.tokenizer.encode(task_pages.caption_nodes(codes))
        canvas = self._behind.lay_out(
            ids, lambda gap: Room(1, False), reaches=(True, True), guided=False, seed=0
        )
        (span,) = canvas.spans
        asked = kit.tokenizer.encode(task_pages.image_nodes(words))
        text = [each for each in asked if not isinstance(each, Gap) and each in vocab.text]
        return self._logprob((*canvas.ids, *span.lead), [*text, span.end or vocab.eoss])

    def _logprob(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        logits_TV = self._engine.score([*prompt, *answer])[len(prompt) - 1 : -1]
        answer_T = torch.tensor(answer, device=logits_TV.device)
        return float(logits_TV.log_softmax(-1).gather(-1, answer_T[:, None]).sum(dtype=torch.float64))


@judge("clip")
class Clip:
    """Cosine between picture and words by a CLIP model (arXiv:2103.00020) in a folder of the user's."""

    def __init__(self, kit: Kit, what: str) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        if not what or not Path(what).is_dir():
            raise ConfigError(
                f"clip:{what} names no folder; give clip:FOLDER of a CLIP model.", code="bad_value"
            )
        try:
            self._model = CLIPModel.from_pretrained(what, local_files_only=True, use_safetensors=True)
            self._words = AutoTokenizer.from_pretrained(what, local_files_only=True)
            self._pictures = CLIPImageProcessor.from_pretrained(what, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())[:160]
            raise ModelError(f"{what} is no usable CLIP model: {line}.", code="bad_checkpoint") from error
        self._model = self._model.eval().to(kit.device)

    @torch.no_grad()
    def __call__(self, order: Order, made: Result | Filled) -> Choice:
        """The cosine, in [-1, 1]."""
        assert isinstance(made, Result)
        text = self._words([_words(order, made)], return_tensors="pt", padding=True, truncation=True)
        pixels = self._pictures([_picture(order, made).convert("RGB")], return_tensors="pt")
        given: dict[str, Any] = {**text, **pixels}
        device = self._model.device
        out = self._model(
            **{name: value.to(device) for name, value in given.items() if name != "token_type_ids"}
        )
        return Choice(float((out.image_embeds * out.text_embeds).sum()))


def _words(order: Order, made: Result) -> str:
    return made.text or "" if order.task in ("caption", "pair") else " ".join(str(order.prompt).split())


def _picture(order: Order, made: Result) -> Image.Image:
    """The picture that was made, or that the caption is of."""
    if made.image is not None:
        return made.image
    given = order.prompt
    return load_picture(given if isinstance(given, bytes) else Path(str(given)).read_bytes())
