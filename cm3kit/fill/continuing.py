"""Pages put to a public causal model: it reads what is before a gap in its own tokens, and goes on with words.

Only words are written, escaped where they go into the page, so that every fill is well-formed. A gap ends where the
model would close the element or the value (`page`), the line (`plain`) or its turn (`chat`).
"""

from __future__ import annotations

from cm3kit.decoders.grammar.elements import CONTENT, TOP
from cm3kit.fill.fillers import Ids, ModelContext, Task
from cm3kit.fill.options import ANSWER_TOKENS, GenerateOptions, chosen_style
from cm3kit.fill.styles import TURN_END, PromptStyle, spelling
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError

ASK = (
    "Here is the source of a web page, in which [gap] stands for missing words. Write the missing words and nothing"
    " else.\n\n"
)


def continued(
    context: ModelContext, ids: Ids, options: GenerateOptions, seed: int, task: Task | None = None
) -> Canvas:
    """The first gap of a page, laid out to be written on to what the model reads before it.

    Args:
        task: what the page stands for; None for a page of the user's.

    Raises:
        ConfigError: words cannot stand in the gap, or the task is of pages or pictures (`bad_value`); the window
            has no room for the answer (`too_long`).
    """
    if task not in (None, "text"):
        raise ConfigError(f"task {task}: this model writes words alone; use --task text.", code="bad_value")
    defaults = context.parts.defaults
    style = chosen_style(defaults, options)
    place, gap = next((place, each) for place, each in enumerate(ids) if isinstance(each, Gap))
    if gap.kind == "content":
        _refuse_bare(context, [each for each in ids[:place] if isinstance(each, int)])
    most = gap.length or options.max_tokens or ANSWER_TOKENS[gap.kind].causal
    room = defaults.window - most - 1
    if room < 1:
        raise ConfigError(
            f"an answer of {most} tokens leaves no room in the model's window of {defaults.window}; lower"
            " --max-tokens.",
            code="too_long",
        )
    prompt = _read_before(context, ids, place, style, task)[-room:]
    exact, end = gap.length is not None, _end(context, gap, style)
    span = MaskSpan("attribute", len(prompt), most, exact, end=end, gap=gap.index, part=gap.part)
    return Canvas(tuple(prompt), (span,), prompt_attention=defaults.prompt_attention, seed=seed)


def _refuse_bare(context: ModelContext, before: list[int]) -> None:
    """Refuse a gap in which only elements may stand, as in a list."""
    state = context.grammar.after(before)
    inside = state.stack[-1] if state.stack else ""
    if "" not in (CONTENT[inside] if inside else TOP):
        raise ConfigError(
            f"a gap inside <{inside}> holds elements, and this model writes words alone; put the gap inside an element"
            " of it.",
            code="bad_value",
        )


def _read_before(
    context: ModelContext, ids: Ids, place: int, style: PromptStyle, task: Task | None
) -> list[int]:
    parts = context.parts
    text, vocab, chat = parts.text, parts.vocab, parts.defaults.chat
    if task == "text" and style in ("plain", "chat"):
        start, stop = (ids.index(vocab.markup_id(piece)) for piece in ("<title>", "</title>"))
        words = [each for each in ids[start + 1 : stop] if isinstance(each, int)]
        return chat.ids(words, text, vocab) if style == "chat" and chat is not None else words
    # In a conversation the page is asked about, source and all; else the model goes on where the gap is.
    spelt = spelling("page" if style == "chat" else style, text, vocab, None)
    assert spelt is not None
    before = spelt.spell([vocab.eod, *(each for each in ids[:place] if isinstance(each, int))])[0]
    if style != "chat" or chat is None:
        return before
    after = spelt.spell([each for each in ids[place + 1 :] if isinstance(each, int)])[0]
    asked = [text.encode(each, vocab.text.start) for each in (ASK, "[gap]")]
    return chat.ids([*asked[0], *before[1:], *asked[1], *after], text, vocab)


def _end(context: ModelContext, gap: Gap, style: PromptStyle) -> int:
    """The id that says that nothing more belongs into the gap."""
    vocab, text = context.parts.vocab, context.parts.text
    if style == "chat":
        return TURN_END
    closing = "\n" if style == "plain" else '"' if gap.kind == "attribute" else "</"
    return text.encode(closing, vocab.text.start)[0]
