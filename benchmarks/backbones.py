"""Which decoders of the installed transformers can be backbones: every causal-LM type, tiny and with random weights.

python benchmarks/backbones.py [--only llama qwen3 …] [--table docs/backbones.md]

Each type is built small, with a short attention window where it has one, saved, and taken through both doors
(`--backbone`, which moves its rows to our ids, and `backbone_from`, which keeps them). What passes is exported and
opened by transformers alone: the largest difference of its logits to ours on a row longer than any window is in the
table. A type that passes and differs would be wrong, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from cm3kit.decoders.probe import check_backbone
from cm3kit.models.backbone import forward, load_backbone, save_backbone
from cm3kit.models.transplant import Borrowed, load_transplanted
from cm3kit.models.windows import clear_windows
from cm3kit_tokenizers.errors import ModelError, in_a_line
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import MARKUP, Vocab

IDS, ROW, WINDOW, SECONDS, LARGEST = 320, 96, 16, 90, 120_000_000
SMALL: dict[str, Any] = {
    "vocab_size": IDS, "vocab_size_per_layer_input": IDS, "hidden_size": 64, "d_model": 64, "n_embd": 64, "dim": 64,
    "hidden_dim": 64, "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4, "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "num_heads": 4, "head_dim": 16, "intermediate_size": 64, "n_inner": 64, "ffn_dim": 64,
    "ffn_hidden_size": 64, "max_position_embeddings": 256, "n_positions": 256, "max_seq_len": 256, "n_ctx": 256,
    "hidden_size_per_layer_input": 16, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "n_shared_experts": 1, "moe_k": 2, "n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "word_embed_proj_dim": 64, "rotary_dim": 8,
    "decoder_layers": 2, "encoder_layers": 2, "decoder_ffn_dim": 64, "encoder_ffn_dim": 64,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "attention_heads": 4, "embedding_size": 64,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_ssm": 128, "mamba_n_groups": 1,
    "state_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "num_kv_shared_layers": 0, "altup_num_inputs": 2, "laurel_rank": 8, "initializer_range": 0.2, "init_std": 0.2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "global_head_dim": 16,
    "num_global_key_value_heads": 2, "lru_width": 64, "logits_soft_cap": 30.0,
}  # fmt: skip
SHORT = ("sliding_window", "attention_window_size", "attention_chunk_size", "window_size")
# What sizes alone do not make small, or what the defaults leave out: convolutions beside attention, windows in turn.
ODD: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"is_decoder": True},
    "zamba2": {"layer_types": ["mamba", "hybrid"] * 2},
}
UNBUILT = (Exception,)


@dataclass
class Row:
    """What came of one type."""

    type: str
    kind: str = ""
    outcome: str = "not built"
    left: float | None = None
    both: str = ""
    notes: str = ""


@contextmanager
def seconds(limit: int) -> Iterator[None]:
    """TimeoutError after so many seconds."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError(f"takes more than {limit} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)


def tiny_config(kind: str) -> Any:
    """The type's own configuration, with sizes made small and windows shorter than the rows that are tried."""
    made = CONFIG_MAPPING[kind]
    names = {each.name for each in fields(made)} if is_dataclass(made) else set(made().to_dict())
    names |= set(getattr(made, "attribute_map", {}))
    values = {name: value for name, value in SMALL.items() if name in names}
    if "num_key_value_heads" in names:
        # Multi-head latent attention has as many heads of keys as of queries.
        values["num_key_value_heads"] = 4 if "kv_lora_rank" in names else 2
    if kind in ODD:
        values |= ODD[kind]
    default = made()
    for name in SHORT:
        if isinstance(getattr(default, name, None), int) and name in names:
            values[name] = WINDOW
    if hasattr(default, "get_text_config") and default.get_text_config() is not default:
        inner = tiny_config(default.get_text_config().model_type)
        name = next(each for each, value in vars(default).items() if value is default.get_text_config())
        return made(
            **{
                name: inner.to_dict(),
                **{each: SMALL[each] for each in SMALL if each.endswith("_token_id") and each in names},
            }
        )
    return made(**values)


def build(kind: str) -> PreTrainedModel:
    """A tiny model of a type; its weights are drawn, and its norms moved off one."""
    config = tiny_config(kind)
    with torch.device("meta"):
        size = sum(each.numel() for each in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"its smallest has {size:,} numbers")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim == 1:
                each.add_(0.1 * torch.randn_like(each))
    return model


