"""Attention windows of public decoders, which masks of our own replace.

Mistral, Phi-3, Gemma 3 and others see the last so many ids in some layers or in all. A mask that is handed to them
stands instead of that window, so rows longer than it would be trained with another attention than the saved
configuration says, and transformers would read the export in another way than it was trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Names of the number of ids that a layer sees, by family.
NAMES = (
    "sliding_window",
    "sliding_window_size",
    "attention_window_size",
    "attention_chunk_size",
    "window_size",
)


def clear_windows(model: PreTrainedModel, length: int) -> str | None:
    """Let every layer of a model see whole rows of `length` ids, in place and in its saved configuration.

    Returns:
        What was changed, as a sentence; None where rows are no longer than the windows.
    """
    config = model.config
    short = {name: size for name in NAMES if (size := _size(config, name)) is not None and size < length}
    if not short:
        return None
    known = getattr(config, "max_position_embeddings", None)
    whole = max(length, known) if isinstance(known, int) else length
    for name in short:
        # Layers of one kind and of another may differ in more than the window, so their kinds stay as they are.
        setattr(config, name, whole)
    changed = ", ".join(f"{name} = {size}" for name, size in short.items())
    return (
        f"{config.model_type}: {changed} is shorter than the rows, of {length} ids; attention sees whole rows, and the"
        f" saved configuration says {whole}."
    )


def _size(config: Any, name: str) -> int | None:
    """The window of that name, where it is in use."""
    if name == "sliding_window" and getattr(config, "use_sliding_window", True) is False:
        return None
    size = getattr(config, name, None)
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None
