"""Chameleon and Anole: logits, ids and pictures against transformers' own class, and every task of theirs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import chameleon_folder as theirs
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ChameleonImageProcessorPil, ChameleonProcessor, PreTrainedTokenizerFast
from transformers import RepetitionPenaltyLogitsProcessor as Penalty

import cm3kit
from cm3kit.decoders.engines import make_engine
from cm3kit.fill.batching import Order
from cm3kit.fill.fillers import Task
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.needs import needs
from cm3kit.fill.styles import PromptStyle
from cm3kit.interop.chameleon import code_of
from cm3kit.models.backbone import forward
from cm3kit.models.transplant import borrow_text
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError, ModelError
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.pictures import load_picture
from cm3kit_tokenizers.vq.model import to_signed

S, EOS, BREAK, EOSS, TURN = (
    theirs.IDS[name] for name in ("<s>", "</s>", "<racm3:break>", "<eoss>", "<reserved08706>")
)
CODES = [theirs.IDS[theirs.name(code)] for code in range(theirs.CODES)]
STYLES: tuple[PromptStyle, ...] = ("page", "plain", "chat")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return theirs.write(tmp_path_factory.mktemp("anole"))


@pytest.fixture(scope="module")
def kit(folder: Path) -> Kit:
    return cm3kit.load(folder, device="cpu")


@pytest.fixture(scope="module")
def stock() -> Any:
    return theirs.stock()


@pytest.fixture(scope="module")
def own(folder: Path, kit: Kit) -> dict[int, int]:
    """Their id of each of ours that is one."""
    borrowed, vocab = borrow_text(str(folder)), kit.vocab
    found = {vocab.text.start + place: ids[0] for place, ids in enumerate(borrowed.rows)}
    found |= {vocab.image.start + code: id for code, id in enumerate(CODES)}
    return found | {0: theirs.IDS["<pad>"], 1: S, 2: EOS, 5: BREAK, 6: EOSS, 7: TURN}


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (theirs.SIDE, theirs.SIDE)) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def hidden_logits(stock: Any, row: list[int]) -> torch.Tensor:
    """Logits after a row, as their class has them before it bars codes."""
    with torch.no_grad():
        hidden: torch.Tensor = stock.model(input_ids=torch.tensor([row])).last_hidden_state
        logits: torch.Tensor = stock.lm_head(hidden[0, -1])
    return logits


def drawn(stock: Any, row: list[int], words: float, pictures: float) -> list[int]:
    """The likeliest codes behind a row that ends in a picture's begin, guided as chameleon/inference/chameleon.py says:
    unconditional + pictures (those alone - unconditional) + words (all - pictures alone)."""
    earlier = [id for id in row if id in {*CODES, S, BREAK, EOSS}]
    out: list[int] = []
    for _ in range(theirs.LENGTH):
        whole, seen, none = (hidden_logits(stock, [*each, *out]) for each in (row, earlier, [S, BREAK]))
        mixed = none + pictures * (seen - none) + words * (whole - seen)
        out.append(CODES[int(mixed[CODES].argmax())])
    return out


def written(stock: Any, kit: Kit, own: dict[int, int], row: list[int], most: int, **more: Any) -> list[int]:
    """What transformers' generate writes behind a row: words of ours, with the penalty of the first release."""
    back = {id: ours for ours, id in own.items()}
    grammar = kit.context.grammar

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        state = grammar.begin("attribute", False, grammar.after([]))
        said = [back[id] for id in ids[len(row) :].tolist()]
        mask = grammar.allowed(grammar.after(said, state), most - len(said))
        words = [own[id] for id in mask.nonzero().flatten().tolist() if id in own]
        return [*words, BREAK] if EOS in words else words

    ids = stock.generate(
        input_ids=torch.tensor([row]), do_sample=False, max_new_tokens=most, prefix_allowed_tokens_fn=allowed,
        logits_processor=[Penalty(1.2, prompt_ignore_length=len(row))], eos_token_id=[EOS, BREAK], pad_token_id=1,
        **more,
    )  # fmt: skip
    found: list[int] = ids[0, len(row) :].tolist()
    return found


