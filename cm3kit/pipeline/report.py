"""One page on all stages: the corpus, planned and actual costs, curves, pictures, figures."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path

from cm3kit.pipeline.held import compared
from cm3kit.pipeline.made import Made
from cm3kit.pipeline.plan import NAMES
from cm3kit.quantities import duration, memory
from cm3kit.viewing.document import document, resource
from cm3kit.viewing.training_page import charts, pictures, read_log

TITLES = {"image": "Picture tokenizer", "decoder": "Decoder"}


def render(name: str, runs: Path, made: Made) -> str:
    """The page; it loads nothing and runs no script."""
    plan = made.plan
    parts = [
        f'<header><h1>{html.escape(name)}</h1><p class="finished">finished</p></header>',
        _tiles(made),
        f"<h2>The corpus</h2><pre>{html.escape(chr(10).join(plan.survey.lines() + losses(runs)))}</pre>",
        f"<h2>Planned and actual</h2>{_table(made)}",
        f"<h2>Held-out pages</h2>{_figures(made)}",
    ]
    for stage, words in TITLES.items():
        run = runs / stage
        if (run / "log.jsonl").is_file():
            drawn = "".join(charts(read_log(run / "log.jsonl")))
            parts += [
                f'<h2>{words}</h2><section class="charts">{drawn}</section>',
                *pictures(run / "previews"),
            ]
    return document(name, "".join(parts), resource("training.css"))


def losses(runs: Path) -> list[str]:
    """What was cut or left out on the way from records to rows, and how full rows were."""
    index = json.loads((runs / "shards/index.json").read_text(encoding="utf-8"))
    pages, sliced = max(1, index["pages"]), index["sliced"]
    out = [
        f"rows       {index['documents']:,} documents of {index['tokens']:,} ids; {sliced:,} pages"
        f" ({sliced / pages:.0%}) are sliced, {index['duplicates']:,} were there twice,"
        f" {index['too_short']:,} rests were too short",
    ]  # fmt: skip
    filled = [value for _, value in read_log(runs / "decoder/log.jsonl").get("filled", [])]
    if filled:
        out.append(f"filled     {sum(filled) / len(filled):.0%} of the positions of rows")
    return out


def _tiles(made: Made) -> str:
    facts = {
        "pages": f"{made.plan.survey.pages:,}", "pictures": f"{made.plan.survey.pictures:,}",
        "weights of the decoder": f"{made.plan.weights / 1e6:.1f} M",
        "took": duration(sum(made.took.values())), "memory at most": memory(made.peak),
    }  # fmt: skip
    inner = "".join(f"<div><dt>{key}</dt><dd>{html.escape(value)}</dd></div>" for key, value in facts.items())
    return f"<dl>{inner}</dl>"


def _table(made: Made) -> str:
    lines = [f"{'stage':19}{'planned':>12}{'taken':>12}{'memory planned':>16}"]
    for name, cost in made.plan.costs.items():
        taken = duration(made.took[name]) if name in made.took else ""
        held = memory(cost.memory) if cost.memory else ""
        lines.append(f"{NAMES[name]:19}{duration(cost.seconds):>12}{taken:>12}{held:>16}")
    taken = duration(sum(made.took.values()))
    lines.append(f"{'in all':19}{duration(made.plan.seconds):>12}{taken:>12}{memory(made.plan.memory):>16}")
    lines.append(f"memory at most: {memory(made.peak)}")
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def _figures(made: Made) -> str:
    rows = list(_compared(made))
    return f"<pre>{html.escape(chr(10).join(rows) or 'no page is held out')}</pre>"


def _compared(made: Made) -> Iterator[str]:
    for what, mine, theirs in compared(made.figures):
        yield f"{what:26} {mine:8.3f}   unigram model {theirs:8.3f}"
