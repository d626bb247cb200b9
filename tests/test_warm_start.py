"""Public decoders in our id space: same logits for text, new rows for the rest, and back to a plain folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from toys import toy_corpus
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from cm3kit.models.backbone import forward, load_backbone
from cm3kit.models.lora import LoraSettings, add_lora, without_lora
from cm3kit.models.transplant import borrow_text, load_transplanted
from cm3kit_cli.main import run
from cm3kit_tokenizers.borrowed import borrow
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import MARKUP, Vocab

TEXTS = ["a red apple and a green apple", "the blue square, the red square", "naïve café <p>12345</p>"] * 3
# As Llama 3 and Qwen cut words.
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.3, "pad_token_id": 3,
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def modern() -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=True))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    return made


def older() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def trained(made: Tokenizer) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(["<|im_start|>"])
    return made


GPT2: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": lambda size: transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=size, **SIZES)),
    "qwen2": lambda size: transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(vocab_size=size, tie_word_embeddings=True, **SIZES)
    ),
    "gpt2": lambda size: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=size, **GPT2)),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny public decoders, with more rows than their tokenizers have ids, as Qwen has."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, make in FAMILIES.items():
        tokenizer = trained(older() if name == "gpt2" else modern())
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / name)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            make(tokenizer.get_vocab_size() + 5).save_pretrained(folder / name)
    return folder


def opened(folder: Path) -> tuple[PreTrainedModel, Vocab, TextTokenizer]:
    borrowed = borrow_text(str(folder))
    vocab = Vocab(borrowed.text.size, 40)
    return load_transplanted(borrowed, vocab, 64), vocab, borrowed.text


@pytest.mark.parametrize("name", list(FAMILIES))
def test_text_keeps_its_logits(shelf: Path, name: str) -> None:
    model, vocab, text = opened(shelf / name)
    theirs = AutoModelForCausalLM.from_pretrained(shelf / name, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(shelf / name / "tokenizer.json"))
    words = "a red square, and 12 naïve apples"
    old = tokenizer.encode(words).ids
    new = [vocab.text.start + each for each in text.encode(words)]
    assert len(old) == len(new)
    rows = dict(zip(old, new, strict=True))
    with torch.no_grad():
        before, after = theirs(torch.tensor([old])).logits, forward(model, torch.tensor([new]))
    assert after.shape[-1] == len(vocab)
    columns = torch.tensor(list(rows.items()))
    assert torch.allclose(before[..., columns[:, 0]], after[..., columns[:, 1]], atol=1e-4)
    # Every text id is a row of theirs, and no row is there twice.
    assert text.decode(text.encode(words)) == words


@pytest.mark.parametrize("name", list(FAMILIES))
def test_what_is_new_begins_as_a_mean(shelf: Path, name: str) -> None:
    model, vocab, _ = opened(shelf / name)
    theirs = AutoModelForCausalLM.from_pretrained(shelf / name, dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(shelf / name / "tokenizer.json"))
    for part in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(theirs, part)().weight, getattr(model, part)().weight
        assert len(new) == len(vocab)
        for id in (vocab.eoss, vocab.mask, vocab.sentinel(3), vocab.image.start, len(vocab) - 1):
            assert torch.allclose(new[id], old.mean(0), atol=1e-6)
        ids = tokenizer.encode(MARKUP[0], add_special_tokens=False).ids
        assert torch.allclose(new[vocab.markup.start], old[ids].mean(0), atol=1e-6)
    assert model.config.vocab_size == len(vocab) and model.config.eos_token_id == vocab.eod


def test_borrowed_tokens_are_theirs_without_specials(shelf: Path, tmp_path: Path) -> None:
    saved = (shelf / "llama/tokenizer.json").read_text()
    theirs = Tokenizer.from_str(saved)
    text, rows = borrow(saved, "it")
    for words in (*TEXTS, "日本語 \ud800 \x00\n\n x", "don't 1234567"):
        clean = words.replace("\ud800", "\ufffd")
        assert [rows[each] for each in text.encode(words)] == theirs.encode(clean).ids
        assert text.decode(text.encode(words)) == clean
    for hostile in ("<|endoftext|>", "<|im_start|>"):
        assert theirs.token_to_id(hostile) not in rows
        assert len(text.encode(hostile)) > 1 and text.decode(text.encode(hostile)) == hostile
    decomposed = "cafe\u0301"  # theirs would compose it, and lose a byte
    assert text.decode(text.encode(decomposed)) == decomposed
    text.save(tmp_path)
    again = TextTokenizer.load(tmp_path)
    assert again.sha256 == text.sha256 and again.encode(TEXTS[2]) == text.encode(TEXTS[2])


def test_a_cutter_that_keeps_its_matches_alone_cuts_the_same_words(shelf: Path) -> None:
    saved = json.loads((shelf / "llama/tokenizer.json").read_text())
    saved["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    theirs = Tokenizer.from_str(json.dumps(saved))
    text, rows = borrow(json.dumps(saved), "it")
    for words in (*TEXTS, "日本語 \x00\n\n x", "don't 1234567"):
        assert [rows[each] for each in text.encode(words)] == theirs.encode(words).ids
        assert text.decode(text.encode(words)) == words
    saved["pre_tokenizer"]["pretokenizers"][0]["invert"] = False  # this one loses words
    with pytest.raises(ModelError, match="not a byte-level BPE"):
        borrow(json.dumps(saved), "it")


def test_another_tokenizer_begins_as_the_mean_of_theirs(shelf: Path) -> None:
    ours = TextTokenizer.train(["a red apple"] * 2, 262)
    borrowed = borrow_text(str(shelf / "llama"), ours)
    model = load_transplanted(borrowed, vocab := Vocab(ours.size, 8), 64)
    theirs = AutoModelForCausalLM.from_pretrained(shelf / "llama", dtype=torch.float32)
    tokenizer = Tokenizer.from_file(str(shelf / "llama/tokenizer.json"))
    old, new = theirs.get_input_embeddings().weight, model.get_input_embeddings().weight
    for id in (ours.encode("a")[0], ours.encode(" apple")[0]):
        ids = tokenizer.encode(ours.pieces[id].decode()).ids
        assert torch.allclose(new[vocab.text.start + id], old[ids].mean(0), atol=1e-6)


def test_what_does_not_fit_is_said_in_one_line(shelf: Path, tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"a": 0}, "a"))
    (tmp_path / "words").mkdir()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "words")
    transformers.T5Config(num_layers=1).save_pretrained(tmp_path / "t5")
    borrowed = borrow_text(str(shelf / "llama"))
    vocab = Vocab(borrowed.text.size, 8)
    told = []
    for wrong in (
        lambda: borrow_text(str(tmp_path / "absent")),
        lambda: borrow_text(str(tmp_path / "words")),
        lambda: load_transplanted(borrowed, vocab, 4096),
        lambda: load_transplanted(type(borrowed)(str(tmp_path / "t5"), borrowed.text, [], []), vocab, 64),
    ):
        with pytest.raises(ModelError) as caught:
            wrong()
        told.append(str(caught.value))
    assert "no file or folder" in told[0] and "not a byte-level BPE" in told[1] and "sees 128" in told[2]
    assert all("\n" not in line for line in told)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_adapters_train_what_is_new_and_merge_into_a_plain_folder(
    shelf: Path, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("peft")
    model, vocab, _ = opened(shelf / name)
    ids = torch.tensor([[1, vocab.text.start + 7, vocab.image.start, vocab.image.start + 3, 2]])
    with torch.no_grad():
        before = forward(model, ids)
    new = [id for id in range(len(vocab)) if id not in vocab.text]
    adapted = add_lora(model, LoraSettings(rank=2), new)
    with torch.no_grad():
        assert torch.allclose(forward(model, ids), before, atol=1e-6)
    weights = {each: value.detach().clone() for each, value in model.named_parameters()}
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        forward(model, ids).logsumexp(-1).sum().backward()
        optimizer.step()
    moved = {each for each, value in model.named_parameters() if not torch.equal(value, weights[each])}
    assert any("lora_B" in each for each in moved) and any("lora_A" in each for each in moved)
    assert any("token" in each for each in moved)
    assert not any("base_layer" in each or "layernorm" in each for each in moved)
    with torch.no_grad():
        after = forward(model, ids)
        assert not torch.allclose(after, before, atol=1e-2)
        plain = without_lora(adapted)
        assert torch.allclose(forward(plain, ids), after, atol=1e-3)
    plain.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(ids).logits, after, atol=1e-3)
    old, now = weights, loaded.get_input_embeddings().weight
    kept = next(value for each, value in old.items() if value.shape == now.shape)
    same = torch.isclose(now, kept, atol=1e-6).all(-1)
    assert same[vocab.text.start : vocab.text.stop].all() and not same[vocab.image.start]
    assert not any("lora" in key for key in json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parametrize("rank", [0, 2])
def test_training_starts_from_a_public_decoder(
    shelf: Path, tmp_path: Path, rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if rank:
        pytest.importorskip("peft")
    corpus, run_folder = tmp_path / "corpus", tmp_path / "run"
    corpus.mkdir()
    toy_corpus(corpus, ("red",), channels=(8, 8))
    settings = {
        "data": corpus, "image": corpus / "image", "window": 128, "lora.rank": rank, "loop.steps": 3,
        "loop.batch_size": 1, "loop.precision": "fp32", "previews": "[]",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    command = [
        "train",
        "cm3",
        "--backbone",
        str(shelf / "llama"),
        "-o",
        str(run_folder),
        *words,
        "--device",
        "cpu",
    ]
    assert run([*command, "--max-steps", "2"]) == 0
    assert run(command) == 0, capsys.readouterr().err
    text = TextTokenizer.load(run_folder / "text")
    vocab = Vocab(text.size, 32)
    exported = run_folder / "final"
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    assert model.config.vocab_size == len(vocab) and type(model).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([[vocab.eod, vocab.text.start + 5, vocab.image.start]])
    with torch.no_grad():
        ours = forward(load_backbone(exported, len(vocab)), ids)
        assert torch.allclose(model(ids).logits, ours, atol=1e-5)
    borrowed = borrow_text(str(shelf / "llama"))
    start = load_transplanted(borrowed, vocab, 128)
    old, new = start.get_input_embeddings().weight, model.get_input_embeddings().weight
    moved = ~torch.isclose(old, new, atol=1e-3).all(-1)
    assert moved[vocab.image.start :].any()
    assert rank == 0 or not moved[vocab.text.start : vocab.text.stop].any()
    assert run(["train", "cm3", "--backbone", "x", "--from", "pictures"]) == 1
    assert "set one" in capsys.readouterr().err