def greedy(**more: Any) -> GenerateOptions:
    return GenerateOptions(temperature=0, **more)


def test_names_of_codes_are_read_as_transformers_reads_them(stock: Any, folder: Path) -> None:
    assert {id: code for code, id in enumerate(borrow_text(str(folder)).codes)} == {
        id: int(code) for id, code in stock.model.vocabulary_mapping.bpe2img.items()
    }
    assert [code_of(name) for name in ("IMGIMGAZ", "IMGIMGBCDZ", "IMGIMGIBJBZ")] == [0, 123, 8191]


def test_no_text_is_a_code_or_a_mark(kit: Kit) -> None:
    for said in ("IMGIMGBCZ", "<racm3:break>", "<eoss></s>", "<reserved08706>"):
        ids = kit.tokenizer.text_ids(said)
        assert (
            len(ids) > 1
            and all(id in kit.vocab.text for id in ids)
            and kit.text.decode([id - kit.vocab.text.start for id in ids]) == said
        )


def test_logits_of_words_and_pictures_are_theirs(kit: Kit, stock: Any, own: dict[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    ours = torch.tensor(sorted(own))
    row_T = ours[torch.randint(len(ours), (96,), generator=rng)]
    mapped = torch.tensor([own[int(id)] for id in ours])
    found_TV = forward(kit.backbone, row_T[None])[0][:, ours]
    with torch.no_grad():
        hidden = stock.model(input_ids=torch.tensor([[own[id] for id in row_T.tolist()]])).last_hidden_state
        wanted_TV = stock.lm_head(hidden)[0][:, mapped]
    assert (found_TV - wanted_TV).abs().max() < 1e-4 < wanted_TV.abs().max()


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (24, 60)])
def test_codes_of_a_picture_are_theirs(kit: Kit, stock: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    opened = load_picture(picture(tmp_path / "a.png", 3, size).read_bytes())
    codes = kit.encode_picture(opened)
    left, top = (size[0] - min(size)) // 2, (size[1] - min(size)) // 2
    square = opened.crop((left, top, left + min(size), top + min(size))).resize(
        (16, 16), Image.Resampling.LANCZOS
    )
    pixels = to_signed(torch.from_numpy(np.array(square)).permute(2, 0, 1)[None])
    ids = stock.get_image_tokens(pixels)[0].tolist()
    assert [CODES[code] for code in codes] == ids and len(set(codes)) > 3
    assert len(codes) == theirs.LENGTH


@pytest.mark.parametrize("prompt", ["a red apple", "the blue square, the red", "12345 foxes"])
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_words_are_those_of_generate(
    kit: Kit, stock: Any, own: dict[int, int], prompt: str, style: PromptStyle
) -> None:
    ids = [own[id] for id in kit.tokenizer.text_ids(prompt)]
    row = [S, *ids, TURN] if style == "chat" else [S, *ids]
    wanted = written(stock, kit, own, row, 24)
    filler, options = kit.filler(greedy()), greedy(max_tokens=24, prompt_style=style)
    canvas = filler.task("text", kit._page_of("text", prompt), options, 0)
    assert [own[id] for id in canvas.ids] == row
    (result,) = filler.fill([canvas], options, lambda done, total: None)
    found = [own[id] for id in result.fills[0].ids]
    assert found == [id for id in wanted if id not in (EOS, BREAK)]
    assert result.fills[0].ended == (wanted[-1] in (EOS, BREAK))
    (again,) = kit.generate(prompt, task="text", options=options)
    text = kit.text.decode([id - kit.vocab.text.start for id in result.fills[0].ids]).strip()
    assert again.text == text


@pytest.mark.parametrize("style", ["plain", "chat"])
def test_captions_are_those_of_their_processor_and_generate(
    kit: Kit, stock: Any, own: dict[int, int], folder: Path, tmp_path: Path, style: PromptStyle
) -> None:
    path = picture(tmp_path / "a.png", 5)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), sep_token="<reserved08706>", pad_token="<pad>"
    )
    side = {"height": 16, "width": 16}
    images = ChameleonImageProcessorPil(size={"shortest_edge": 16}, crop_size=side, rescale_factor=1 / 127.5)
    processor = ChameleonProcessor(images, tokenizer, image_seq_length=theirs.LENGTH)
    said = "<image>" if style == "plain" else "<image>Describe this picture."
    with Image.open(path) as opened:
        inputs = processor(
            images=opened, text=f"<s>{said}", return_for_text_completion=style == "plain", return_tensors="pt"
        )
    row = inputs["input_ids"][0].tolist()
    wanted = written(stock, kit, own, row, 16, pixel_values=inputs["pixel_values"])
    options = greedy(max_tokens=16, prompt_style=style)
    filler = kit.filler(options)
    canvas = filler.task("caption", kit._page_of("caption", path), options, 0)
    shown = [own[id] for id in canvas.ids]
    assert [id if id not in CODES else theirs.IDS["<image>"] for id in shown] == row
    (result,) = filler.fill([canvas], options, lambda done, total: None)
    assert [own[id] for id in result.fills[0].ids] == [id for id in wanted if id not in (EOS, BREAK)]


