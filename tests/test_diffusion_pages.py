"""Pages filled in place: every task and kind of gap through the diffusion decoder, on toy models."""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from canvases import flat_spans
from PIL import Image
from safetensors.torch import load_file, save_file
from toys import WORDS, toy_decoder, toy_image, toy_text

import cm3kit
from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.diffusion.settings import DiffusionConfig, Eoser
from cm3kit.decoders.settings import DecodeConfig
from cm3kit.fill.defaults import Defaults, DiffusionDefaults
from cm3kit.fill.diffusion import DiffusionFiller
from cm3kit.fill.folder import assemble
from cm3kit.fill.kit import GenerateOptions, Kit, Result
from cm3kit.fill.lengths import shortened
from cm3kit.fill.options import diffusion_settings
from cm3kit.fill.parts import diffusion_backbone
from cm3kit.fill.trained import Trained
from cm3kit.models.backbone import save_backbone
from cm3kit.models.timestep import add_timestep
from cm3kit.types import Canvas
from cm3kit_cli.main import run
from cm3kit_tokenizers import Cm3kitError, ConfigError, ModelError, Page

CODES = 16
IN_PLACE = GenerateOptions(decoder="diffusion")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    parts = tmp_path_factory.mktemp("parts")
    text = toy_text(parts / "text")
    toy_image(parts / "image")
    for seed, name in enumerate(("decoder", "other")):
        backbone = toy_decoder(parts / name, text, layers=2, std=0.2, seed=seed)
        if not seed:
            save_backbone(add_timestep(backbone, 16), parts / "timed", half=True)
    return parts


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    def make(decoder: str = "decoder", own: str | None = None, **defaults: object) -> Path:
        target = tmp_path_factory.mktemp("models") / "toy"
        small = DecodeConfig(batch_size=3)
        chosen = Defaults.model_validate({"window": 160, "image": small, "text": small, **defaults})
        other = parts / own if own else None
        return assemble(target, parts / "text", parts / "image", parts / decoder, chosen, "# Toy\n", other)

    return make


BOTH = {"decoders": ("cm3", "diffusion")}


@pytest.fixture(scope="module")
def folder(make: Make) -> Path:
    return make(**BOTH)


@pytest.fixture(scope="module")
def kit(folder: Path) -> Kit:
    return cm3kit.load(folder, device="cpu")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "pear.png")
    return tmp_path


def alike(first: Result, second: Result) -> bool:
    pictures = [each.image.tobytes() if each.image else None for each in (first, second)]
    return pictures[0] == pictures[1] and (first.text, first.logprob) == (second.text, second.logprob)


def warm(**more: object) -> GenerateOptions:
    return replace(IN_PLACE, temperature=1.0, **more)  # type: ignore[arg-type]


def boards(result: object) -> list[Canvas]:
    return [each.canvas for each in result.trace.trajectories]  # type: ignore[attr-defined]


# --- Tasks ---


@pytest.mark.parametrize("task", ["image", "text", "caption", "pair"])
def test_every_task_but_a_whole_page_is_done_in_place(kit: Kit, site: Path, task: str) -> None:
    prompt = site / "pear.png" if task == "caption" else "red apple"
    state = torch.random.get_rng_state()
    made = kit.generate(prompt, task=task, n=3, seed=3, options=warm())  # type: ignore[arg-type]
    assert bool((torch.random.get_rng_state() == state).all())
    for index, each in enumerate(made):
        assert each.kind == {"image": "image", "pair": "pair"}.get(task, "text") and each.html is None
        assert (each.image is not None) == (task in ("image", "pair"))
        assert (each.text is not None) == (task != "image")
        assert each.index == index and each.logprob < 0 and each.trace is not None
        assert each.trace.cost.wasted == 0 and each.trace.cost.forwards > 0
    alone = kit.generate(prompt, task=task, n=1, seed=3, options=warm())[0]  # type: ignore[arg-type]
    assert alike(alone, made[0]) and not alike(made[0], made[1])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_batch_size_does_not_change_what_is_written(kit: Kit, size: int) -> None:
    usual = kit.generate("red apple", task="pair", n=5, seed=9, options=warm())
    made = kit.generate("red apple", task="pair", n=5, seed=9, options=warm(batch_size=size))
    assert all(map(alike, usual, made))


def test_a_pair_needs_no_prompt_and_has_both_on_one_board(kit: Kit) -> None:
    free = kit.generate(task="pair", seed=1, options=warm())[0]
    (board,) = boards(free)
    assert [each.kind for each in flat_spans(board)] == ["attribute", "image"]
    assert not any(id in kit.vocab.text for id in board.ids)
    (named,) = boards(kit.generate("Fruit", task="pair", seed=1, options=warm())[0])
    given = [id for id in named.ids if id in kit.vocab.text]
    assert given == 2 * kit.tokenizer.text_ids("Fruit")
    written = kit.generate(task="pair", seed=1)[0]
    assert written.kind == "pair" and written.image is not None and written.text


def test_a_whole_page_is_refused_in_one_line(kit: Kit) -> None:
    with pytest.raises(ConfigError, match="--decoder cm3") as caught:
        kit.generate("red apple", task="document", options=IN_PLACE)
    assert "\n" not in str(caught.value)


