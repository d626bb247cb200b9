"""Any other transformers model behind the decoder's engine protocol: the module itself, on our cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import Cache as TransformersCache

from cm3kit.decoders.cache import Cache, Write
from cm3kit.decoders.prompts import Prompt
from cm3kit.decoders.settings import Precision
from cm3kit.models.backbone import mask_for
from cm3kit.models.timestep import is_timed, time_inputs
from cm3kit_tokenizers.errors import ConfigError


class _Adapter(TransformersCache):  # type: ignore[misc]
    """Our cache behind the interface of transformers, for one forward pass.

    With `write` the pass appends one position to every slot, otherwise it fills `slot` from position 0.
    """

    def __init__(self, cache: Cache | None, slot: int = 0, write: Write | None = None) -> None:
        super().__init__(layers=[])
        self._cache, self._slot, self._write = cache, slot, write
        self.met: dict[int, tuple[int, int, int]] = {}
        self.dtype = torch.float32

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what the layer computed, and return what it may attend to."""
        heads, key_dim, value_dim = key_states.shape[1], key_states.shape[-1], value_states.shape[-1]
        self.met[layer_idx] = heads, key_dim, value_dim
        self.dtype = torch.promote_types(key_states.dtype, value_states.dtype)
        if self._cache is None:
            return key_states, value_states
        most = self._cache.kv_heads, self._cache.head_dim
        kv = torch.cat([_padded(key_states, *most), _padded(value_states, *most)], dim=1)
        if self._write is not None:
            keys, values = self._cache.write(layer_idx, self._write, kv[:, :, 0])
            by_slot = (len(kv), -1, *keys.shape[1:])
            keys, values = keys.view(by_slot)[:, :heads], values.view(by_slot)[:, :heads]
            return keys[..., :key_dim], values[..., :value_dim]
        self._cache.put(layer_idx, self._slot, kv[0])
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Masks and positions are always passed in, so the module never needs to count."""
        return 0


def _padded(states_BHTD: Tensor, heads: int, width: int) -> Tensor:
    """With as many heads, and as wide ones, as the cache holds; what is added is never read."""
    missing = width - states_BHTD.shape[-1], heads - states_BHTD.shape[1]
    return pad(states_BHTD, (0, missing[0], 0, 0, 0, missing[1])) if any(missing) else states_BHTD


class ModuleEngine:
    """The engine of architectures that `LeanEngine` does not know; fp32 and bf16.

    Args:
        model: a causal language model of transformers that takes position ids and 4-D masks.
        vocab_size: logits are returned for this many ids, from 0.
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int, precision: Precision) -> None:
        if precision not in ("fp32", "bf16"):
            kind = f"{model.config.model_type!r}{' that looks at the time' if is_timed(model) else ''}"
            raise ConfigError(
                f"precision {precision!r} is for plain Llama and Qwen3 models, this is {kind};"
                " choose fp32 or bf16.",
                code="bad_value",
            )
        config = model.config
        self._model, self._vocab_size, self._bf16 = model, vocab_size, precision == "bf16"
        self.window = int(config.max_position_embeddings)
        self.device = model.get_input_embeddings().weight.device
        self.ahead = self.device.type != "cpu"
        # Keys and values of a layer may differ in width (DeepSeek-V3), and have one head for all queries (Falcon).
        trial = _Adapter(None)
        self._causal(trial, [0], 0)
        self._layers = 1 + max(trial.met, default=-1)
        self._kv_heads = max((heads for heads, _, _ in trial.met.values()), default=0)
        self._head_dim = max((max(widths) for _, *widths in trial.met.values()), default=0)
        self._dtype = trial.dtype

    def open(self, slots: int, capacity: int) -> Cache:
        """A cache for so many rows of so many positions."""
        size = self._layers, slots, self._kv_heads, capacity, self._head_dim
        return Cache(*size, self.device, self._dtype)

    def prefill(self, cache: Cache, slot: int, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Put a prompt into a slot; logits (V,) after its last id. The first `prefix` ids look at one another."""
        return self._causal(_Adapter(cache, slot), ids, prefix)[-1]

    def prefill_all(self, cache: Cache, prompts: Sequence[Prompt]) -> Tensor:
        """Put prompts into their slots; logits (N, V) after the last id of each, as `prefill` gives them."""
        return torch.stack([self.prefill(cache, each.slot, each.ids, each.prefix) for each in prompts])

    def score(self, ids: Sequence[int], prefix: int = 0) -> Tensor:
        """Logits (T, V) after each id, without a cache. The first `prefix` ids look at one another."""
        return self._causal(_Adapter(None), ids, prefix)

    def step(self, cache: Cache, write: Write, ids_S: Tensor) -> Tensor:
        """Put one id into every slot; logits (S, V) after it."""
        mask = write.mask_N1C.view(len(ids_S), -1, 1, write.span)[:, :1] == 0
        return self._forward(_Adapter(cache, write=write), ids_S[:, None], write.positions_S[:, None], mask)[
            :, 0
        ]

    def _causal(self, adapter: _Adapter, ids: Sequence[int], prefix: int) -> Tensor:
        length = len(ids)
        mask_11TT = torch.ones(1, 1, length, length, dtype=torch.bool, device=self.device).tril()
        mask_11TT[..., :prefix, :prefix] = True
        ids_1T = torch.tensor([list(ids)], device=self.device)
        return self._forward(adapter, ids_1T, torch.arange(length, device=self.device)[None], mask_11TT)[0]

    @torch.no_grad()
    def _forward(self, adapter: _Adapter, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor) -> Tensor:
        # In joint training, such a model got time 0 on all pages that it read left to right.
        zero_B = torch.zeros(len(ids_BT), device=self.device) if is_timed(self._model) else None
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            output = self._model(
                input_ids=ids_BT,
                position_ids=positions_BT,
                attention_mask=mask_for(self._model, mask),
                past_key_values=adapter,
                use_cache=True,
                **time_inputs(self._model, zero_B, ids_BT.shape),
            )
        logits_BTV: Tensor = output.logits[..., : self._vocab_size].float()
        return logits_BTV