@pytest.mark.parametrize("weight", [3.0, 1.0, 5.5])
@pytest.mark.parametrize("style", ["plain", "chat"])
def test_a_picture_from_words_is_guided_as_theirs(
    kit: Kit, stock: Any, own: dict[int, int], weight: float, style: PromptStyle
) -> None:
    ids = [own[id] for id in kit.tokenizer.text_ids("a red apple")]
    row = [S, *ids, TURN, BREAK] if style == "chat" else [S, *ids, BREAK]
    options = greedy(guidance=weight, prompt_style=style)
    (result,) = kit.generate("a red apple", task="image", options=options)
    assert [CODES[code] for code in result.codes] == drawn(stock, row, weight, 1.2)
    assert result.image is not None and result.image.size == (16, 16)
    (unguided,) = kit.generate("a red apple", task="image", options=greedy(guidance=1, prompt_style=style))
    assert unguided.codes != result.codes or weight == 1


def test_a_picture_among_others_is_guided_by_them(
    kit: Kit, stock: Any, own: dict[int, int], tmp_path: Path
) -> None:
    first = picture(tmp_path / "a.png", 7)
    source = b'<p>a red apple</p><img src="a.png"><p>and a green apple</p><img alt="blue" src="<mask>">'
    page = Page.parse(source, tmp_path)
    codes = [CODES[code] for code in kit.encode_picture(load_picture(first.read_bytes()))]
    canvas = kit.filler(greedy()).window(kit.tokenizer.encode(page.nodes(lambda src: True), lambda seen: (
        kit.encode_picture(load_picture(first.read_bytes())), None)), greedy(), 0)  # fmt: skip
    row = [own[id] for id in canvas.ids]
    assert row[0] == S and row[-1] == BREAK and row.count(BREAK) == 2 and row.count(EOSS) == 1
    assert row[row.index(BREAK) + 1 : row.index(EOSS)] == codes
    assert [[own[id] for id in guide.ids] for guide in canvas.guides] == [
        [S, BREAK], [S, BREAK, *codes, EOSS, BREAK],
    ]  # fmt: skip
    wanted = drawn(stock, row, 3.0, 1.2)
    (filled,) = kit.infill(page, options=greedy())
    (again,) = kit.filler(greedy()).fill([canvas], greedy(), lambda done, total: None)
    assert [own[id] for id in again.fills[0].ids] == wanted
    before, after = source.split(b"<mask>")
    assert filled.html.startswith(before + b"data:image/png;base64,") and filled.html.endswith(after)