def test_guidance_hides_what_is_given_and_doubles_the_passes(kit: Kit) -> None:
    plain = kit.generate("red apple", seed=1, options=warm())[0]
    guided = kit.generate("red apple", seed=1, options=warm(guidance=3.0))[0]
    assert plain.trace and guided.trace and not boards(plain)[0].guides
    assert guided.trace.cost.forwards == 2 * plain.trace.cost.forwards
    (board,) = boards(guided)
    (guide,) = board.guides
    seen = [id for id in guide.ids if id != kit.vocab.mask]
    assert (
        guide.spans == board.spans
        and len(guide.ids) == len(board.ids)
        and not any(id in kit.vocab.text for id in seen)
    )
    assert [id for id in board.ids if id in kit.vocab.markup] == [id for id in seen if id in kit.vocab.markup]


# --- Pages ---

PAGE = (
    b"<!DOCTYPE html>\r\n<TITLE><mask></TITLE><style>p{color:red}</style>\n<!-- a <b>comment</b> -->\n"
    b"<p class=x>a <mask> b &amp; c &nbsp;\xff<br><IMG alt='<mask>' src=pear.png width=3>"
    b'<img src="<mask>" alt="red apple" onclick="x()"></p><script>if (a < b) {}</script>tail'
)


def in_order(pieces: list[bytes], page: bytes) -> bool:
    at = 0
    for piece in pieces:
        found = page.find(piece, at)
        if found < 0:
            return False
        at = found + len(piece)
    return page.startswith(pieces[0]) and page.endswith(pieces[-1])


def test_infill_replaces_the_gaps_and_no_other_byte(kit: Kit, site: Path) -> None:
    page = Page.parse(PAGE, base=site)
    filled = kit.infill(page, variants=4, seed=5, options=warm(max_tokens=12))
    for each in filled:
        assert in_order(PAGE.split(b"<mask>"), each.html)
        assert [gap.kind for gap in each.gaps] == ["content", "content", "attribute", "image"]
        assert not Page.parse(each.html, base=site).gaps
        (board,) = boards(each)  # all gaps on one board, each in sight of the others
        assert len(flat_spans(board)) == 4 and len(board.flatten(0).ids) <= 160
    assert len({each.html for each in filled}) == 4
    again = kit.infill(page, variants=1, seed=5, options=warm(max_tokens=12))
    assert again[0].html == filled[0].html


def test_what_is_written_into_a_page_stays_inside_its_element(kit: Kit) -> None:
    source = b"<div><p>one <mask> two</p></div><ul><mask></ul><p>three</p>"
    page = Page.parse(source)
    for each in kit.infill(page, variants=16, seed=0, options=warm(max_tokens=14)):
        assert in_order(source.split(b"<mask>"), each.html)
        holes = [each.html[len(b"<div><p>one ") :].split(b" two</p></div>")[0]]
        holes.append(each.html.split(b"<ul>", 1)[1].rsplit(b"</ul><p>three</p>", 1)[0])
        assert all(_balanced(hole) for hole in holes), each.html


def _balanced(fragment: bytes) -> bool:
    from html.parser import HTMLParser

    stack: list[str] = []
    good = [True]

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("br", "img", "meta"):
                stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            good[0] &= bool(stack) and stack.pop() == tag

    reader = Reader()
    reader.feed(fragment.decode())
    reader.close()
    return good[0] and not stack


def test_a_region_changes_only_its_box(kit: Kit, site: Path) -> None:
    source = b'<p>x<img alt="a pear" src="pear.png">y</p>'
    page = Page.parse(source, base=site).region("pear.png", (10, 4, 12, 9))
    each = kit.infill(page, seed=1, options=warm())[0]
    start = each.html.index(b"base64,") + 7
    drawn = np.array(
        Image.open(io.BytesIO(base64.b64decode(each.html[start : each.html.index(b'"', start)])))
    )
    before = np.array(Image.open(site / "pear.png"))
    inside = np.zeros(before.shape[:2], dtype=bool)
    inside[4:13, 10:22] = True
    assert drawn.shape == before.shape
    assert (drawn[~inside] == before[~inside]).all() and (drawn[inside] != before[inside]).any()
    (board,) = boards(each)
    open_codes = sum(stretch.stop - stretch.start for stretch in flat_spans(board))
    given = sum(id in kit.vocab.image for id in board.ids)
    assert open_codes + given == CODES and 0 < open_codes < CODES


def test_a_long_page_is_filled_in_slices_that_fit(kit: Kit) -> None:
    middle = b"<p>" + WORDS.encode() + b"</p>\n"
    source = middle * 4 + b"<p>the <mask> book</p>" + middle * 6 + b"<h2><mask></h2>" + middle * 3
    each = kit.infill(Page.parse(source), seed=0, options=IN_PLACE)[0]
    assert in_order(source.split(b"<mask>"), each.html) and len(boards(each)) == 2
    eod, mask = kit.vocab.eod, kit.vocab.mask
    for board in boards(each):
        assert len(board.flatten(0).ids) <= 160 and len(flat_spans(board)) == 1
        # Neither end of the page is in sight.
        assert eod not in board.ids and board.spans[0].at > 0 and mask not in board.ids
    assert each.trace is not None
    assert each.trace.cost.forwards == sum(
        1 + max(commit.step for commit in trajectory.commits) for trajectory in each.trace.trajectories
    )


