"""Request handlers: from the body of a request to that of the response."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from cm3kit.fill import equality
from cm3kit.fill.kit import Filled, GenerateOptions, Kit
from cm3kit.fill.prompts import Prompt
from cm3kit.images import encode_png
from cm3kit.provenance.recipes import HASH
from cm3kit.provenance.records import how_made, variant, whose
from cm3kit.provenance.sources import sha256
from cm3kit.serve import schemas
from cm3kit.serve.schemas import CompletionBody, ImageBody, InfillBody, PageBody, Shelf
from cm3kit.viewing.display import display, marks_of
from cm3kit_tokenizers.errors import ConfigError, ModelError, PictureError
from cm3kit_tokenizers.html.addresses import Unopened
from cm3kit_tokenizers.page import Page

Watch = Callable[[int, int], None]
MASK = "<mask>"


def look(body: PageBody) -> dict[str, Any]:
    """A page for the editor: a copy for display, its gaps, its missing pictures."""
    data = schemas.content_of(body)
    with Shelf(body.pictures) as base:
        page, lost = Page.parse(data, base), list[Unopened]()
        page.nodes(partial(_opens, page.site()), lost)
        copy = display(data, base, places=True)
    # The last address is the one written in the page.
    missing = list(dict.fromkeys(each.addresses[-1] for each in lost if each.addresses))
    gaps = [{"kind": gap.kind, "line": gap.line, "element": gap.element} for gap in page.gaps]
    return {"shown": copy, "gaps": gaps, "missing": missing, "bytes": len(data), "codec": page.codec}


def _opens(site: Callable[[str], bytes], address: str) -> bool:
    try:
        site(address)
    except PictureError:
        return False
    return True


def infill(body: InfillBody, kit: Kit, watch: Watch) -> dict[str, Any]:
    """Fill the gaps of a page; all other bytes are unchanged."""
    seed = schemas.seed_of(body.seed)
    with Shelf(body.pictures) as base:
        page = schemas.page_of(body, base)
        options = schemas.options(body.options, body.constrain(), page)
        filled = kit.infill(page, variants=body.variants, seed=seed, options=options, watch=watch)
        how = how_made(kit, options, "infill")
        made = [_variant(body, page, each, how) for each in filled]
    return {
        "seed": seed, "model": kit.parts.name, "decoder": how["decoder"], "variants": made,
        "warnings": equality.joined(filled),
    }  # fmt: skip


def _variant(body: InfillBody, page: Page, filled: Filled, how: dict[str, Any]) -> dict[str, Any]:
    recipe = {**how, **variant(filled, page), HASH: sha256(filled.html)}
    recipe.get("source", {}).pop("base", None)
    told: dict[str, Any] = {
        "seed": filled.seed, "index": filled.index, "gaps": [asdict(gap) for gap in filled.gaps],
        "spans": [list(span) for span in filled.spans], "recipe": recipe,
    }  # fmt: skip
    if body.html is not None:
        told["html"] = filled.html.decode()
    else:
        told["html_base64"] = base64.b64encode(filled.html).decode()
    if body.shown:
        told["shown"] = display(filled.html, page.base, marks_of(recipe["source"]))
    return told


def completions(body: CompletionBody, kit: Kit, watch: Watch) -> dict[str, Any]:
    """The HTML between `prompt` and `suffix`, in OpenAI's format."""
    known(body.model, kit)
    options = GenerateOptions(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        constrain=body.constrain() or None,
    )
    seed, suffix, used = schemas.seed_of(body.seed), body.suffix or "", [0, 0]
    choices: list[dict[str, Any]] = []
    warnings: list[str] = []
    for number, prompt in enumerate(body.prompts):
        if MASK in prompt or MASK in suffix:
            raise ConfigError("prompt and suffix must not contain <mask>; use /infill", code="bad_value")
        page = Page.parse(f"{prompt}{MASK}{suffix}".encode())

        def share(done: int, total: int, number: int = number) -> None:
            watch(number * total + done, len(body.prompts) * total)

        used[0] += len(kit.text.encode(prompt + suffix))
        results = kit.infill(page, variants=body.n, seed=seed, options=options, watch=share)
        warnings += [each for each in equality.joined(results) if each not in warnings]
        for filled in results:
            ((start, stop),) = filled.spans
            text, stopped = _until(filled.html[start:stop].decode(), body.stops)
            used[1] += filled.gaps[0].tokens
            reason = "stop" if stopped or filled.gaps[0].ended else "length"
            choices.append({"index": len(choices), "text": text, "finish_reason": reason, "logprobs": None})
    usage = {"prompt_tokens": used[0], "completion_tokens": used[1], "total_tokens": sum(used)}
    return {
        "id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
        "model": kit.parts.name, "choices": choices, "usage": usage, **({"warnings": warnings} if warnings else {}),
    }  # fmt: skip


def _until(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of `stops`, and whether one was found."""
    ends = [at for each in stops if (at := text.find(each)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def known(model: str | None, kit: Kit) -> None:
    """ModelError (unknown_model) if a name is given that is not the model's."""
    if model not in (None, kit.parts.name):
        raise ModelError(
            f"unknown model {model[:60]!r}; this server has {kit.parts.name!r}", code="unknown_model"
        )


def chunks(body: CompletionBody, answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A response as events of OpenAI's streams: one with the texts, and one with the usage if requested."""
    more = {"usage": None} if body.stream_options.include_usage else {}
    told = {name: value for name, value in answer.items() if name != "usage"}
    yield {**told, **more}
    if body.stream_options.include_usage:
        yield {**told, "choices": [], "usage": answer["usage"]}


def images(body: ImageBody, kit: Kit, watch: Watch) -> dict[str, Any]:
    """Pictures from text, in OpenAI's format; each embeds its recipe."""
    known(body.model, kit)
    side = kit.image.config.resolution
    if body.size not in (None, "auto", f"{side}x{side}"):
        raise ConfigError(f"size {body.size!r}: this model generates {side}x{side}", code="bad_value")
    options, seed = schemas.options(body.options), schemas.seed_of(body.seed)
    results = kit.generate(body.prompt, n=body.n, seed=seed, options=options, watch=watch)
    how = {**how_made(kit, options, "image"), **whose(Prompt(body.prompt), True)}
    pngs = [
        encode_png(each.image, {**how, "seed": each.seed, "index": each.index})
        for each in results
        if each.image is not None
    ]
    data = [{"b64_json": base64.b64encode(png).decode()} for png in pngs]
    warnings = equality.joined(results)
    return {"created": int(time.time()), "data": data, "seed": seed} | (
        {"warnings": warnings} if warnings else {}
    )