def interleaved(stock: Any, kit: Kit, own: dict[int, int], row: list[int], most: int) -> list[list[int]]:
    """Words and pictures behind a row by transformers' generate and the loop above, until an end, so many words, or the
    end of the window."""
    pieces, window = list[list[int]](), kit.parts.defaults.window
    back, grammar = {id: ours for ours, id in own.items()}, kit.context.grammar
    while most > 0 and (room := window - len(row) - 1) > 0:
        # A picture with its marks has to fit behind the words.
        before = room - theirs.LENGTH - 2
        limit, ends = (min(most, before), [EOS, BREAK]) if before > 0 else (min(most, room), [EOS])

        def allowed(
            batch: int, ids: torch.Tensor, start: int = len(row), left: int = limit, ends: list[int] = ends
        ) -> list[int]:
            said = [back[id] for id in ids[start:].tolist()]
            state = grammar.after(said, grammar.begin("attribute", True, grammar.after([])))
            mask = grammar.allowed(state, left - len(said))
            words = [own[id] for id in mask.nonzero().flatten().tolist() if id in kit.vocab.text]
            return words if state.utf8 else [*words, *ends]

        found = stock.generate(
            input_ids=torch.tensor([row]), do_sample=False, max_new_tokens=limit, prefix_allowed_tokens_fn=allowed,
            logits_processor=[Penalty(1.2, prompt_ignore_length=len(row))], eos_token_id=[EOS, BREAK],
            pad_token_id=1,
        )[0, len(row) :].tolist()  # fmt: skip
        words = [id for id in found if id not in (EOS, BREAK)]
        pieces += [words] if words else []
        row, most = [*row, *words], most - len(words)
        if found[-1] == EOS:
            break
        if found[-1] == BREAK:
            codes = drawn(stock, [*row, BREAK], 3.0, 1.2)
            pieces.append(codes)
            row = [*row, BREAK, *codes, EOSS]
    return pieces


def test_a_page_of_words_and_pictures_is_written_as_theirs(tmp_path: Path) -> None:
    folder = theirs.write(tmp_path)
    stock = theirs.stock()
    # Random weights hardly ever begin a picture; these do.
    path = next(each for each in folder.glob("*.safetensors") if "lm_head.weight" in load_file(each))
    tensors = load_file(path)
    tensors["lm_head.weight"][BREAK] *= 3.0
    save_file(tensors, path, metadata={"format": "pt"})
    with torch.no_grad():
        stock.lm_head.weight[BREAK] *= 3.0
    kit = cm3kit.load(folder, device="cpu")
    borrowed = borrow_text(str(folder))
    own = {kit.vocab.text.start + place: ids[0] for place, ids in enumerate(borrowed.rows)}
    own |= {kit.vocab.image.start + code: id for code, id in enumerate(CODES)}
    drew = 0
    for prompt in ("a red apple", "the blue square, the red", "foxes"):
        row = [S, *(own[id] for id in kit.tokenizer.text_ids(prompt)), TURN]
        wanted = interleaved(stock, kit, own, row, 40)
        options = greedy(prompt_style="chat", max_tokens=40)
        task: Any = kit.filling(Order(prompt, "document", 0, 0, options))
        while (canvas := task.next_canvas()) is not None:
            (result,) = kit.filler(options).fill([canvas], options, lambda done, total: None)
            task.take(result)
        assert [[own[id] for id in piece] for piece in task._pieces] == wanted
        page = task.result().html
        drew += page.count('<figure><img src="data:image/png')
        assert page.count("<figure>") == sum(piece[0] in CODES for piece in wanted)
        (same,) = kit.generate(prompt, task="document", options=options)
        assert same.html == page and f"<title>{prompt}</title>" in page
    assert drew > 1


def test_documents_end_where_the_window_does(kit: Kit) -> None:
    results = kit.generate(
        "a", task="document", n=3, options=GenerateOptions(max_tokens=400, temperature=1.5)
    )
    for each in results:
        assert each.kind == "page" and each.html is not None and not Page.parse(each.html.encode()).gaps
    with pytest.raises(ConfigError, match="not in HTML source"):
        kit.generate("a", task="document", options=GenerateOptions(prompt_style="page"))
    with pytest.raises(ConfigError, match="shorten it"):
        kit.generate("12345 " * 100, task="document")