def test_a_slice_that_starts_with_a_gap_has_something_before_it(make: Make) -> None:
    shifted = cm3kit.load(make(**BOTH, diffusion={"shift": True}), device="cpu")
    source = b"<p>" + WORDS.encode() * 6 + b"</p><h2><mask></h2><p>" + WORDS.encode() * 6 + b"</p>"
    options = warm(max_tokens=96)  # no room is left around it
    each = shifted.infill(Page.parse(source), seed=2, options=options)[0]
    (board,) = boards(each)
    assert min(stretch.start for stretch in flat_spans(board)) > 0 and len(board.flatten(0).ids) <= 160
    assert in_order(source.split(b"<mask>"), each.html)


# --- Lengths ---


def laid(kit: Kit, options: GenerateOptions, task: str = "text", seed: int = 0) -> Canvas:
    nodes_ids = kit._page_of(task, "red apple")  # type: ignore[arg-type]
    filler = kit.filler(options)
    assert isinstance(filler, DiffusionFiller)
    return filler.task(task, nodes_ids, options, seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 3, 4, 5, 16, 17, 40, 100])
def test_max_tokens_opens_so_many_slots_of_a_size_that_was_trained(kit: Kit, most: int) -> None:
    board = laid(kit, warm(max_tokens=most))
    (stretch,) = flat_spans(board)
    size = next(size for size in (4, 8, 16, 24, 32, 48, 64, 96, 128) if size >= most)
    assert stretch.padded and stretch.stop - stretch.start == most
    ids = board.flatten(kit.vocab.mask).ids
    assert ids[stretch.stop : stretch.start + size] == (kit.vocab.eoss,) * (size - most)
    assert kit.vocab.eoss not in ids[stretch.start + size :]
    result = kit.generate("red apple", task="text", seed=2, options=warm(max_tokens=most))[0]
    assert result.trace is not None
    last = result.trace.trajectories[0]
    made = dict(p for each in last.commits for p in zip(each.positions, each.ids, strict=True))
    assert result.ended == (kit.vocab.eoss in made.values())


def test_gaps_have_room_by_their_kind(kit: Kit, site: Path) -> None:
    # The window has no room for the picture beside the texts, so that it is written in the next one.
    laid_out = boards(kit.infill(Page.parse(PAGE, base=site), seed=5, options=warm(batch_size=1))[0])
    assert [len(board.spans) for board in laid_out] == [3, 1]
    sizes = {
        each.gap: (each.stop - each.start, each.padded) for board in laid_out for each in flat_spans(board)
    }
    assert sizes == {0: (32, True), 1: (32, True), 2: (16, True), 3: (CODES, False)}


@pytest.mark.parametrize("length", [1, 5, 9])
def test_a_given_length_is_kept(kit: Kit, length: int) -> None:
    options = warm(length=length)
    (stretch,) = flat_spans(laid(kit, options))
    assert not stretch.padded and stretch.stop - stretch.start == length
    result = kit.generate("red apple", task="text", n=3, seed=2, options=options)[0]
    assert result.ended and result.trace is not None
    written = result.trace.trajectories[0].commits
    ids = [id for each in written for id in each.ids]
    assert len(ids) == length and kit.vocab.eoss not in ids


def test_length_auto_keeps_the_best_mean_of_ids_and_end(kit: Kit) -> None:
    options = warm(length="auto", max_tokens=8)
    board = laid(kit, options, seed=5)
    (whole,) = flat_spans(board)
    assert whole.stop - whole.start == 16  # one size more than the longest, so that it can end
    filler = kit.filler(options)
    assert isinstance(filler, DiffusionFiller)
    answer = filler.fill([laid(kit, options, seed=5)], options, lambda done, total: None)[0]
    scores: dict[int, float] = {}
    ids: dict[int, tuple[int, ...]] = {}
    forwards = 0
    for size in (1, 2, 3, 4, 6, 8):
        rival = shortened(board, 0, size)
        tried = filler.fill([rival], warm(), lambda done, total: None)[0]
        forwards += tried.cost.forwards + 1
        filled = list(board.flatten(kit.vocab.mask).ids)
        filled[whole.start : whole.start + size] = tried.fills[0].ids
        logits_TV = diffusion_backbone(kit.parts)(torch.tensor([filled]), attention_mask=_full(len(filled)))[
            0
        ][0]
        logits_V = logits_TV[whole.start + size].detach().float()
        logits_V[kit.vocab.mask] = -math.inf
        end = float(logits_V.log_softmax(-1)[kit.vocab.eoss])
        scores[size], ids[size] = (tried.fills[0].logprob + end) / (size + 1), tried.fills[0].ids
    best = max(scores, key=lambda size: scores[size])
    assert answer.fills[0].ids == ids[best] and answer.fills[0].ended
    assert answer.cost.forwards == forwards


def _full(length: int) -> torch.Tensor:
    return torch.ones(1, 1, length, length, dtype=torch.bool)


