"""The kinds of constraints that come with cm3kit; each registers itself."""

from cm3kit.decoders.grammar.kinds import choices as choices
from cm3kit.decoders.grammar.kinds import html as html
from cm3kit.decoders.grammar.kinds import json_schema as json_schema
from cm3kit.decoders.grammar.kinds import regex as regex
from cm3kit.decoders.grammar.kinds import trie as trie
