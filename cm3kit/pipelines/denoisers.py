"""The weights of a model folder as denoisers, one for each way of keeping keys and values between passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.decoders.diffusion.backbone_denoiser import BackboneDenoiser
from cm3kit.decoders.diffusion.cached import ApproximateCache, ExactCache
from cm3kit.decoders.diffusion.denoiser import Denoiser
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.models.backbone import hidden_states
from cm3kit.models.timestep import is_timed
from cm3kit.pipelines.folder import Parts, diffusion_backbone
from cm3kit_tokenizers.errors import ConfigError


class Denoisers:
    """Makes denoisers of one model; its weights are read when the first one is asked for."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._defaults = parts, parts.defaults.diffusion
        self._backbone: PreTrainedModel | None = None
        self._plain: BackboneDenoiser | None = None

    def make(self, config: DiffusionConfig, verify: bool = False) -> Denoiser:
        """The denoiser that these settings ask for; all without a cache are one and the same.

        Raises:
            ConfigError: the cache does not go with how the model was trained (`bad_value`).
            ModelError: the weights cannot be read (`bad_checkpoint`).
        """
        self._check(config)
        if config.cache == "none":
            return self.plain
        vocab, shift = self._parts.vocab, self._defaults.shift
        backbone = self._weights()
        if is_timed(backbone) and config.cache != "exact":
            raise ConfigError(
                f"the model looks at the time, which changes all it keeps; the cache {config.cache!r} is not"
                " for it. Use the cache 'none'.",
                code="bad_value",
            )
        if config.cache == "exact":
            assert config.block_size is not None
            return ExactCache(
                backbone, vocab.mask, len(vocab), config.block_size, shift=shift, verify=verify
            )  # fmt: skip
        dual = config.cache == "dual"
        return ApproximateCache(backbone, vocab.mask, len(vocab), dual=dual, shift=shift, verify=verify)

    @property
    def plain(self) -> BackboneDenoiser:
        """The denoiser without a cache."""
        if self._plain is None:
            backbone, vocab = self._weights(), self._parts.vocab
            hidden = _Timed(backbone) if is_timed(backbone) else None
            shift = self._defaults.shift
            self._plain = BackboneDenoiser(backbone, vocab.mask, len(vocab), shift=shift, hidden=hidden)
        return self._plain

    def _check(self, config: DiffusionConfig) -> None:
        trained = self._defaults.trained_block
        if trained is None and config.cache == "exact":
            raise ConfigError(
                "the cache 'exact' is for models that were trained block by block, and this one looks both"
                " ways; use the cache prefix, dual or none.",
                code="bad_value",
            )
        if trained is not None and (config.cache, config.block_size) != ("exact", trained):
            raise ConfigError(
                f"the model was trained in blocks of {trained}; use --cache exact and --block-size {trained}.",
                code="bad_value",
            )

    def _weights(self) -> PreTrainedModel:
        if self._backbone is None:
            device = self._parts.backbone.get_input_embeddings().weight.device
            self._backbone = diffusion_backbone(self._parts).to(device)
        return self._backbone


class _Timed:
    """Hidden states of a model that is conditioned on the diffusion time; padding is seen by nobody."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self._backbone = backbone
        self._last = int(backbone.config.max_position_embeddings) - 1

    def __call__(self, ids_BT: Tensor, lengths: Sequence[int], times: Sequence[float]) -> Tensor:
        place_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        # A softmax over nothing is no number, so that a row in no use sees its first place.
        length_B = torch.tensor(lengths, device=ids_BT.device).clamp(min=1)
        seen_B1TT = (place_T < length_B[:, None])[:, None, None].expand(-1, 1, len(place_T), -1)
        time_B = torch.tensor(times, device=ids_BT.device)
        places_1T = place_T.clamp(max=self._last)[None]
        return hidden_states(self._backbone, ids_BT, seen_B1TT, places_1T, time_B)