def test_length_auto_goes_from_gap_to_gap(kit: Kit, site: Path) -> None:
    source = b'<p>a <mask> b</p><ul><mask></ul><p><img alt="<mask>" src="pear.png"></p>'
    page = Page.parse(source, base=site)
    filled = kit.infill(page, variants=2, seed=1, options=warm(length="auto", max_tokens=6))
    assert len({each.html for each in filled}) == 2
    for each in filled:
        assert in_order(source.split(b"<mask>"), each.html) and all(gap.ended for gap in each.gaps)
        (board,) = boards(each)
        sizes = [stretch.stop - stretch.start for stretch in flat_spans(board)]
        assert not any(stretch.padded for stretch in flat_spans(board))
        assert sizes[1] >= 2 and set(sizes) <= {1, 2, 3, 4, 6}  # a list holds an item at least
    alone = kit.infill(page, variants=1, seed=1, options=warm(length="auto", max_tokens=6))[0]
    assert alone.html == filled[0].html
    picture = kit.generate("red apple", seed=1, options=warm(length="auto"))[0]
    assert alike(picture, kit.generate("red apple", seed=1, options=warm())[0])


def test_a_gap_that_can_hold_no_answer_is_named(kit: Kit) -> None:
    for more in ({"length": 1}, {"length": "auto", "max_tokens": 1}, {"max_tokens": 1}):
        with pytest.raises(ConfigError, match="ul") as caught:
            kit.infill(Page.parse(b"<ul><mask></ul>"), options=warm(**more))
        assert caught.value.code == "bad_value" and "\n" not in str(caught.value)


# --- Settings ---


def test_the_schedule_is_what_is_written(kit: Kit) -> None:
    for more in ({}, {"steps": 5}, {"sampler": "ascending"}, {"sampler": "eoser-ass"}, {"block_size": 6}):
        options = warm(**more)
        (plan,) = kit.schedule("red apple", options=options)
        result = kit.generate("red apple", seed=1, options=options)[0]
        assert result.trace is not None
        commits = result.trace.trajectories[0].commits
        assert [len(each.positions) for each in commits] == [count for block in plan for count in block]
        assert sum(map(sum, plan)) == CODES and len(plan) == (3 if "block_size" in more else 1)
    page = Page.parse(
        b"<p>" + WORDS.encode() * 8 + b"<mask></p>" + b"<p>" + WORDS.encode() * 8 + b"<mask></p>"
    )
    assert [sum(map(sum, each)) for each in kit.schedule(page, options=IN_PLACE)] == [32, 32]
    with pytest.raises(ConfigError, match="one id after the other"):
        kit.schedule("red apple")
    with pytest.raises(ConfigError, match="tried out"):
        kit.schedule("red apple", task="text", options=warm(length="auto"))


def test_what_is_on_a_board_says_whose_settings_it_takes(make: Make, site: Path) -> None:
    steps = {"image": 2, "text": 3, "mixed": 5}
    three = cm3kit.load(
        make(**BOTH, diffusion={name: {"steps": count} for name, count in steps.items()}), device="cpu"
    )
    passes = {
        task: len(three.schedule(prompt, task=task, options=IN_PLACE)[0][0])  # type: ignore[arg-type]
        for task, prompt in (("image", "x"), ("text", "x"), ("caption", site / "pear.png"), ("pair", ""))
    }
    assert passes == {"image": 2, "text": 3, "caption": 3, "pair": 5}
    page = Page.parse(b'<p><mask><img alt="pear" src="<mask>"></p>')
    assert [len(block) for board in three.schedule(page, options=IN_PLACE) for block in board] == [5]
    assert three.record("mixed", IN_PLACE)["settings"]["steps"] == 5


def test_ends_are_held_back_unless_that_is_switched_off() -> None:
    usual = DiffusionDefaults()
    assert usual.text.eoser == usual.image.eoser == Eoser()
    assert diffusion_settings(usual, "text", replace(IN_PLACE, eoser=False)).eoser is None
    ascending = replace(IN_PLACE, sampler="ascending")
    assert diffusion_settings(usual, "text", ascending).eoser is None
    assert diffusion_settings(usual, "text", replace(ascending, eoser=True)).eoser == Eoser(
        least=0.01, schedule="ascending"
    )
    strict = DiffusionDefaults(text=DiffusionConfig(eoser=Eoser(least=0.2)))
    assert diffusion_settings(strict, "text", replace(IN_PLACE, eoser=True)).eoser == Eoser(least=0.2)


def test_a_preset_replaces_the_axes_and_keeps_what_is_the_models() -> None:
    sampling = {"temperature": 0.3, "top_p": 0.9}
    mine = DiffusionDefaults.model_validate(
        {"image": {"steps": 7, "order": "margin", "image": sampling, "guidance": 2.0, "batch_size": 3}}
    )
    for name in presets:
        found = diffusion_settings(mine, "image", replace(IN_PLACE, sampler=name))
        expected = presets[name].config(
            precision="auto",
            **{
                key: value
                for key, value in mine.image.model_dump().items()
                if key in ("text", "image", "guidance", "batch_size") and key not in presets[name].settings
            },
        )
        assert found == expected
    options = replace(IN_PLACE, sampler="cosine", steps=3, order="entropy", threshold=0.5, temperature=0.0)
    found = diffusion_settings(mine, "image", options)
    assert (found.steps, found.schedule, found.order) == (3, "cosine", "entropy")
    assert found.accept == {"name": "threshold", "tau": 0.5} and found.image.temperature == 0.0


