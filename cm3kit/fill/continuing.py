"""Pages put to a public causal model: it reads what is before a gap in its own tokens, and goes on with words.

Words are escaped where they go into the page, so that every fill is well-formed. A gap ends where the model would close
the element or the value (`page`), the line (`plain`) or its turn (`chat`). Models that write pictures among words
(Chameleon) draw into gaps of pictures too, guided as theirs: against no prompt at all, and against its pictures alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cm3kit.decoders.grammar.elements import CONTENT, TOP
from cm3kit.fill.fillers import Ids, ModelContext, Task
from cm3kit.fill.options import ANSWER_TOKENS, GenerateOptions, chosen_style
from cm3kit.fill.styles import PictureMarks, PromptStyle, spelling
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError

ASK = (
    "Here is the source of a web page, in which [gap] stands for missing words. Write the missing words and nothing"
    " else.\n\n"
)
ASK_PICTURE = "Here is the source of a web page, in which [gap] stands for a missing picture. Draw it.\n\n"
DESCRIBE = "Describe this picture."


def continued(
    context: ModelContext, ids: Ids, options: GenerateOptions, seed: int, task: Task | None = None
) -> Canvas:
    """The first gap of a page, laid out to be written on to what the model reads before it.

    Args:
        task: what the page stands for; None for a page of the user's.

    Raises:
        ConfigError: words cannot stand in the gap, or the task is of pictures and the model writes words alone
            (`bad_value`); the window has no room for the answer (`too_long`).
    """
    marks, style = context.parts.defaults.pictures, chosen_style(context.parts.defaults, options)
    if task not in (None, "text") and marks is None:
        raise ConfigError(f"task {task}: this model writes words alone; use --task text.", code="bad_value")
    place, gap = next((place, each) for place, each in enumerate(ids) if isinstance(each, Gap))
    if gap.kind == "content":
        _refuse_bare(context, [each for each in ids[:place] if isinstance(each, int)])
    picture = gap.kind == "image"
    if picture and gap.length is not None and style == "chat":
        style = "page"  # the rest of a picture is no answer to a question
    most = gap.length or (_codes(context) if picture else 0) or options.max_tokens
    most = most or ANSWER_TOKENS[gap.kind].causal
    prompt = _cut(_prompt(context, ids, place, style, task), context, most)
    end, ends = ends_of(context, gap, style, task)
    span = MaskSpan(
        "image" if picture else "attribute", len(prompt), most, picture or gap.length is not None, end=end,
        gap=gap.index, part=gap.part, ends=ends,
    )  # fmt: skip
    attention = context.parts.defaults.prompt_attention
    canvas = Canvas(tuple(prompt), (span,), prompt_attention=attention, seed=seed)
    return guided(canvas, context, marks) if picture and marks is not None else canvas


def guided(canvas: Canvas, context: ModelContext, marks: PictureMarks) -> Canvas:
    """The canvas of a picture with its guides: the picture's own codes so far alone, and those behind earlier pictures.

    One without earlier pictures has the first guide alone, as the second one is the same.
    """
    ids, codes = canvas.ids, context.parts.vocab.image
    last = len(ids) - 1 - ids[::-1].index(marks.begin)
    own = ids[last:]
    earlier = tuple(id for id in ids[:last] if id in codes or id in (marks.begin, marks.end))
    prompts = [(*marks.start, *own), *([(*marks.start, *earlier, *own)] if earlier else [])]
    guides = (
        Canvas(prompt, tuple(replace(span, at=len(prompt)) for span in canvas.spans)) for prompt in prompts
    )
    return replace(canvas, guides=tuple(guides))


def _codes(context: ModelContext) -> int:
    height, width = context.parts.image.grid
    return height * width


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


def _prompt(context: ModelContext, ids: Ids, place: int, style: PromptStyle, task: Task | None) -> list[int]:
    """What the model reads, up to the first id that it writes; pictures have their marks."""
    parts, gap = context.parts, ids[place]
    marks, vocab = parts.defaults.pictures, parts.vocab
    row = _read_before(context, ids, place, style, task)
    if marks is None:
        return row
    row = marks.mark(row, vocab, _codes(context))
    if row[: len(marks.start)] != [*marks.start]:
        row = [*marks.start, *row]
    inside = isinstance(gap, Gap) and gap.kind == "image" and not _open(row, marks)
    return [*row, marks.begin] if inside else row


def _open(row: Sequence[int], marks: PictureMarks) -> bool:
    """Whether a row ends inside a picture."""
    last = next((id for id in reversed(row) if id in (marks.begin, marks.end)), marks.end)
    return last == marks.begin


def _read_before(
    context: ModelContext, ids: Ids, place: int, style: PromptStyle, task: Task | None
) -> list[int]:
    parts = context.parts
    text, vocab, chat = parts.text, parts.vocab, parts.defaults.chat
    asked = style == "chat" and chat is not None
    if task in ("text", "image", "caption") and style in ("plain", "chat"):
        given = _given(context, ids, place, task)
        if asked and task == "caption":
            given += text.encode(DESCRIBE, vocab.text.start)
        return chat.ids(given, text, vocab) if asked and chat is not None else given
    # In a conversation the page is asked about, source and all; else the model goes on where the gap is.
    spelt = spelling("page" if style == "chat" else style, text, vocab, None)
    assert spelt is not None
    known = [each for each in ids[:place] if isinstance(each, int)]
    known = known if asked else _picture_first(context, ids, place)
    before = spelt.spell([vocab.eod, *known])[0]
    if not asked or chat is None:
        return before
    after = spelt.spell([each for each in ids[place + 1 :] if isinstance(each, int)])[0]
    gap = ids[place]
    ask = ASK_PICTURE if isinstance(gap, Gap) and gap.kind == "image" else ASK
    words, mark = (text.encode(each, vocab.text.start) for each in (ask, "[gap]"))
    return chat.ids([*words, *before[1:], *mark, *after], text, vocab)


def _given(context: ModelContext, ids: Ids, place: int, task: Task) -> list[int]:
    """The words that a task is of, or the codes of its picture."""
    vocab = context.parts.vocab
    if task == "caption":
        return [each for each in ids if isinstance(each, int) and each in vocab.image]
    if task == "image":
        return [each for each in ids[:place] if isinstance(each, int) and each in vocab.text]
    start, stop = (ids.index(vocab.markup_id(piece)) for piece in ("<title>", "</title>"))
    return [each for each in ids[start + 1 : stop] if isinstance(each, int)]


def _picture_first(context: ModelContext, ids: Ids, place: int) -> list[int]:
    """The page before a gap, in which the words of a picture come behind it where it follows them in its element."""
    vocab, known = context.parts.vocab, [each for each in ids[:place] if isinstance(each, int)]
    tag, closing, src = (vocab.markup_id(piece) for piece in ("<img", ">", ' src="'))
    start = max((at for at, id in enumerate(known) if id == tag), default=-1)
    if start < 0 or closing in known[start:]:
        return known
    rest = ids[place + 1 :]
    rest = rest[: rest.index(closing) if closing in rest else len(rest)]
    if src not in rest:
        return known
    codes = [each for each in rest if isinstance(each, int) and each in vocab.image]
    if not codes or len(codes) < _codes(context):
        return known
    return [*known[: start + 1], src, *codes, vocab.markup_id('"'), *known[start + 1 :]]


def _cut(row: list[int], context: ModelContext, most: int) -> list[int]:
    """The row within the window: what is farthest before the gap goes first, pictures as a whole.

    Raises:
        ConfigError: not even its last piece fits (`too_long`).
    """
    window, marks = context.parts.defaults.window, context.parts.defaults.pictures
    room = window - most - 1
    start = len(marks.start) if marks is not None else 0
    if room < 1 + start:
        raise ConfigError(
            f"an answer of {most} tokens leaves no room in the model's window of {window}; lower --max-tokens.",
            code="too_long",
        )
    if len(row) <= room:
        return row
    if marks is None:
        return row[-room:]
    first = len(row) - (room - start)
    # A cut inside a picture leaves its rest out, too; one that is being written has to stay.
    if _open(row[start:first], marks):
        if marks.end not in row[first:]:
            raise ConfigError(
                f"a picture and what is known of it take more than the model's window of {window}.",
                code="too_long",
            )
        first = row.index(marks.end, first) + 1
    return [*row[:start], *row[first:]]


def ends_of(
    context: ModelContext, gap: Gap, style: PromptStyle, task: Task | None
) -> tuple[int, tuple[int, ...]]:
    """The id that says that nothing more belongs into the gap, and further ones that do."""
    parts = context.parts
    vocab, text, marks, chat = parts.vocab, parts.text, parts.defaults.pictures, parts.defaults.chat
    # Words end where a picture would begin, and where the model has no more to say.
    others = () if marks is None or gap.kind == "image" else (vocab.eoss, marks.begin)
    if style == "chat" and chat is not None:
        end = chat.end
    elif marks is not None and task in ("text", "caption") and style == "plain":
        end = vocab.eoss
    else:
        closing = "\n" if style == "plain" else '"' if gap.kind == "attribute" else "</"
        end = text.encode(closing, vocab.text.start)[0]
    return end, tuple(each for each in others if each != end)
