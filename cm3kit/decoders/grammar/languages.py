"""From a constraint to the language it allows in a model's tokens; the most recent ones are cached."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import cm3kit.decoders.grammar.kinds  # noqa: F401  (they register themselves)
from cm3kit.canvas import ConstraintSpec, MaskSpan
from cm3kit.decoders.grammar.byte_dfa import compile_regex, prefixed
from cm3kit.decoders.grammar.elements import CONTENT, TOP
from cm3kit.decoders.grammar.html_state import State
from cm3kit.decoders.grammar.language import Language
from cm3kit.decoders.grammar.rules import Regex, Rule, Texts, constraint
from cm3kit.decoders.grammar.token_dfa import TokenDfa
from cm3kit.decoders.grammar.token_trie import TokenArrays, TokenTrie
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab

KEPT = 16
# What HTML cannot hold, as `utf8` has it, and halves of surrogate pairs.
UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Languages:
    """Makes languages.

    Args:
        vocab: the id space.
        encode: tokens of a text, counted from 0.
        pieces: bytes of each token.
        without: bytes that no answer may hold, because the model could not be told from markup then.
    """

    def __init__(
        self,
        vocab: Vocab,
        encode: Callable[[str], Sequence[int]],
        pieces: Sequence[bytes],
        without: bytes = b"",
    ) -> None:
        self._vocab, self._encode, self._without = vocab, encode, without
        self._pieces = [None if self._barred(piece) else piece for piece in pieces]
        self._known: OrderedDict[object, dict[int, Language]] = OrderedDict()

    def of(self, spec: ConstraintSpec, end: int) -> Language:
        """The answers that a constraint allows, behind its lead, before an end id.

        Raises:
            ConfigError: the constraint is unknown (`unknown_name`), or its value cannot be used (`bad_value`).
        """
        kind = constraint[spec.kind]()
        # Which answers there are depends on the end only where that is a token of texts.
        key = (spec, end if end in self._vocab.text else None, kind.version(spec.value))
        by_end = self._known.pop(key, None)
        if by_end is None:
            rule = kind.rule(spec.value)
            if rule is None:
                raise ConfigError(
                    f"constraint {spec.kind!r} is what every gap has already; leave it out.", code="bad_value"
                )
            by_end = {end: self._make(rule, spec, end)}
        self._known[key] = by_end
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        if end not in by_end:
            by_end[end] = next(iter(by_end.values())).ending(end)
        return by_end[end]

    def _make(self, rule: Rule, spec: ConstraintSpec, end: int) -> Language:
        start, size = self._vocab.text.start, len(self._vocab)
        if isinstance(rule, Texts):
            return self._trie(rule, spec, end)
        dfa = compile_regex(rule.pattern) if isinstance(rule, Regex) else rule
        pieces = self._pieces
        if end in self._vocab.text:
            pieces = [None if start + token == end else piece for token, piece in enumerate(pieces)]
        return TokenDfa(prefixed(dfa, spec.lead.encode()), pieces, start, size, end)

    def _trie(self, rule: Texts, spec: ConstraintSpec, end: int) -> Language:
        found = _Encoded(self, rule, spec.lead, end)
        arrays = TokenArrays.of(found, self._vocab.text_size)
        notes = rule.notes
        if found.refused:
            example = found.refused[0][:60]
            line = f"{spec.kind}: {found.count:,} texts cannot be written here, such as {example!r}"
            if spec.kind == "choices" or not len(arrays):
                raise ConfigError(f"{line}; change them.", code="bad_value")
            notes = (*notes, f"{line}; they are left out.")
        if not len(arrays):
            raise ConfigError(f"{spec.kind} {spec.value[:80]!r} holds no text; give some.", code="bad_value")
        if found.total - found.count > len(arrays):
            same = found.total - found.count - len(arrays)
            notes = (*notes, f"{spec.kind}: {same:,} texts are listed more than once.")
        return TokenTrie(arrays, self._vocab.text.start, len(self._vocab), end, notes)

    def encoded(self, text: str, end: int) -> Sequence[int] | None:
        """Tokens of a text; None where it cannot be written."""
        if UNWRITABLE.search(text) or (self._without and self._without.decode() in text):
            return None
        tokens = self._encode(text)
        return None if end - self._vocab.text.start in tokens else tokens

    def _barred(self, piece: bytes) -> bool:
        control = any((byte < 0x20 and byte not in (0x09, 0x0A)) or byte == 0x7F for byte in piece)
        return control or (bool(self._without) and self._without in piece)


class _Encoded:
    """The texts of a rule as tokens, with a count of those that cannot be written."""

    def __init__(self, languages: Languages, rule: Texts, lead: str, end: int) -> None:
        self._languages, self._rule, self._lead, self._end = languages, rule, lead, end
        self.total = self.count = 0
        self.refused: list[str] = []

    def __iter__(self) -> Iterator[Sequence[int]]:
        for text in self._rule.texts:
            self.total += 1
            tokens = self._languages.encoded(self._lead + text, self._end)
            if tokens is not None:
                yield tokens
                continue
            self.count += 1
            self.refused = self.refused or [text]


def refuse_unfit(language: Language, span: MaskSpan, before: State) -> None:
    """Refuse a constraint that no answer to a gap can keep to.

    Args:
        before: where the page stands before the gap.

    Raises:
        ConfigError: the gap is a picture or the rest of a page, its place holds elements and no words, or the shortest
            answer is longer than what it may hold (`bad_value`).
    """
    assert span.constraint is not None
    named = f"gap {span.gap} ({span.constraint.kind} {span.constraint.value[:40]})"
    if span.kind in ("image", "document"):
        what = "a picture" if span.kind == "image" else "the rest of a page"
        raise ConfigError(
            f"{named} is {what}, and a constraint is about words; leave it out.", code="bad_value"
        )
    inside = before.stack[-1] if before.stack else ""
    if span.kind == "content" and "" not in (CONTENT[inside] if inside else TOP):
        raise ConfigError(f"{named} stands inside <{inside}>, which holds no words.", code="bad_value")
    if not language.fits(span.max_tokens, span.exact):
        shortest = language.shortest()
        if shortest is None:
            raise ConfigError(f"{named}: no answer keeps to it; change it.", code="bad_value")
        size = f"of exactly {span.max_tokens}" if span.exact else f"and the gap holds {span.max_tokens}"
        short = f"its shortest answer takes {shortest} tokens"
        line = (
            f"no answer is {size} tokens; {short}" if span.exact else f"{short}, {size}; raise --max-tokens"
        )
        raise ConfigError(f"{named}: {line}.", code="bad_value")