def test_every_setting_can_be_given_for_one_call(kit: Kit) -> None:
    mine = DiffusionDefaults()
    options = replace(
        IN_PLACE, modifiers=({"name": "remdm-cap", "eta": 0.3},),
        overrides=("eoser.hard=0.5", "confidence=tempered", "guidance_schedule=linear", "text.top_p=0.5"),
    )  # fmt: skip
    found = diffusion_settings(mine, "text", options)
    assert found.modifiers == ({"name": "remdm-cap", "eta": 0.3},) and found.eoser == Eoser(hard=0.5)
    assert (found.confidence, found.guidance_schedule, found.text.top_p) == ("tempered", "linear", 0.5)
    bare = diffusion_settings(mine, "text", replace(IN_PLACE, sampler="llada", overrides=("eoser.least=0",)))
    assert bare.eoser == Eoser(least=0)
    plain = kit.generate("red apple", seed=1, options=warm())[0]
    for more in (
        {"sampler": "ancestral", "steps": 5},
        {"sampler": "first-hitting"},
        {"modifiers": ({"name": "remdm-rescale", "eta": 0.5},)},
        {"modifiers": ({"name": "edit", "threshold": 0.0},)},
        {"overrides": ("confidence=tempered",), "order": "entropy"},
    ):
        made = kit.generate("red apple", seed=1, options=warm(**more))[0]
        assert made.trace is not None and made.image is not None and not alike(made, plain)
        kinds = {commit.kind for commit in made.trace.trajectories[0].commits}
        wanted = {"remdm-rescale": "remask", "edit": "edit"}
        assert kinds == {"write"} | {wanted[each["name"]] for each in more.get("modifiers", ())}  # type: ignore


REFUSED: list[tuple[GenerateOptions, str, str]] = [
    (warm(sampler="lada"), "unknown_name", "llada"),
    (warm(schedule="cosin"), "unknown_name", "cosine"),
    (warm(order={"name": "maskgit", "tua": 1}), "bad_config", "tau"),
    (warm(accept="best"), "unknown_name", "top"),
    (warm(accept="factor", threshold=0.9), "bad_value", "threshold"),
    (warm(steps=0), "bad_value", "steps"),
    (warm(steps=4, sampler="ascending"), "bad_value", "steps"),
    (warm(cache="dual"), "bad_value", "block size"),
    (warm(verify_cache=True), "bad_value", "cache"),
    (warm(cache="exact", block_size=4), "bad_value", "both ways"),
    (warm(length=0), "bad_value", "length"),
    (warm(modifiers=("edits",)), "unknown_name", "edit"),
    (warm(overrides=("confidnce=base",)), "bad_config", "confidence"),
    (warm(overrides=("steps",)), "bad_config", "steps"),
    (warm(sampler="ancestral", order="margin"), "bad_value", "order"),
    (warm(sampler="first-hitting", steps=3), "bad_value", "steps"),
    (warm(sampler="ancestral", eoser=True), "bad_config", "eoser"),
    (warm(length=4, max_tokens=9), "bad_value", "max_tokens"),
    (replace(IN_PLACE, temperature=-1.0), "bad_value", "temperature"),
    (replace(IN_PLACE, parallel=True), "bad_value", "parallel"),
    (GenerateOptions(steps=4), "bad_value", "steps"),
    (GenerateOptions(eoser=False), "bad_value", "eoser"),
    (GenerateOptions(decoder="cm3", length="auto"), "bad_value", "length"),
]


@pytest.mark.parametrize(("options", "code", "word"), REFUSED, ids=[word for _, _, word in REFUSED])
def test_options_that_cannot_be_used_are_named(
    kit: Kit, options: GenerateOptions, code: str, word: str
) -> None:
    with pytest.raises(Cm3kitError, match=word) as caught:
        kit.generate("red apple", options=options)
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_prompts_that_do_not_fit_are_refused(kit: Kit) -> None:
    for prompt, code in (("apple pear " * 200, "too_long"), (" \n ", "bad_value")):
        with pytest.raises(ConfigError) as caught:
            kit.generate(prompt, options=IN_PLACE)
        assert caught.value.code == code
    with pytest.raises(ConfigError) as caught:
        kit.infill(Page.parse(b"<p><mask></p>"), options=warm(max_tokens=200))
    assert caught.value.code == "too_long"


# --- Models ---


def test_a_model_that_was_not_trained_for_it_says_what_to_use(make: Make) -> None:
    plain = cm3kit.load(make(), device="cpu")
    with pytest.raises(ConfigError, match="use cm3") as caught:
        plain.generate("red apple", options=IN_PLACE)
    assert caught.value.code == "bad_value" and "\n" not in str(caught.value)
    saved = json.loads((plain.parts.folder / "defaults.json").read_text())
    assert "diffusion" not in saved  # the file of a causal model stays as it was
    only = cm3kit.load(make(decoders=("diffusion",)), device="cpu")
    assert only.generate("red apple", seed=1)[0].trace is not None
    with pytest.raises(ConfigError, match="use diffusion"):
        only.generate("red apple", options=GenerateOptions(decoder="cm3"))


