"""Models in lm-evaluation-harness: `lm_eval --model cm3kit --model_args pretrained=emoji --tasks …`.

Importing this module registers the name; versions of lm-eval that look for entry points of `lm_eval.models` find it
themselves. Texts are read as they are, with no page around them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

import cm3kit
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.scoring import Scored
from cm3kit.decoders.settings import DecoderName
from cm3kit.fill.fillers import ModelContext, ScoreHow
from cm3kit.fill.kit import FILLERS, GenerateOptions, Kit
from cm3kit.fill.options import chosen_decoder
from cm3kit.fill.scoring import sequence_canvases, word_ids
from cm3kit.rng import stream
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.document import Gap, Text
from cm3kit_tokenizers.errors import ConfigError

LOG = logging.getLogger(__name__)
# Requests that are scored between two reports of progress; those of one context share its prefill.
GROUP = 128
# Tokens that a causal decoder writes before a text is searched for what ends it; then twice as many.
FIRST = 32
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_p", "top_k")


@dataclass(slots=True)
class _Text:
    """A text that is being written: what the model reads, what it wrote, and whether it came to an end."""

    known: list[int]
    written: list[int]
    number: int
    done: bool = False


@register_model("cm3kit")
class Cm3kitLM(LM):  # type: ignore[misc]
    """A model folder or a public model behind the interface of lm-eval.

    Args:
        pretrained: name or folder of the model, as `cm3kit.load` takes it.
        decoder: cm3 or diffusion; unless given, the first that the model has.
        method: how a diffusion decoder is scored: auto, left-to-right, or bound.
        rounds: random masks of a bound.
        device: auto, cpu, cuda, …
        batch_size: texts that are written at once; it changes none of them.
        max_gen_toks: tokens of the longest text, where a task does not say.
        seed: of what is drawn, where a task samples.

    Raises:
        ConfigError: an option is out of range, or the model does not have the decoder. ModelError: see `cm3kit.load`.
    """

    def __init__(
        self, pretrained: str | Kit | None = None, decoder: DecoderName | None = None,
        method: Literal["auto", "exact", "left-to-right", "bound"] = "auto", rounds: int = 64, device: str = "auto",
        batch_size: int | str | None = None, max_batch_size: int | None = None, max_gen_toks: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self._told: set[str] = set()
        if device.startswith("cuda") and not torch.cuda.is_available():
            # lm-eval's command passes cuda:0 where no device was given.
            self._tell(f"{device} is not available; another device is used.")
            device = "auto"
        self.kit = pretrained if isinstance(pretrained, Kit) else cm3kit.load(pretrained, device=device)
        parts, vocab = self.kit.parts, self.kit.vocab
        size = int(batch_size) if batch_size is not None and str(batch_size).isdigit() else max_batch_size
        # A public model reads words as they are in the style that adds nothing to them.
        style: Literal["plain"] | None = "plain" if parts.public else None
        self.options = GenerateOptions(decoder=decoder, batch_size=size, prompt_style=style)
        self._name = chosen_decoder(parts.defaults, self.options, parts.name)
        # Texts are no pages, so nothing that would come out escaped is left out of them.
        grammar = Grammar(vocab, 0, self.kit.text.pieces)
        self._filler = FILLERS[self._name](ModelContext(parts, self.kit.tokenizer, grammar))
        self._how, self._most, self._seed = ScoreHow(method, rounds, spelt=True), max_gen_toks, seed
        self._device = self.kit.device

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p of each continuation in nats, and whether each of its tokens is the most likely; see `LM`.

        A context that leaves no room for the continuation loses its beginning.
        """
        out = []
        for found in self._scored([request.args for request in requests], disable_tqdm):
            greedy = [each.greedy for each in found]
            if None in greedy:
                self._tell(
                    "a bound does not say whether a continuation is the most likely one, so that accuracies by greedy"
                    " decoding are 0; use method=left-to-right for these."
                )
            out.append((sum(each.logprob for each in found), all(greedy)))
        for request, answer in zip(requests, out, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return out

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts in nats, each token once, behind as much as fits; see `LM`."""
        pairs = [("", request.args[0]) for request in requests]
        out = [sum(each.logprob for each in found) for found in self._scored(pairs, disable_tqdm)]
        for request, answer in zip(requests, out, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return out

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to what ends it; see `LM`."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        with tqdm(total=len(requests), desc="cm3kit generate_until", disable=disable_tqdm) as bar:
            for numbers in groups.values():
                size = self.options.batch_size or 16
                for start in range(0, len(numbers), size):
                    some = numbers[start : start + size]
                    contexts = {number: str(requests[number].args[0]) for number in some}
                    found |= self._write(contexts, requests[some[0]].args[1])
                    bar.update(len(some))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[number])
        return [found[number] for number in range(len(requests))]

    @property
    def tokenizer_name(self) -> str:
        """The key of cached requests."""
        return f"cm3kit-{self.kit.parts.text.sha256}"

    def _scored(self, pairs: Sequence[tuple[str, str]], quiet: bool) -> list[list[Scored]]:
        """The pieces of each second text, scored behind the first; none of an empty one."""
        window, cut = self.kit.parts.defaults.window, 0
        canvases: list[tuple[int, Canvas]] = []
        for number, (before, after) in enumerate(pairs):
            # Tokens carry the space before a word: one that ends the context is the continuation's.
            bare = before.rstrip(" ")
            context, ids = word_ids(self.kit, bare, before[len(bare) :] + after)
            if 0 < len(ids) < window < len(context) + len(ids):
                context, cut = context[len(context) + len(ids) - window :], cut + 1
            pieces = sequence_canvases(window, context, ids, self.kit.vocab.eoss) if ids else []
            canvases += [(number, each) for each in pieces]
        if cut:
            LOG.warning(
                "%d of %d contexts lost their beginning: the model's window is %d.", cut, len(pairs), window
            )
        out: list[list[Scored]] = [[] for _ in pairs]
        with tqdm(total=len(canvases), desc="cm3kit loglikelihood", disable=quiet) as bar:
            for start in range(0, len(canvases), GROUP):
                some = canvases[start : start + GROUP]
                scored = self._filler.score(
                    [each for _, each in some], self.options, self._how, lambda done, total: None
                )
                for (number, _), each in zip(some, scored, strict=True):
                    out[number].append(each)
                bar.update(len(some))
        return out

    def _write(self, contexts: Mapping[int, str], asked: Mapping[str, Any]) -> dict[int, str]:
        """Texts behind contexts, all under the same options."""
        options, stops, most = self._asked(asked)
        window, eod = self.kit.parts.defaults.window, self.kit.vocab.eod
        if most >= window:
            self._tell(
                f"texts of {most} tokens do not fit the model's window of {window}; they end at {window // 2}."
            )
            most = window // 2
        texts = []
        for number, context in contexts.items():
            known = [eod, *self.kit.tokenizer.text_ids(context)]
            if len(known) + most + 1 > window:
                self._tell(f"contexts lost their beginning: the model's window is {window}.")
            texts.append(_Text(known[-(window - most - 1) :], [], number))
        chunk = FIRST if self._name == "cm3" else most
        while left := [each for each in texts if not each.done]:
            self._go_on(left, chunk, most, options, stops)
            chunk *= 2
        return {each.number: until(self._words(each.written), stops) for each in texts}

    def _go_on(
        self, texts: Sequence[_Text], chunk: int, most: int, options: GenerateOptions, stops: Sequence[str]
    ) -> None:
        """Write some more of texts that stand at one and the same length."""
        canvases = []
        for each in texts:
            known, size = (*each.known, *each.written), min(chunk, most - len(each.written))
            canvases.append(Canvas(known, (self._span(len(known), size, options),), seed=self._stream(each)))
        for each, result in zip(
            texts, self._filler.fill(canvases, options, lambda done, total: None), strict=True
        ):
            (fill,) = result.fills
            each.written += fill.ids
            stopped = any(stop in self._words(each.written) for stop in stops)
            each.done = fill.ended or stopped or len(each.written) >= most or not fill.ids

    def _span(self, at: int, size: int, options: GenerateOptions) -> MaskSpan:
        """Words behind all that is known, and what closes them: the end of a page, or of an answer."""
        vocab = self.kit.vocab
        if self._name == "cm3":
            return MaskSpan("attribute", at, size, end=vocab.eod, ends=(vocab.eoss,), may_be_empty=True)
        room = self._filler.room(Gap(0, "attribute"), replace(options, max_tokens=size))
        return MaskSpan("attribute", at, room.max_tokens, room.exact, room.slots, end=vocab.eoss)

    def _asked(self, asked: Mapping[str, Any]) -> tuple[GenerateOptions, list[str], int]:
        """Options of a request, what ends its text, and its longest."""
        given = dict(asked)
        stops = given.pop("until", None) or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        limits = [given.pop(name) for name in LIMITS if name in given]
        most = int(next((each for each in limits if each is not None), self._most))
        drawn = {name: given.pop(name) for name in SAMPLING if name in given}
        samples = bool(given.pop("do_sample", (drawn.get("temperature") or 0) > 0))
        drawn = {"temperature": 1.0, **drawn} if samples else {"temperature": 0.0}
        if given:
            self._tell(f"options of generation that are not known here are left out: {', '.join(given)}.")
        options = replace(self.options, **drawn)
        options.check()
        if most < 1:
            raise ConfigError(f"max_gen_toks {most}: at least 1.", code="bad_value")
        return options, [each for each in stops if each], most

    def _words(self, ids: Sequence[int]) -> str:
        nodes = self.kit.tokenizer.decode(ids)
        return "".join(each.content for each in nodes if isinstance(each, Text))

    def _stream(self, text: _Text) -> int:
        return stream(self._seed, text.number, len(text.written))

    def _tell(self, line: str) -> None:
        """Say something once."""
        if line not in self._told:
            self._told.add(line)
            LOG.warning("%s", line)


def until(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of what ends it."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text
