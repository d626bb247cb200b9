"""`cm3kit score`: log-probabilities of answers in the gaps of a page, or of the page itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cm3kit_cli import options
from cm3kit_cli.render import Reply, one_line, progress, warn_of

if TYPE_CHECKING:
    from cm3kit.fill.scoring import Score

Method = Literal["auto", "exact", "left-to-right", "bound"]


Answer = Annotated[
    list[str] | None,
    typer.Option(help="Words, or the path of a picture, for the gap of --gap; repeatable."),
]
Answers = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Answers: one per line, or .jsonl with texts or objects of answers by gap."
    ),
]
Gap = Annotated[int, typer.Option(min=0, help="The gap that --answer and plain lines are for.")]
Pmi = Annotated[
    bool,
    typer.Option("--pmi", help="Subtract log p of the answer without the page's words and pictures (PMI)."),
]
How = Annotated[
    Method, typer.Option(help="Method of a diffusion decoder: a bound, or writing left to right.")
]
Rounds = Annotated[int, typer.Option(min=2, max=65_536, help="Random masks of a bound.")]
Select = Annotated[
    list[str] | None, typer.Option(help="A CSS selector (p.intro, img@alt) of one more gap; repeatable.")
]
Image = Annotated[
    list[str] | None, typer.Option(help="A picture of the page, by name, with a gap in --box; repeatable.")
]
Box = Annotated[list[str] | None, typer.Option(metavar="X,Y,W,H", help="The region of --image.")]
Root = Annotated[
    Path | None, typer.Option(help="Folder of the site: pictures below it are opened; by default FILE's.")
]
Decoder = Annotated[str | None, typer.Option(help="Which decoder scores: cm3 or diffusion.")]
Style = Annotated[
    str | None, typer.Option(help="How a public model of text reads the page: page, plain or chat.")
]
Length = Annotated[str | None, typer.Option(help="Exact tokens of a text gap, for --decoder diffusion.")]


def score(
    file: Annotated[str, typer.Argument(help="HTML file with <mask> where the answers go; - is stdin.")],
    answer: Answer = None,
    answers: Answers = None,
    gap: Gap = 0,
    pmi: Pmi = False,
    method: How = "auto",
    rounds: Rounds = 64,
    select: Select = None,
    image: Image = None,
    box: Box = None,
    root: Root = None,
    decoder: Decoder = None,
    prompt_style: Style = None,
    length: Length = None,
    model: options.Model = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> Reply:
    """Score answers by log-probability in nats, best first. Without gaps and answers, the page itself.

    Example: cm3kit score samples/choices.html --answer red --answer blue
    """
    if len(image or ()) != len(box or ()):
        raise typer.BadParameter("each --image needs one --box, and each --box one --image")
    from cm3kit.decode_options import GenerateOptions
    from cm3kit.fill import answer_files
    from cm3kit.fill.kit import load
    from cm3kit.fill.pages import parse_box, read_page

    regions = zip(image or (), map(parse_box, box or ()), strict=True)
    page = read_page(file, select or (), regions, root, gaps=False)
    given = answer_files.collect(page, answer or (), answers, gap)
    asked: dict[str, Any] = {
        "decoder": decoder,
        "prompt_style": prompt_style,
        "length": options.length(length),
    }
    chosen = GenerateOptions(**asked)
    chosen.check()
    kit = load(model, device=device)
    with progress("scoring", quiet) as watch:
        found = kit.score(
            page, None if given is None else [each.answers for each in given],
            pmi=pmi, method=method, rounds=rounds, options=chosen, watch=watch,
        )  # fmt: skip
    shown = [each.shown for each in given] if given is not None else [{}]
    warn_of(dict.fromkeys(line for each in found for line in each.warnings), quiet)
    return _reply(found, shown, pmi, chosen.decoder or kit.parts.defaults.decoders[0])


def _reply(found: Sequence[Score], shown: Sequence[Mapping[str, str]], pmi: bool, decoder: str) -> Reply:
    rows: list[dict[str, Any]] = [
        {"index": number, "answer": dict(answer), **each.record()}
        for number, (each, answer) in enumerate(zip(found, shown, strict=True))
    ]
    warnings = tuple(dict.fromkeys(line for each in found for line in each.warnings))
    key = "pmi" if pmi else "logprob"
    ranked = sorted(rows, key=lambda row: -row[key])
    lines = tuple("\t".join((f"{row[key]:.4f}", *_column(row), _told(row["answer"]))) for row in ranked)
    data = {"decoder": decoder, "ranked_by": key, "scores": rows, "best": ranked[0]["index"]}
    return Reply(data, lines, warnings=warnings)


def _column(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Description of a score: exact, or a lower bound with its standard error."""
    error = (
        f" ±{(row['stderr'] ** 2 + row.get('prior_stderr', 0) ** 2) ** 0.5:.4f}" if "stderr" in row else ""
    )
    return f"{row['method']}{error}", f"{row['tokens']} tokens"


def _told(answer: Mapping[str, str]) -> str:
    if not answer:
        return "(page)"
    if len(answer) == 1:
        return one_line(next(iter(answer.values())))
    return "; ".join(f"{gap}={one_line(text)}" for gap, text in answer.items())