def test_settings_without_the_decoder_are_refused() -> None:
    with pytest.raises(ValueError, match="does not name it"):
        Defaults(diffusion=DiffusionDefaults(shift=True))


def test_shift_reads_each_place_at_the_one_before(make: Make, kit: Kit) -> None:
    shifted = cm3kit.load(make(**BOTH, diffusion={"shift": True}), device="cpu")
    one, other = (each.generate("red apple", seed=1, options=IN_PLACE)[0] for each in (shifted, kit))
    assert not alike(one, other)
    ids = torch.tensor([[1, 60, 61, 3, 62]])
    ask = Ask(ids, (5,), (torch.tensor([3]),), (1.0,))
    filler = shifted.filler(IN_PLACE)
    assert isinstance(filler, DiffusionFiller)
    logits_TV = diffusion_backbone(shifted.parts)(ids, attention_mask=_full(5))[0][0]
    assert torch.allclose(filler._denoisers.plain("fp32").logits(ask)[0][0], logits_TV[2], atol=1e-4)


def test_weights_of_its_own_are_used_for_diffusion_alone(make: Make, kit: Kit) -> None:
    target = make(own="other")
    own = cm3kit.load(target, device="cpu")
    assert own.parts.defaults.decoders == ("cm3", "diffusion")
    assert {"text", "image", "decoder", "diffusion"} <= json.loads(
        (target / "model_index.json").read_text()
    ).keys()
    assert "diffusion/model.safetensors" in (target / "manifest.json").read_text()
    assert alike(own.generate("red apple", seed=1)[0], kit.generate("red apple", seed=1)[0])
    written = [each.generate("red apple", seed=1, options=warm())[0] for each in (own, kit)]
    assert not alike(*written)
    info = own.info()
    assert info["decoders"] == "cm3, diffusion" and "diffusion/model.safetensors" in info["sha256"]
    filler = own.filler(IN_PLACE)
    assert isinstance(filler, DiffusionFiller)
    weights = filler._denoisers._weights()
    assert info["parameters"]["diffusion"] == sum(each.numel() for each in weights.parameters())
    assert "diffusion" not in kit.info()["parameters"]


def test_weights_of_its_own_are_read_when_needed_and_strictly(make: Make) -> None:
    target = make(own="other")
    path = target / "diffusion/model.safetensors"
    tensors = load_file(path)
    name = sorted(name for name in tensors if tensors[name].ndim == 2)[-1]
    save_file({**tensors, name: torch.zeros(3, 5)}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"diffusion/model\.safetensors"):
        cm3kit.load(target, device="cpu")
    (target / "manifest.json").unlink()
    broken = cm3kit.load(target, device="cpu")
    assert broken.generate("red apple", seed=1)[0].image is not None
    with pytest.raises(ModelError, match=name.replace(".", r"\.")) as caught:
        broken.generate("red apple", seed=1, options=IN_PLACE)
    assert caught.value.code == "bad_checkpoint"


def test_a_model_that_looks_at_the_time_is_given_it(make: Make, kit: Kit) -> None:
    timed = cm3kit.load(make(own="timed"), device="cpu")
    made, usual = (each.generate("red apple", seed=1, options=warm())[0] for each in (timed, kit))
    assert (
        made.image and usual.image and made.image.tobytes() == usual.image.tobytes()
    )  # it begins as identity
    filler = timed.filler(IN_PLACE)
    assert isinstance(filler, DiffusionFiller)
    backbone = filler._denoisers._weights()
    with torch.no_grad():
        for layer in backbone.model.layers:
            layer.timestep.weight.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 60, 61, 3, 62]])
    asks = [Ask(ids, (5,), (torch.tensor([3]),), (time,)) for time in (0.9, 0.1)]
    early, late = (filler._denoisers.plain("fp32").logits(ask)[0] for ask in asks)
    assert not torch.allclose(early, late, atol=1e-3)
    with pytest.raises(ConfigError, match="looks at the time"):
        timed.generate("red apple", options=warm(cache="prefix", block_size=4))
    how = {"cache": "exact", "block_size": 8}
    blocks = {"trained_block": 8, "image": how, "text": how, "mixed": how}
    in_blocks = cm3kit.load(make(own="timed", diffusion=blocks, decoders=("diffusion",)), device="cpu")
    for options in (warm(verify_cache=True), warm(length="auto", max_tokens=4)):
        (page,) = in_blocks.infill(Page.parse(b"<p>red <mask></p>"), seed=1, options=options)
        assert page.trace is not None and page.html.startswith(b"<p>red ")
        assert page.trace.verification is None or page.trace.verification.flips == 0


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_caches_are_used_and_verified(kit: Kit, cache: str) -> None:
    options = warm(cache=cache, block_size=4, steps=2, verify_cache=True)
    result = kit.generate("red apple", seed=1, options=options)[0]
    assert result.trace is not None and result.trace.verification is not None
    assert result.trace.verification.passes == result.trace.cost.partial == 4
    assert result.trace.cost.full == 4 and result.trace.verification.largest > 0
    plain = kit.generate("red apple", seed=1, options=replace(options, cache="none", verify_cache=False))[0]
    assert plain.trace is not None and plain.trace.cost.token_forwards > result.trace.cost.token_forwards


