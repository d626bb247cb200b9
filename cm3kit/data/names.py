"""Emoji names, groups, keywords, and which names are held out of training."""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cm3kit_tokenizers.errors import DataError

Split = Literal["train", "tone", "rest"]

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
_TONE = re.compile(r"\b(medium-light|medium-dark|light|medium|dark) skin tone\b")
_LINE = re.compile(r"^(?P<codes>[0-9A-F ]+?)\s*; (?P<status>[a-z-]+)\s*# \S+ E[0-9.]+ (?P<name>.+)$")
# Held out: coloured shapes and clock times that a model must compose from others.
COMPOSED = frozenset(
    {
        "green circle",
        "purple square",
        "blue heart",
        "orange heart",
        "red square",
        "six-thirty",
        "three o'clock",
        "nine-thirty",
        "twelve o'clock",
    }
)


@dataclass(frozen=True, slots=True)
class Name:
    """One named character sequence of emoji-test.txt."""

    name: str
    characters: str
    group: str
    subgroup: str

    @property
    def codepoints(self) -> tuple[int, ...]:
        """The characters as numbers."""
        return tuple(map(ord, self.characters))

    @property
    def tones(self) -> tuple[str, ...]:
        """Skin tones in the name, in order."""
        return tuple(_TONE.findall(self.name))

    @property
    def base(self) -> str:
        """The name without its skin tones."""
        head, _, tail = self.name.partition(": ")
        kept = [part for part in tail.split(", ") if part and not _TONE.fullmatch(part)]
        return f"{head}: {', '.join(kept)}" if kept else head


def read_names(path: Path) -> list[Name]:
    """Fully qualified and component names of a Unicode emoji-test.txt, in file order."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; it comes from the package unicode-data.", code="no_file")
    names: list[Name] = []
    group = subgroup = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif (found := _LINE.match(line)) and found["status"] in ("fully-qualified", "component"):
            characters = "".join(chr(int(code, 16)) for code in found["codes"].split())
            names.append(Name(found["name"].replace("’", "'"), characters, group, subgroup))
    return names


def splits(names: Iterable[Name]) -> dict[str, Split]:
    """Split of each name: training, or held out as a skin tone or otherwise.

    With h = SHA-256 of the UTF-8 name: of a base that comes in five single tones, the tone number
    h(base)[1] mod 5 is held out if h(base)[0] < 51; of all other names, those with h(name)[0] < 13;
    and the names of `COMPOSED`.
    """
    names = list(names)
    tones: dict[str, set[str]] = defaultdict(set)
    for each in names:
        if len(each.tones) == 1:
            tones[each.base].add(each.tones[0])
    return {each.name: _split(each, len(tones[each.base]) == 5) for each in names}


def _split(each: Name, in_five_tones: bool) -> Split:
    if in_five_tones and len(each.tones) == 1:
        first, second = hashlib.sha256(each.base.encode()).digest()[:2]
        return "tone" if first < 51 and TONES.index(each.tones[0]) == second % 5 else "train"
    typed = {each.name, each.name.replace("'", "’")}  # held out in both spellings of the apostrophe
    held = each.name in COMPOSED or any(hashlib.sha256(name.encode()).digest()[0] < 13 for name in typed)
    return "rest" if held else "train"


def read_keywords(folder: Path, language: str = "en") -> dict[str, tuple[str, ...]]:
    """CLDR keywords of each character sequence, variation selectors removed."""
    keywords: dict[str, tuple[str, ...]] = {}
    for part in ("annotationsDerived", "annotations"):
        path = folder / part / f"{language}.xml"
        if not path.is_file():
            raise DataError(
                f"{path} does not exist; it comes from the package unicode-cldr-core.", code="no_file"
            )
        for each in ElementTree.parse(path).iter("annotation"):
            if each.get("type") is None and each.text:
                keywords[each.get("cp", "")] = tuple(word.strip() for word in each.text.split("|"))
    return keywords
