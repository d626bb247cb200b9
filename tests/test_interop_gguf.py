"""A decoder out of a GGUF file, laid out as SmolLM2's is: its vocabulary lacks bytes, and its weights are Q4_1."""

from __future__ import annotations

import json
import math
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toys import toy_corpus
from transformers import AutoModelForCausalLM

import cm3kit
from cm3kit.fill import task_pages
from cm3kit.fill.fillers import ScoreHow
from cm3kit.fill.kit import GenerateOptions
from cm3kit.fill.scoring import PageScorer
from cm3kit.fill.styles import PromptStyle
from cm3kit.models import gguf as files
from cm3kit.models.backbone import forward, load_backbone
from cm3kit.models.transplant import borrow_text, load_transplanted
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError, ModelError
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.text import TextTokenizer, byte_letters
from cm3kit_tokenizers.vocab import Vocab

gguf = pytest.importorskip("gguf")

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("Ġ a", "r e", "re d", "Ġ red", "a p", "p l", "ap pl", "appl e", "Ġ apple")
# As in SmolLM2: of the control bytes some are missing, and those that UTF-8 never has.
LOST = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, *range(0xF2, 0x100)} - {0xF3, 0xF4}


def tokens() -> list[str]:
    letters = sorted(byte_letters())
    lost = {TextTokenizer.train(["a"] * 2, 256).pieces.index(bytes([each])) for each in LOST}
    by_byte = TextTokenizer.train(["a"] * 2, 256)
    kept = [letter for letter in letters if by_byte._tokenizer.token_to_id(letter) not in lost]
    return [*SPECIALS, *kept, *("".join(merge.split()) for merge in MERGES)]