@pytest.mark.parametrize("style", STYLES)
def test_gaps_of_words_and_pictures_are_filled_and_no_byte_outside_changes(
    kit: Kit, tmp_path: Path, style: PromptStyle
) -> None:
    picture(tmp_path / "cat.png", 1, (32, 20))
    source = (
        b"<!DOCTYPE html><title>red &amp; green</title>\n<body class=x><h1>A red apple</h1><p>It is <mask> and.</p>"
        b'<img alt=\'<mask>\' src=cat.png>\n<!-- kept --><figure><img alt="a blue one" src="<mask>"></figure>'
        b"<p>so <mask></p></body>"
    )
    page = Page.parse(source, tmp_path)
    options = GenerateOptions(max_tokens=8, temperature=1.0, prompt_style=style)
    for each in kit.infill(page, variants=2, seed=1, options=options):
        found = re.fullmatch(b"(.*?)".join(map(re.escape, source.split(b"<mask>"))), each.html, re.S)
        assert found is not None and found[3].startswith(b"data:image/png;base64,")
        assert not re.search(rb"[<>]", found[1] + found[2] + found[4]) and b"'" not in found[2]
        assert not Page.parse(each.html).gaps and not each.warnings


def test_words_of_a_picture_are_written_behind_it(kit: Kit, own: dict[int, int], tmp_path: Path) -> None:
    data = picture(tmp_path / "cat.png", 1).read_bytes()
    codes = [CODES[code] for code in kit.encode_picture(load_picture(data))]
    page = Page.parse(b'<p>look:</p><img alt="<mask>" src=cat.png>', tmp_path)
    for style in STYLES:
        nodes = page.nodes(lambda src: True)
        ids = kit.tokenizer.encode(nodes, lambda seen: (kit.encode_picture(load_picture(data)), None))
        options = GenerateOptions(prompt_style=style)
        row = [own[id] for id in kit.filler(options).window(ids, options, 0).ids]
        at = row.index(BREAK)
        assert row[at : at + len(codes) + 2] == [BREAK, *codes, EOSS] and row.count(BREAK) == 1


@pytest.mark.parametrize("style", STYLES)
def test_a_region_of_a_picture_goes_on_from_the_codes_before_it(
    kit: Kit, own: dict[int, int], tmp_path: Path, style: PromptStyle
) -> None:
    path = picture(tmp_path / "cat.png", 2, (32, 24))
    page = Page.parse(b"<p>a cat</p><img src=cat.png>", tmp_path).region("cat.png", (8, 8, 8, 8))
    options = GenerateOptions(prompt_style=style)
    (filled,) = kit.infill(page, seed=3, options=options)
    address = re.search(rb"src=[\"']?(data:image/png;base64,[^\"'> ]+)", filled.html)
    assert address is not None
    import base64

    made = load_picture(base64.b64decode(address[1].split(b",")[1]))
    before, after = np.array(load_picture(path.read_bytes()).convert("RGB")), np.array(made.convert("RGB"))
    outside = np.ones(before.shape[:2], bool)
    outside[8:16, 8:16] = False
    assert (before[outside] == after[outside]).all() and (before[~outside] != after[~outside]).any()


def test_both_missing_are_words_and_then_their_picture(kit: Kit) -> None:
    for style in STYLES:
        (made,) = kit.generate("", task="pair", options=GenerateOptions(prompt_style=style, max_tokens=6))
        assert made.kind == "pair" and made.text and made.image is not None


def test_one_seed_gives_one_result_whatever_is_made_beside_it(kit: Kit) -> None:
    options = GenerateOptions(max_tokens=30, temperature=1.2)
    tasks: tuple[Task, ...] = ("image", "document", "pair")
    for task in tasks:
        many = kit.generate("a red apple", task=task, n=3, seed=4, options=options)
        (alone,) = kit.generate("a red apple", task=task, n=1, seed=4, first=2, options=options)
        assert (many[2].codes, many[2].text, many[2].html) == (alone.codes, alone.text, alone.html)
        assert (many[0].codes, many[0].text, many[0].html) != (alone.codes, alone.text, alone.html)


