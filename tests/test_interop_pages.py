"""Public diffusion language models with the commands of any other model: pages, words, samples, training, bits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import public_folders
import pytest
import torch
from toys import toy_corpus
from transformers import LlamaConfig, LlamaForCausalLM

import cm3kit
from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.evaluation.model import evaluate
from cm3kit.fill.denoisers import Denoisers
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.styles import PromptStyle, spelling
from cm3kit.models.backbone import forward, load_backbone
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError, ModelError
from cm3kit_tokenizers.html.minimal import render
from cm3kit_tokenizers.page import Page

NAMES = list(public_folders.CONFIGS)
STYLES: tuple[PromptStyle, ...] = ("page", "plain", "chat")
SHORT = GenerateOptions(length=6, temperature=1.0)
SOURCE = (
    b"<!DOCTYPE html>\n<html><head><title>red &amp; green</title></head>\n<body class=x><h1>A red apple</h1>"
    b"<p>The apple is <mask> and <b>green</b>.</p>\n<ul><mask></ul><!-- kept --><img alt='<mask>' src=no.png>"
    b"</body></html>"
)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: public_folders.write(name, tmp_path_factory.mktemp("pages")) for name in NAMES}


@pytest.fixture(scope="module")
def kits(shelf: dict[str, Path]) -> dict[str, Kit]:
    return {name: cm3kit.load(folder, device="cpu") for name, folder in shelf.items()}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_every_gap_of_a_page_is_filled_and_no_byte_outside_changes(
    kits: dict[str, Kit], name: str, style: PromptStyle
) -> None:
    page = Page.parse(SOURCE)
    options = GenerateOptions(length=6, temperature=1.0, prompt_style=style)
    filled = kits[name].infill(page, variants=2, seed=3, options=options)
    for each in filled:
        pieces = re.split(rb"<mask>", SOURCE)
        pattern = b"(.*?)".join(map(re.escape, pieces))
        found = re.fullmatch(pattern, each.html, re.S)
        assert found is not None
        # What was written is read back as the nodes it was written as, and leaves nothing open.
        again = Page.parse(each.html)
        assert not again.gaps and all(gap.ended for gap in each.gaps)
        assert re.fullmatch(rb"(<li>.*</li>)+", found[2], re.S)
        assert b"<" not in found[3] and b"'" not in found[3]
        assert render(again.nodes()).count("<li>") == found[2].count(b"<li>")
    assert filled[0].html != filled[1].html


@pytest.mark.parametrize("name", NAMES)
def test_the_model_reads_the_page_as_its_style_spells_it(
    kits: dict[str, Kit], shelf: dict[str, Path], name: str
) -> None:
    kit = kits[name]
    parts, vocab, text = kit.parts, kit.vocab, kit.text
    markup = {piece: vocab.markup_id(piece) for piece in ("<p>", "</p>", "<em>", "</em>")}

    def words(said: str) -> list[int]:
        return text.encode(said, vocab.text.start)

    page = [
        vocab.eod,
        markup["<p>"],
        *words("a red"),
        markup["<em>"],
        *words("apple"),
        markup["</em>"],
        vocab.mask,
    ]
    page += [markup["</p>"], vocab.eod]
    expected = {
        "page": [vocab.eod, *words("<p>"), *words("a red"), *words("<em>"), *words("apple"), *words("</em>"),
                 vocab.mask, *words("</p>"), vocab.eoss],
        "plain": [vocab.eod, *words("\n"), *words("a red"), *words("apple"), vocab.mask, *words("\n"), vocab.eoss],
    }  # fmt: skip
    slot = torch.tensor([page.index(vocab.mask)])
    for style, row in expected.items():
        spelt = spelling(style, text, vocab, parts.defaults.chat)  # type: ignore[arg-type]
        assert spelt is not None
        found, places = spelt.spell(page)
        assert found == row and found[places[int(slot)]] == vocab.mask
        denoiser = Denoisers(parts).make(parts.defaults.diffusion.text, style=style)  # type: ignore[arg-type]
        ask = Ask(torch.tensor([page]), (len(page),), (slot,), (1.0,))
        (logits_MV,) = denoiser.logits(ask)
        # The same row in the folder's own ids, by the model that nothing was moved in.
        own = {**{vocab.text.start + each: each for each in range(text.size)}}
        config = public_folders.CONFIGS[name]
        tokens = public_folders.LLADA_TOKENS if name == "llada" else public_folders.DREAM_TOKENS
        start = "<|startoftext|>" if name == "llada" else "<|beginoftext|>"
        own |= {vocab.mask: config["mask_token_id"]}
        own |= {vocab.eod: public_folders.WORDS + tokens.index(start)}
        own |= {vocab.eoss: public_folders.WORDS + tokens.index("<|endoftext|>")}
        theirs = load_backbone(shelf[name], 0)
        with torch.no_grad():
            wanted_TV = forward(theirs, torch.tensor([[own[id] for id in row]]), "full")[0]
        at = row.index(vocab.mask) - (0 if name == "llada" else 1)
        columns = [own[id] for id in vocab.text]
        assert torch.allclose(
            logits_MV[0, vocab.text.start : vocab.text.stop], wanted_TV[at, columns], atol=1e-4
        )


@pytest.mark.parametrize("name", NAMES)
def test_an_imported_folder_writes_what_the_downloaded_one_writes(
    kits: dict[str, Kit], shelf: dict[str, Path], tmp_path: Path, name: str
) -> None:
    made = tmp_path / "model"
    assert run(["model", "import", str(shelf[name]), "-o", str(made)]) == 0
    again = cm3kit.load(made, device="cpu")
    for style in STYLES:
        options = GenerateOptions(length=6, temperature=1.0, prompt_style=style)
        first, second = (
            kit.generate("a red apple", task="text", n=2, seed=1, options=options)
            for kit in (kits[name], again)
        )
        assert [each.text for each in first] == [each.text for each in second]
    assert again.parts.defaults == kits[name].parts.defaults
    how = again.parts.defaults.diffusion
    assert how.objective["diffusion"]["shift"] == how.shift == (name != "llada")
    assert again.info()["decoders"] == "diffusion"
    with pytest.raises(cm3kit.Cm3kitError, match="exists"):
        from cm3kit.interop.importing import import_model

        import_model(shelf[name], made)


def test_a_conversation_is_written_as_the_family_writes_it(kits: dict[str, Kit]) -> None:
    kit = kits["llada"]
    chat = kit.parts.defaults.chat
    assert chat is not None
    vocab, words = kit.vocab, kit.text.encode("hi", kit.vocab.text.start)
    ids = chat.ids(words, kit.text, vocab)
    start, end, turn = 5, 6, 7
    assert ids[:2] == [vocab.eod, start] and ids.count(turn) == 1 and ids.count(start) == ids.count(end) == 2
    assert ids[ids.index(turn) - len(words) : ids.index(turn)] == words


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_is_one_text_between_its_special_ids(kits: dict[str, Kit], name: str) -> None:
    kit = kits[name]
    chat, text, vocab = kit.parts.defaults.chat, kit.text, kit.vocab
    assert chat is not None
    for said in ("a red apple, and <p>.", "12 foxes?!", "\n\nnaïve"):
        ids = chat.ids(text.encode(said, vocab.text.start), text, vocab)
        runs, parts = [[]], [""]  # type: ignore[var-annotated]
        for id in ids:
            if id in vocab.text:
                runs[-1].append(id - vocab.text.start)
            else:
                runs.append([])
        for part in (*chat.before, said, *chat.after):
            parts = [*parts, ""] if isinstance(part, int) else [*parts[:-1], parts[-1] + part]
        assert runs == [text.encode(each) for each in parts]


def test_rows_of_a_run_are_what_the_kit_writes(
    shelf: dict[str, Path], kits: dict[str, Kit], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": each, "id": each}) + "\n" for each in ("red", "blue")))
    command = ["sample", "run", str(rows), "-m", str(shelf["dream"]), "--task", "text", "-o", str(tmp_path / "out"),
               "--seed", "4", "--decoder", "diffusion", "--length", "6", "--device", "cpu"]  # fmt: skip
    assert run(command) == 0
    listed = [path.read_text().splitlines() for path in sorted((tmp_path / "out").rglob("*.jsonl"))]
    told = [json.loads(line) for lines in listed for line in lines]
    texts = {each["id"]: each["text"] for each in told if "text" in each}
    assert set(texts) == {"red", "blue"} and all(texts.values())


@pytest.mark.parametrize("imported", [False, True])
@pytest.mark.parametrize("name", ["llada", "diffucoder"])
def test_training_goes_on_from_one(
    shelf: dict[str, Path], tmp_path: Path, name: str, imported: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, folder = tmp_path / "corpus", shelf[name]
    corpus.mkdir()
    toy_corpus(corpus, ("red",), channels=(8, 8))
    if imported:
        assert run(["model", "import", str(folder), "-o", str(tmp_path / "model")]) == 0
        folder = tmp_path / "model"
    settings = {"data": corpus, "image": corpus / "image", "window": 128, "loop.steps": 2, "loop.batch_size": 1,
                "loop.precision": "fp32", "previews": "[]"}  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    out = tmp_path / "run"
    assert run(["train", "mdm", "--from", str(folder), "-o", str(out), *words, "--device", "cpu"]) == 0, (
        capsys.readouterr().err
    )
    trained = json.loads((out / "final" / "trained.json").read_text())
    assert [(use["decoder"], use["shift"]) for use in trained["uses"]] == [("diffusion", name != "llada")]


def test_bits_of_pages_without_pictures_are_measured(shelf: dict[str, Path], tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.html").write_text(
            f"<title>apple {number}</title><p>a red apple and {number}</p>"
        )
    found = evaluate(tmp_path, str(shelf["llada"]), split="train", limit=4, rounds=1, device="cpu")
    assert found["documents"] and all(torch.isfinite(torch.tensor(value)) for value in found.values())
    # The source is longer than the words, and only the one that a model reads is measured.
    words = evaluate(
        tmp_path, str(shelf["llada"]), split="train", limit=4, rounds=1, device="cpu", style="plain"
    )
    assert words["tokens"] < found["tokens"] and words["documents"] == found["documents"]
    for style in ("chat", "minimal"):
        with pytest.raises(ConfigError, match="prompt style"):
            evaluate(tmp_path, str(shelf["llada"]), split="train", device="cpu", style=style)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="prompt style"):
        evaluate(tmp_path, "pictures", split="train", device="cpu", style="page")


def test_what_it_cannot_do_is_said_in_one_line(kits: dict[str, Kit], tmp_path: Path) -> None:
    kit = kits["llada"]
    told = []
    pictured = Page.parse(b"<p>x</p><img src='<mask>'>")
    for wrong in (
        lambda: kit.generate("red", task="image"),
        lambda: kit.generate("red", task="pair"),
        lambda: kit.infill(pictured),
        lambda: kit.generate("red", task="text", options=GenerateOptions(prompt_style="minimal")),
        lambda: kit.generate("red", task="text", options=GenerateOptions(cache="prefix", block_size=8)),
        lambda: cm3kit.load("pictures", device="cpu").generate(
            "red", task="text", options=GenerateOptions(decoder="diffusion", prompt_style="page")
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            wrong()
        told.append(str(caught.value))
    assert all("\n" not in line for line in told)
    assert "words alone" in told[0] and "page, plain or chat" in told[3] and "spells them out" in told[4]
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="without a tokenizer"):
        cm3kit.load(tmp_path, device="cpu")
    assert run(["model", "import", str(tmp_path), "-o", str(tmp_path / "m")]) == 1