def tensors(width: int, layers: int, inner: int, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float32)

    found = {"token_embd.weight": drawn(rows, width) * 4, "output_norm.weight": 1 + drawn(width)}
    for layer in range(layers):
        at = f"blk.{layer}."
        found |= {f"{at}{name}_norm.weight": 1 + drawn(width) for name in ("attn", "ffn")}
        found |= {f"{at}attn_q.weight": drawn(width, width), f"{at}attn_output.weight": drawn(width, width)}
        found |= {f"{at}attn_{name}.weight": drawn(width // 2, width) for name in "kv"}
        found |= {f"{at}ffn_{name}.weight": drawn(inner, width) for name in ("gate", "up")}
        found[f"{at}ffn_down.weight"] = drawn(width, inner)
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q4_1.gguf"
    listed = tokens()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(listed))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(listed)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(listed) - len(SPECIALS)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    for name, value in tensors(64, 2, 96, len(listed)).items():
        if value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_missing_bytes_become_ids_and_any_text_comes_back(file: Path) -> None:
    borrowed = borrow_text(str(file))
    new = [place for place, ids in enumerate(borrowed.rows) if not ids]
    assert {borrowed.text.pieces[place] for place in new} == {bytes([each]) for each in LOST}
    assert new == list(range(borrowed.text.size - len(LOST), borrowed.text.size))
    every = "".join(map(chr, range(0x180))) + "日本 red apple" + string.printable + "\U000f1234\U0010ffff"
    assert borrowed.text.decode(borrowed.text.encode(every)) == every
    # Special tokens are out of reach of text.
    assert all(len(borrowed.text.encode(each)) > 1 for each in SPECIALS)


def test_text_keeps_its_logits_and_new_bytes_begin_as_the_mean(file: Path) -> None:
    borrowed = borrow_text(str(file))
    vocab = Vocab(borrowed.text.size, 8)
    model = load_transplanted(borrowed, vocab, 64)
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    ids = borrowed.text.encode("a red apple, and 12 more")
    old = [borrowed.rows[each][0] for each in ids]
    with torch.no_grad():
        wanted = theirs(torch.tensor([old])).logits[0][:, old]
        found = forward(model, torch.tensor([[vocab.text.start + each for each in ids]]))[0]
    assert torch.allclose(found[:, [vocab.text.start + each for each in ids]], wanted, atol=1e-4)
    table, mean = model.get_input_embeddings().weight, theirs.get_input_embeddings().weight.mean(0)
    place = borrowed.text.pieces.index(b"\xff")
    assert torch.allclose(table[vocab.text.start + place], mean, atol=1e-6)
    assert not hasattr(model.config, "quantization_config")


def test_training_starts_from_a_file_and_gives_a_plain_folder(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    toy_corpus(tmp_path, ("red",), channels=(8, 8))
    settings = {"data": tmp_path, "image": tmp_path / "image", "window": 128, "lora.rank": 2, "loop.steps": 2,
                "loop.batch_size": 1, "loop.precision": "fp32", "previews": "[]"}  # fmt: skip
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [
        "train",
        "cm3",
        "--backbone",
        str(file),
        "-o",
        str(tmp_path / "run"),
        *words,
        "--device",
        "cpu",
    ]
    assert run(command) == 0, capsys.readouterr().err
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "run/final", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    text = TextTokenizer.load(tmp_path / "run/text")
    assert model.config.vocab_size == len(Vocab(text.size, 32))


@pytest.mark.parametrize("style", ["page", "plain", "chat"])
def test_a_causal_model_fills_gaps_with_words_alone(file: Path, style: PromptStyle) -> None:
    kit = cm3kit.load(file, device="cpu")
    source = b"<!DOCTYPE html>\n<title>a</title><p class=x>A <mask> &amp; more</p><ul><li><mask></ul>"
    source += b"<a title='<mask>' href=x>b</a>"
    options = GenerateOptions(max_tokens=6, temperature=2.0, prompt_style=style)
    for each in kit.infill(Page.parse(source), variants=4, seed=1, options=options):
        pattern = b"([^<>]*)".join(map(re.escape, source.split(b"<mask>")))
        found = re.fullmatch(pattern, each.html, re.S)
        assert found is not None and b"'" not in found[3]
    texts = [each.text for each in kit.generate("a red apple", task="text", n=2, seed=1, options=options)]
    assert all(texts) and texts[0] != texts[1]


@pytest.mark.parametrize("style", ["page", "plain", "chat"])
def test_what_it_writes_is_scored_alike_and_keeps_to_constraints(file: Path, style: PromptStyle) -> None:
    kit = cm3kit.load(file, device="cpu")
    page = Page.parse(b"<h1>red</h1><p>The <mask> apple</p><img alt='<mask>' src='data:,'>")
    options = GenerateOptions(prompt_style=style, max_tokens=12, constrain=("*=choices:red|a red apple",))
    for filled in kit.infill(page, variants=3, seed=2, options=options):
        assert all(gap.satisfied and gap.text in ("red", "a red apple") for gap in filled.gaps)
        scorer = PageScorer.of_fills(kit, page, [filled], options, ScoreHow())
        (found,) = scorer.score(False, lambda done, total: None)
        assert found.gaps == {gap.index: pytest.approx(gap.logprob, abs=1e-3) for gap in filled.gaps}
    (whole,) = kit.score(Page.parse(b"<p>A red apple</p>"), options=GenerateOptions(prompt_style=style))
    assert whole.method == "exact" and whole.logprob < 0


def test_what_it_reads_is_what_the_file_reads(file: Path) -> None:
    kit = cm3kit.load(file, device="cpu")
    vocab, text = kit.vocab, kit.text
    page = kit.tokenizer.encode(task_pages.paragraph_nodes("a red apple"))
    canvas = kit.filler(GenerateOptions()).task("text", page, GenerateOptions(), 0)
    words = "<title>a red apple</title><h1>a red apple</h1><p>"
    assert canvas.ids[0] == vocab.eod
    assert text.decode([each - vocab.text.start for each in canvas.ids[1:]]) == words
    borrowed = borrow_text(str(file))
    old = [
        borrowed.specials[vocab.eod],
        *(borrowed.rows[each - vocab.text.start][0] for each in canvas.ids[1:]),
    ]
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        wanted = theirs(torch.tensor([old])).logits[0, -1, [ids[0] for ids in borrowed.rows if ids]]
        found = forward(kit.backbone, torch.tensor([canvas.ids]))[0, -1, vocab.text.start : vocab.text.stop]
    assert torch.allclose(found[[place for place, ids in enumerate(borrowed.rows) if ids]], wanted, atol=1e-3)


@pytest.mark.parametrize("style", ["page", "plain"])
def test_bits_of_pages_are_those_of_the_file_in_its_own_tokens(
    file: Path, tmp_path: Path, style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    said = ["a red apple", "12 more & a red one"]
    for number, words in enumerate(said):
        page = f'<title>{words}</title><p>{words}<img src="red.png"></p>'.replace("&", "&amp;")
        (tmp_path / f"{number}.html").write_text(page)
    command = ["eval", "model", str(tmp_path), "-m", str(file), "--split", "train", "--prompt-style", style]
    assert run([*command, "--device", "cpu", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["data"]
    assert "2 pictures are left out" in told.err
    borrowed = borrow_text(str(file))
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()
    bits, size = 0.0, 0
    for words in said:
        html = ["<title>", words, "</title>", "<p>", words, "</p>"]
        pieces = html if style == "page" else ["\n", words, "\n", words, "\n"]
        ids = [borrowed.rows[id][0] for piece in pieces for id in borrowed.text.encode(piece)]
        end = borrowed.specials[Vocab.eod]
        with torch.no_grad():
            logits = theirs(torch.tensor([[end, *ids]])).logits[0, :-1].log_softmax(-1)
        bits -= float(logits.gather(1, torch.tensor(ids)[:, None]).sum()) / math.log(2)
        size += len("".join(pieces))
    # Rows for what it has never seen take a little of the probability.
    assert bits / size < found["text_bits_per_byte"] < 1.001 * bits / size


def test_gaps_that_hold_elements_alone_are_refused(file: Path) -> None:
    kit = cm3kit.load(file, device="cpu")
    with pytest.raises(ConfigError, match="inside <ul> holds elements"):
        kit.infill(Page.parse(b"<ul><mask></ul>"))
    with pytest.raises(ConfigError, match="words alone"):
        kit.generate("x", task="document")


def test_what_is_missing_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_backbone(tmp_path / "broken.gguf", 0)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="no file"):
        load_backbone(tmp_path / "absent.gguf", 0)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    for source in ("smollm2", str(tmp_path / "broken.gguf")):
        with pytest.raises(ConfigError, match=r"pip install '.*\[smollm2\]'"):
            files.gguf_file(source)