def in_blocks(make: Make, layout: str = "page", **more: object) -> Kit:
    how = {"cache": "causal" if layout == "behind" else "exact", "block_size": 8}
    diffusion = {"trained_block": 8, "layout": layout, "shift": layout == "behind"}
    folder = make(**BOTH, **more, diffusion={**diffusion, "image": how, "text": how, "mixed": how})
    return cm3kit.load(folder, device="cpu")


@pytest.mark.parametrize("layout", ["page", "behind"])
def test_a_model_trained_in_blocks_is_used_in_blocks(make: Make, layout: str) -> None:
    blocks = in_blocks(make, layout)
    options = warm(verify_cache=True, precision="fp32")
    page = Page.parse(b"<p>red <mask> and <mask> apple</p>")
    filled = blocks.infill(page, variants=2, seed=1, options=options)
    for each in filled:
        assert each.trace is not None and each.trace.verification is not None
        assert each.trace.verification.passes > 0 and each.trace.verification.flips == 0
        assert each.trace.verification.largest < 1e-3
    auto = blocks.infill(page, seed=1, options=warm(length="auto", max_tokens=6))[0]
    assert auto.html.startswith(b"<p>red ") and all(gap.ended for gap in auto.gaps)
    for more in ({"cache": "none"}, {"block_size": 9}, {"cache": "dual"}):
        with pytest.raises(ConfigError, match=r"blocks of( at most)? 8"):
            blocks.generate("red apple", options=warm(**more))
    if layout == "page":
        with pytest.raises(ConfigError, match="blocks of 8"):
            blocks.generate("red apple", options=warm(block_size=4))
    else:  # blocks of one are the causal model
        one = blocks.generate("red apple", options=warm(block_size=1, verify_cache=True))[0].trace
        assert (
            one is not None and one.cost.forwards == CODES and one.verification and not one.verification.flips
        )


def test_gaps_behind_the_page_are_filled_in_their_places(make: Make, site: Path) -> None:
    behind = in_blocks(make, "behind")
    source = b'<div><p>one <mask> two</p></div><img alt="<mask>" src="pear.png"><ul><mask></ul>'
    pages = behind.infill(Page.parse(source, base=site), variants=6, seed=0, options=warm(max_tokens=14))
    for each in pages:
        holes = [each.html[len(b"<div><p>one ") :].split(b" two</p></div>")[0]]
        holes.append(each.html.split(b"<ul>", 1)[1].rsplit(b"</ul>", 1)[0])
        assert in_order(source.split(b"<mask>"), each.html)
        assert all(_balanced(hole) for hole in holes), each.html
    # What a row holds does not depend on its neighbours, nor on how many there are.
    alone = behind.infill(Page.parse(source, base=site), seed=0, options=warm(max_tokens=14))[0]
    assert alone.html == pages[0].html
    drawn = [behind.generate("red apple", n=3, seed=2, options=warm(batch_size=size)) for size in (1, 3)]
    assert all(map(alike, *drawn))
    cost = drawn[0][0].trace.cost if drawn[0][0].trace else None
    assert cost is not None and cost.forwards == CODES and cost.wasted == 0


def test_a_long_page_has_its_gaps_behind_each_slice(make: Make) -> None:
    behind = in_blocks(make, "behind", window=64)
    source = b"".join(b"<p>%b <mask> apple</p>" % (b"green pear " * 12) for _ in range(4))
    asked: list[Canvas] = []
    window = DiffusionFiller.window

    def seen(self: DiffusionFiller, *given: object) -> Canvas:
        asked.append(window(self, *given))  # type: ignore[arg-type]
        return asked[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionFiller, "window", seen)
        filled = behind.infill(Page.parse(source), seed=1, options=warm(max_tokens=8))[0]
    assert in_order(source.split(b"<mask>"), filled.html) and len(asked) > 1
    eod = behind.parts.vocab.eod
    assert all(len(each.flatten(0).ids) <= 64 for each in asked)
    assert [each.ids.count(eod) for each in asked[1:-1]] == [0] * (len(asked) - 2)


# --- The command line, with the toy model ---


