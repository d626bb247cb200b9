"""The card of a model that `train all` made."""

from __future__ import annotations

import numpy as np

from cm3kit.data.token_shards import TokenShards
from cm3kit.pipeline.held import compared
from cm3kit.pipeline.made import Made
from cm3kit.pipeline.request import Request
from cm3kit.quantities import duration
from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.prompts import prompts_of
from cm3kit.training.validation import spread
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer


def examples(recipe: DecoderRecipe, count: int = 4) -> tuple[str, ...]:
    """Prompts out of the held-out pages of shards."""
    shards = TokenShards(recipe.data)
    held = np.flatnonzero(shards.held).tolist() or list(range(len(shards)))
    documents = (shards[held[place]] for place in spread(len(held), 200))
    return prompts_of(documents, PageTokenizer(TextTokenizer.load(recipe.text), shards.vocab), count)


def card(request: Request, made: Made) -> str:
    """Markdown: the corpus, how the model was made, its held-out losses, and how to use it."""
    plan, found = made.plan, made.plan.survey
    rows, columns = plan.grid
    name = request.output.resolve().name
    lines = [
        f"# {name}", "",
        f"Reads and writes pages like the {found.pages:,} that it was trained on, with {found.pictures:,} pictures of"
        f" {rows} x {columns} codes. Made by `cm3kit train all` in {duration(sum(made.took.values()))}"
        f" (preset {plan.preset}, decoder {plan.main.objective.name}, {plan.weights / 1e6:.1f} M weights).", "",
    ]  # fmt: skip
    if made.prompt:
        lines += ["```", f'cm3kit generate "{made.prompt}" -m {name}', "```", ""]
    lines += ["| held out | this model | unigram model |", "|---|---|---|"]
    lines += [f"| {what} | {mine:.3f} | {theirs:.3f} |" for what, mine, theirs in compared(made.figures)]
    lines += ["", "## The corpus", "", "```", *found.lines(), "```", ""]
    return "\n".join(lines)