@pytest.mark.parametrize("task", ["image", "caption", "document"])
def test_rows_of_a_run_are_what_the_kit_makes(folder: Path, kit: Kit, tmp_path: Path, task: str) -> None:
    path = picture(tmp_path / "a.png", 5)
    prompts = [str(path)] * 2 if task == "caption" else ["red", "blue"]
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": prompt, "id": str(number)} for number, prompt in enumerate(prompts)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["sample", "run", str(rows), "-m", str(folder), "--task", task, "-o", str(tmp_path / "out"),
               "--seed", "4", "--max-tokens", "12", "--device", "cpu"]  # fmt: skip
    assert run(command) == 0
    listed = [path.read_text().splitlines() for path in sorted((tmp_path / "out").rglob("*.jsonl"))]
    told = [json.loads(line) for found in listed for line in found if '"id"' in line]
    assert {each["id"] for each in told} == {"0", "1"}


def test_an_imported_folder_is_the_same_model_and_opens_in_transformers(
    kit: Kit, folder: Path, tmp_path: Path
) -> None:
    made = tmp_path / "model"
    assert run(["model", "import", str(folder), "-o", str(made)]) == 0
    again = cm3kit.load(made, device="cpu")
    assert again.parts.defaults == kit.parts.defaults and again.parts.image.sha256 == kit.parts.image.sha256
    options, tasks = GenerateOptions(max_tokens=12), ("image", "text", "document")
    for task in tasks:
        one, other = (each.generate("a red apple", task=task, options=options)[0] for each in (kit, again))  # type: ignore[arg-type]
        assert (one.codes, one.text, one.html) == (other.codes, other.text, other.html)
    from transformers import AutoModelForImageTextToText

    opened, report = AutoModelForImageTextToText.from_pretrained(made / "decoder", output_loading_info=True)
    # What reads pictures is the image tokenizer's folder, and nothing else is amiss.
    assert all(name.startswith("model.vqmodel.") for name in report["missing_keys"])
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    ids = torch.arange(40, 90)[None]
    with torch.no_grad():
        assert torch.allclose(opened(input_ids=ids).logits, forward(kit.backbone, ids), atol=1e-4)


def test_one_that_was_released_without_a_decoder_reads_and_is_told_how_to_draw(
    kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = theirs.write(tmp_path, draws=False)
    path = picture(tmp_path / "a.png", 5)
    blind = cm3kit.load(folder, device="cpu")
    options = greedy(max_tokens=10)
    assert (
        blind.generate(path, task="caption", options=options)[0].text
        == kit.generate(path, task="caption", options=options)[0].text
    )
    for command in (
        ["generate", "red", "--task", "image", "-o", str(tmp_path / "x.png")],
        ["generate", "red", "--task", "document", "-o", str(tmp_path / "x.html")],
    ):
        assert run([*command, "-m", str(folder), "--device", "cpu"]) == 1
        assert "vqgan.ckpt" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "x.png").exists()
    assert run(["model", "import", str(folder), "-o", str(tmp_path / "m")]) == 1
    assert "vqgan.ckpt" in capsys.readouterr().err and not (tmp_path / "m").exists()
    # The VQGAN of the first release beside it.
    whole = dict(theirs.stock().model.vqmodel.state_dict()) | theirs.decoder()
    torch.save({"state_dict": whole}, folder / "vqgan.ckpt")
    sees = cm3kit.load(folder, device="cpu")
    assert sees.parts.image.sha256 == kit.parts.image.sha256
    one, other = (each.generate("a red apple", task="image", options=greedy())[0] for each in (sees, kit))
    assert one.codes == other.codes and np.array_equal(np.array(one.image), np.array(other.image))
    whole["quantize.embedding.weight"] = whole["quantize.embedding.weight"] + 1
    torch.save({"state_dict": whole}, folder / "vqgan.ckpt")
    with pytest.raises(ModelError, match="of another model"):
        cm3kit.load(folder, device="cpu")