def through(row: Row, folder: Path, text: TextTokenizer) -> None:
    """Both doors, then out again."""
    vocab = Vocab(text.size, 16)
    ids = [[number % IDS] for number in range(text.size)]
    borrowed = Borrowed(str(folder), text, ids, [[number % 50 + 5, 7] for number in range(len(MARKUP))])
    model = load_transplanted(borrowed, vocab, ROW)
    note = clear_windows(model, ROW)
    done = check_backbone(model, row.type, ROW, causal=True, full=False, ids=vocab.text)
    kept = load_backbone(folder, 0)
    clear_windows(kept, ROW)
    done += check_backbone(kept, row.type, ROW, causal=True, full=False)
    row.notes = "window cleared" if note else ""
    if model.config._attn_implementation == "eager":
        row.notes = ", ".join(filter(None, (row.notes, "plain attention")))
    try:
        check_backbone(model, row.type, ROW, causal=False, full=True, ids=vocab.text)
        row.both = "yes"
    except ModelError as error:
        row.both = "no: " + cause(error)
    save_backbone(model, folder / "out")
    theirs = AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32).eval()
    picks = (
        torch.randint(vocab.text_size, (1, ROW), generator=torch.Generator().manual_seed(3))
        + vocab.text.start
    )
    with torch.no_grad():
        wanted, found = theirs(input_ids=picks, use_cache=False).logits, forward(model, picks)
    exported = float((wanted - found).abs().max())
    row.left = max(exported, *(each.difference for each in done))
    row.outcome = "equal" if exported <= 1e-3 * max(1.0, float(wanted.abs().max())) else "WRONG"


def cause(error: BaseException) -> str:
    """The reason in a refusal."""
    line = str(error).removesuffix("[bad_checkpoint]").strip()
    for start in ("cannot be the backbone: ", "cannot be loaded as a backbone: "):
        line = line.rpartition(start)[2] if start in line else line
    return line.removesuffix("; use a decoder such as Llama, Qwen or GPT-2.")


def tried(kind: str, text: TextTokenizer) -> Row:
    """One type."""
    row = Row(kind)
    try:
        with seconds(SECONDS), tempfile.TemporaryDirectory() as name:
            model = build(kind)
            row.kind = type(model).__name__
            model.save_pretrained(name)
            del model
            try:
                through(row, Path(name), text)
            except ModelError as error:
                row.outcome, row.notes = "refused", cause(error)
    except TimeoutError as error:
        row.notes = str(error)
    except UNBUILT as error:
        # Building and saving are transformers' own; past them, an error that is no refusal is ours.
        row.notes = f"{type(error).__name__}: {in_a_line(error, 160)}"
        if row.kind and row.outcome != "not built":
            row.outcome = "WRONG"
        elif row.kind:
            row.outcome = "not saved"
    return row


def table(rows: list[Row]) -> str:
    """The page of docs."""
    counts = {name: sum(row.outcome == name for row in rows) for name in ("equal", "refused", "WRONG")}
    rest = len(rows) - sum(counts.values())
    lines = [
        "# Decoders that can be backbones",
        "",
        "Made by `python benchmarks/backbones.py --table docs/backbones.md` with transformers"
        f" {transformers.__version__}: {len(rows)} causal-LM types, {counts['equal']} equal,"
        f" {counts['refused']} refused, {counts['WRONG']} wrong, {rest} that could not be built small.",
        "",
        f"*Difference* is the largest one of two logits, ours and the model's own: a row of {ROW} ids (windows are of"
        f" {WINDOW} there), three documents packed in a row, prompts and steps with a cache, and transformers after"
        " export. *Both ways* is whether `train mdm` and `block` can have it too.",
        "",
        "| type | class | outcome | difference | both ways | notes |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        difference = "" if row.left is None else f"{row.left:.1g}"
        cells = (row.type, row.kind, row.outcome, difference, row.both, row.notes)
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Try them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    parser.add_argument("--table", type=Path, help="write the page of docs here")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    text = TextTokenizer.train(["a red apple"] * 2, 262)
    rows = []
    for kind in args.only:
        rows.append(tried(kind, text))
        print(rows[-1], file=sys.stderr, flush=True)
    page = table(rows)
    if args.table:
        args.table.write_text(page, encoding="utf-8")
    print(page.split("\n")[2])
    return int(any(row.outcome == "WRONG" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