def test_files_say_by_which_sampler_they_were_made(
    folder: Path, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(site)
    monkeypatch.setenv("CM3KIT_MODEL", str(folder))
    assert run("generate apple -o a.png --seed 1 --decoder diffusion --steps 4".split()) == 0
    assert run("generate apple -o b.png --seed 1 --decoder diffusion --sampler llada -q".split()) == 0
    assert run("generate apple -o c.png --seed 1 -q".split()) == 0
    made = []
    for name in ("a.png", "b.png", "c.png"):
        with Image.open(site / name) as picture:
            made.append(json.loads(picture.text["cm3kit"]))  # type: ignore[attr-defined]
            assert f"Sampler: {made[-1]['sampler']}," in picture.text["parameters"]  # type: ignore[attr-defined]
    assert [(each["decoder"], each["sampler"]) for each in made] == [
        ("diffusion", "diffusion"), ("diffusion", "llada"), ("cm3", "cm3"),
    ]  # fmt: skip
    format = made[0]["precision"]
    assert made[0]["options"] == {"decoder": "diffusion", "steps": 4, "precision": format}
    assert made[0]["settings"]["steps"] == 4 and made[0]["settings"]["precision"] == format != "auto"
    assert DiffusionConfig.model_validate(made[1]["settings"]) == presets["llada"].config(precision=format)
    assert "settings" not in made[2]
    (site / "page.html").write_bytes(b"<p>a <mask> b</p>")
    line = "infill page.html -o out/ --seed 1 --decoder diffusion --cache dual --block-size 8 --verify-cache"
    capsys.readouterr()
    assert run(line.split()) == 0
    assert "cache: " in capsys.readouterr().err
    record = json.loads((site / "out/run.json").read_text())
    assert record["sampler"] == "diffusion" and set(record["settings"]) == {"image", "text", "mixed"}
    assert record["settings"]["text"]["cache"] == "dual"
    row = json.loads((site / "out/manifest.jsonl").read_text())
    assert 0 < row["passes"] <= 33 and row["token_forwards"] > row["passes"]


def test_trajectories_are_written_with_the_results_or_not_at_all(
    folder: Path, site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cm3kit.provenance.trajectories import load_trajectory, replay

    monkeypatch.chdir(site)
    monkeypatch.setenv("CM3KIT_MODEL", str(folder))
    line = "generate apple -n 2 -o a/ --seed 1 --decoder diffusion --traj t.traj.safetensors -q"
    assert run(line.split()) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == ["t-0000.traj.safetensors", "t-0001.traj.safetensors"]
    for name in shown[-2:]:
        record = load_trajectory(site / name)
        *_, last = replay(record.trajectory)
        assert None not in last and record.how["prompt"] == "apple" and record.how["sampler"] == "diffusion"
    assert run([*line.replace("a/", "b/").split(), "--json"]) == 1  # the trajectories exist
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "exists" and not (site / "b").exists()
    hidden = (
        "generate secret -o - --seed 1 --decoder diffusion --traj h.traj.safetensors -q --no-prompt-metadata"
    )
    monkeypatch.setattr("cm3kit_cli.main.show", lambda *given: None)
    assert run(hidden.split()) == 0
    assert b"secret" not in (site / "h.traj.safetensors").read_bytes()


def test_models_are_assembled_as_their_decoders_were_trained(parts: Path, tmp_path: Path) -> None:
    def trained(name: str, **what: object) -> Path:
        shutil.copytree(parts / "decoder", tmp_path / name)
        Trained.model_validate(what).save(tmp_path / name)
        return tmp_path / name

    def defaults(target: str, decoder: Path, other: Path | None = None, **own: object) -> Defaults:
        given = Defaults.model_validate(own)
        assemble(tmp_path / target, parts / "text", parts / "image", decoder, given, "# Toy\n", other)
        return cm3kit.load(tmp_path / target, device="cpu").parts.defaults

    hybrid = trained("hybrid", decoders=["cm3", "diffusion"], shift=True, window=200)
    blocks = trained("blocks", decoders=["diffusion"], trained_block=8, window=100)
    behind = trained("behind", decoders=["cm3", "diffusion"], trained_block=8, shift=True, layout="behind")
    found = defaults("one", hybrid)
    assert found.decoders == ("cm3", "diffusion") and found.diffusion.shift and found.window == 200
    found = defaults("two", hybrid, blocks)
    assert found.decoders == ("cm3", "diffusion") and found.diffusion.trained_block == 8
    assert found.window == 100 and not found.diffusion.shift
    for each in (found.diffusion.image, found.diffusion.text, found.diffusion.mixed):
        assert (each.cache, each.block_size) == ("exact", 8)
    found = defaults("six", behind)
    assert found.diffusion.layout == "behind" and found.diffusion.shift
    assert (found.diffusion.text.cache, found.diffusion.text.block_size) == ("causal", 8)
    found = defaults("three", hybrid, decoders=["diffusion"], diffusion={"shift": False}, window=64)
    assert found.decoders == ("diffusion",) and not found.diffusion.shift and found.window == 64
    assert defaults("four", trained("causal", decoders=["cm3"])) == Defaults()
    (tmp_path / "hybrid" / "trained.json").write_text('{"shift": 7}')
    with pytest.raises(ModelError, match=r"trained\.json") as caught:
        defaults("five", hybrid)
    assert caught.value.code == "bad_checkpoint" and not (tmp_path / "five").exists()


def test_models_are_assembled_with_weights_for_diffusion(parts: Path, site: Path) -> None:
    line = [
        "model", "assemble", "--text", str(parts / "text"), "--image", str(parts / "image"),
        "--decoder", str(parts / "decoder"), "--diffusion", str(parts / "other"), "-o", str(site / "made"),
    ]  # fmt: skip
    assert run(line) == 0
    made = cm3kit.load(site / "made", device="cpu")
    assert made.parts.defaults.decoders == ("cm3", "diffusion")
    assert made.generate("red apple", seed=1, options=IN_PLACE)[0].image is not None