def test_weights_of_16_bits_are_used_as_they_are(tmp_path: Path) -> None:
    kit = cm3kit.load(theirs.write(tmp_path, dtype=torch.bfloat16), device="cpu")
    assert kit.backbone.dtype == torch.bfloat16 and kit.info()["dtype"] == "bfloat16"
    (made,) = kit.generate("a red apple", task="image")
    assert len(made.codes) == theirs.LENGTH
    assert kit.generate("a red apple", task="text", options=GenerateOptions(max_tokens=8))[0].text


def test_what_is_not_theirs_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    def other(name: str, change: Any) -> Path:
        made = tmp_path / name
        shutil.copytree(folder, made)
        change(made)
        return made

    def of_lumina(made: Path) -> None:
        raw = json.loads((made / "config.json").read_text())
        raw["architectures"] = ["ChameleonXLLMXForConditionalGeneration"]
        (made / "config.json").write_text(json.dumps(raw))

    def without_a_code(made: Path) -> None:
        raw = json.loads((made / "tokenizer.json").read_text())
        del raw["model"]["vocab"][theirs.name(5)]
        (made / "tokenizer.json").write_text(json.dumps(raw))

    def without_codebook(made: Path) -> None:
        for path in made.glob("*.safetensors"):
            tensors = load_file(path)
            tensors.pop("model.vqmodel.quantize.embedding.weight", None)
            save_file(tensors, path, metadata={"format": "pt"})

    for name, change, said in (
        ("lumina", of_lumina, "ChameleonXLLMX"),
        ("codes", without_a_code, "each once"),
        ("cut", without_codebook, "it is cut"),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            cm3kit.load(other(name, change), device="cpu")
        assert "\n" not in str(caught.value)


def test_training_goes_on_from_an_imported_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, made = tmp_path / "corpus", tmp_path / "model"
    corpus.mkdir()
    picture(corpus / "red.png")
    (corpus / "red.html").write_text('<title>red</title><p>A red apple: <img alt="red" src="red.png"></p>')
    settings = {"data": corpus, "window": 128, "loop.steps": 2, "loop.batch_size": 1, "loop.precision": "fp32",
                "previews": "[]"}  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert run(["train", "cm3", "--from", str(folder), "-o", str(tmp_path / "no"), *words]) == 1
    assert "model import" in capsys.readouterr().err
    assert run(["model", "import", str(folder), "-o", str(made)]) == 0
    out = tmp_path / "run"
    assert run(["train", "cm3", "--from", str(made), "-o", str(out), *words, "--device", "cpu"]) == 0, (
        capsys.readouterr().err
    )
    assert (out / "final" / "model.safetensors").is_file()


def test_what_it_takes_is_told_without_its_weights(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = theirs.write(tmp_path / "half", dtype=torch.bfloat16)
    for path in (folder, half):
        kit = cm3kit.load(path, device="cpu")
        told = needs(path)
        held = sum(each.nbytes for each in kit.backbone.parameters())
        assert (told.parameters, told.weights) == (
            sum(each.numel() for each in kit.backbone.parameters()), held,
        )  # fmt: skip
        assert told.image == 4 * sum(each.numel() for each in kit.image.parameters())
        cache = make_engine(kit.backbone, len(kit.vocab), "fp32", 3).open(3, kit.parts.defaults.window)
        assert (told.cache, told.streams, told.window) == (cache.nbytes, 3, 256)
        assert told.total == told.weights + told.image + told.cache
    few = needs(f"{half}:nf4")
    assert few.dtype == "nf4" and few.weights < needs(half).weights
    raw = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(raw | {"dtype": "bfloat16"}))
    for path in half.glob("*.safetensors*"):
        path.unlink()
    assert run(["estimate", "-m", str(half)]) == 0
    assert "3 rows of 256 ids" in capsys.readouterr().out
    assert needs(half).weights == needs(folder).weights // 2
    assert run(["estimate", "cm3", "-m", str(half)]) != 0
    assert needs("pictures").dtype == "float32"
