"""Choice among candidates: by the model's likelihood, by ends, or by a CLIP model of the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from cm3kit.fill import task_pages
from cm3kit.fill.batching import Order
from cm3kit.fill.fillers import ScoreHow
from cm3kit.fill.kit import Filled, GenerateOptions, Kit, Result
from cm3kit.fill.scoring import PageScorer
from cm3kit.registry import Registry
from cm3kit_tokenizers.document import Image as Codes
from cm3kit_tokenizers.document import Node, Text
from cm3kit_tokenizers.errors import ConfigError, ModelError
from cm3kit_tokenizers.pictures import load_picture

DEFAULT = "likelihood"


@dataclass(frozen=True, slots=True)
class Choice:
    """Score of a candidate, larger is better, with its components in `parts`."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def check(score: str, order: Order) -> None:
        """ConfigError (`bad_value`) if the score does not apply to the task of the order."""
        kind = "infill" if order.page is not None else order.task
        name = score.partition(":")[0]
        seen = ("image", "caption", "pair", *(("infill",) if name == "likelihood" else ()))
        if name != "ends" and kind not in seen:
            raise ConfigError(
                f"the score {score!r} compares a picture with text, but the task is {kind!r}; use ends.",
                code="bad_value",
            )


class Judge(Protocol):
    """Scores one candidate."""

    def __call__(self, order: Order, made: Result | Filled) -> Choice:
        """The candidate's score."""


judge: Registry[Callable[[Kit, str], Judge]] = Registry("score")
"""Creates a judge from a model and the text after the colon of the score's name."""


class Selector:
    """A judge by name: `likelihood`, `ends`, or `clip:FOLDER`."""

    def __init__(self, kit: Kit, name: str) -> None:
        kind, _, what = self.check(name)
        self._judge = judge[kind](kit, what)

    @staticmethod
    def check(name: str, best_of: int = 2) -> tuple[str, str, str]:
        """Name, colon and the rest; ConfigError if there is no such score, or nothing to choose from."""
        parts = name.partition(":")
        judge[parts[0]]
        if best_of == 1 and name != DEFAULT:
            raise ConfigError(
                f"the score {name!r} chooses among several samples; give --best-of 2 or more.",
                code="bad_value",
            )
        return parts

    def score(self, order: Order, made: Result | Filled) -> Choice:
        """Score of a candidate."""
        return self._judge(order, made)


Chosen = tuple[Order, Result | Filled | Exception, Mapping[str, Any]]
"""A candidate with its order, and for the manifest why it was kept."""


def choose(
    candidates: Sequence[tuple[Order, Result | Filled | Exception]], selector: Selector | None
) -> Chosen:
    """The candidate to keep and its score; an error only if all candidates failed."""
    ordered = sorted(candidates, key=lambda each: each[0].index)
    usable = [each for each in ordered if not isinstance(each[1], Exception)]
    if selector is None or not usable:
        return (*ordered[0], {})
    scored = [(selector.score(order, made), order, made) for order, made in usable]  # type: ignore[arg-type]
    best = max(range(len(scored)), key=lambda place: scored[place][0].value)
    choice, order, made = scored[best]
    return order, made, {"score": choice.value, **choice.parts, "candidates": len(candidates)}


@judge("ends")
class Ends:
    """The share of texts that ended by themselves; ties are broken by the log-probability."""

    def __init__(self, kit: Kit, what: str) -> None:
        pass

    def __call__(self, order: Order, made: Result | Filled) -> Choice:
        """The share, plus the log-probability mapped into less than the distance between two shares."""
        gaps = made.gaps if isinstance(made, Filled) else [made]
        ended = sum(each.ended for each in gaps) / max(1, len(gaps))
        logprob = sum(each.logprob for each in gaps)
        return Choice(ended * (len(gaps) + 1) + 1 / (1 - logprob), {"ended_share": ended})


@judge("likelihood")
class Likelihood:
    """As `Kit.score`: log p(picture | words) + log p(words | picture) of a picture and its words, both by the
    causal decoder; of all else log p of what was written, by the decoder that wrote it.

    The first scores the picture after its words, in the order of generation; the second scores the words and their end
    as CM3's masked caption (arXiv:2201.07520, sec. 4.2.3). All are without guidance, temperature and truncation.
    """

    def __init__(self, kit: Kit, what: str) -> None:
        self._kit = kit

    def __call__(self, order: Order, made: Result | Filled) -> Choice:
        """The sum of both log-probabilities, or of those of all answers."""
        if isinstance(made, Filled):
            return self._filled(order, made)
        assert isinstance(made, Result)
        if "cm3" not in self._kit.parts.defaults.decoders:
            raise ConfigError(
                f"the score 'likelihood' of pictures needs the decoder 'cm3', which {self._kit.parts.name!r} was not"
                " trained for; use ends or clip:FOLDER.",
                code="bad_value",
            )
        words, codes = (
            _words(order, made),
            made.codes or tuple(self._kit.encode_picture(_picture(order, made))),
        )
        picture, caption = self.picture_given_words(words, codes), self.words_given_picture(words, codes)
        return Choice(picture + caption, {"picture_given_words": picture, "words_given_picture": caption})

    def _filled(self, order: Order, made: Filled) -> Choice:
        """log p of a page's answers; what a left-to-right decoder wrote it has scored already."""
        assert order.page is not None
        if made.trace is None:
            return Choice(sum(gap.logprob for gap in made.gaps))
        # What was written in any order was scored in its own; candidates are compared in one and the same way.
        scorer = PageScorer.of_fills(self._kit, order.page, [made], order.options, ScoreHow())
        (found,) = scorer.score(False, lambda done, total: None)
        parts = {"stderr": found.stderr} if found.method == "bound" else {}
        return Choice(found.logprob, parts)

    def picture_given_words(self, words: str, codes: Sequence[int]) -> float:
        """log p of the codes, in nats."""
        return self._logprob(task_pages.image_nodes(words), [Codes(tuple(codes))])

    def words_given_picture(self, words: str, codes: Sequence[int]) -> float:
        """log p of the words and their end, in nats."""
        return self._logprob(task_pages.caption_nodes(codes), [Text(words)])

    def _logprob(self, nodes: Sequence[Node], answer: Sequence[Node]) -> float:
        kit, options = self._kit, GenerateOptions(decoder="cm3")
        filler, ids = kit.filler(options), kit.tokenizer.encode(nodes)
        given = tuple(id for id in kit.tokenizer.encode(answer) if isinstance(id, int))
        words = isinstance(answer[0], Text)
        roomy = replace(options, max_tokens=len(given) + 1) if words else options
        canvas = filler.task("caption" if words else "image", ids, roomy, 0)
        (span,) = canvas.spans
        asked = replace(canvas, spans=(replace(span, answer=given),), guides=())
        (found,) = filler.score([asked], roomy, ScoreHow(), lambda done, total: None)
        return found.logprob


@judge("clip")
class Clip:
    """Cosine between picture and text by a CLIP model (arXiv:2103.00020) from a local folder."""

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
            raise ModelError(f"{what} is not a usable CLIP model: {line}.", code="bad_checkpoint") from error
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
    """The generated picture, or the one that is captioned."""
    if made.image is not None:
        return made.image
    given = order.prompt
    return load_picture(given if isinstance(given, bytes) else Path(str(given)).read_bytes())
