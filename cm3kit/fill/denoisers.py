"""The weights of a model folder as denoisers, one for each way of keeping keys and values between passes."""

from __future__ import annotations

from cm3kit.decoders.diffusion.backbone_denoiser import BackboneDenoiser, refuse_format
from cm3kit.decoders.diffusion.cached import ApproximateCache, ExactCache
from cm3kit.decoders.diffusion.denoiser import Denoiser
from cm3kit.decoders.diffusion.settings import EXACT, DiffusionConfig
from cm3kit.decoders.diffusion.spelling import SpellingDenoiser
from cm3kit.decoders.fast_llama import LeanEngine, supports
from cm3kit.decoders.precision import auto_precision
from cm3kit.decoders.settings import Precision
from cm3kit.fill.parts import Parts, diffusion_weights
from cm3kit.fill.styles import PromptStyle, spelling
from cm3kit.models.plain import DecoderWeights, device_of
from cm3kit.models.timestep import is_timed
from cm3kit_tokenizers.errors import ConfigError


class Denoisers:
    """Makes denoisers of one model; its weights are read when the first one is asked for."""

    def __init__(self, parts: Parts) -> None:
        self._parts, self._defaults = parts, parts.defaults.diffusion
        self._backbone: DecoderWeights | None = None
        self._plain: dict[Precision, BackboneDenoiser] = {}
        self._engines: dict[Precision, LeanEngine] = {}

    def make(self, config: DiffusionConfig, verify: bool = False, style: PromptStyle = "minimal") -> Denoiser:
        """The denoiser that these settings ask for; all without a cache are one and the same.

        Args:
            style: how the model reads pages.

        Raises:
            ConfigError: the cache does not go with how the model was trained (`bad_value`).
            ModelError: the weights cannot be read (`bad_checkpoint`).
        """
        self._check(config)
        parts = self._parts
        if (spelt := spelling(style, parts.text, parts.vocab, parts.defaults.chat)) is not None:
            if config.cache != "none":
                raise ConfigError(
                    f"the cache {config.cache!r} is for pages that are read as they stand, and prompt style {style!r}"
                    " spells them out; use the cache 'none'.",
                    code="bad_value",
                )
            return SpellingDenoiser(self.plain(config.precision), spelt.spell)
        if config.cache == "none":
            return self.plain(config.precision)
        vocab, shift = self._parts.vocab, self._defaults.shift
        backbone = self._weights()
        if self._defaults.isolated_masks and config.cache not in EXACT:
            raise ConfigError(
                f"the cache {config.cache!r} is for models whose masks are seen, and this one's are not;"
                " use the cache 'none'.",
                code="bad_value",
            )
        if is_timed(backbone) and config.cache not in EXACT:
            raise ConfigError(
                f"the model looks at the time, which changes all it keeps; the cache {config.cache!r} is not"
                " for it. Use the cache 'none'.",
                code="bad_value",
            )
        if config.cache in EXACT:
            assert config.block_size is not None
            return ExactCache(
                backbone, vocab.mask, len(vocab), config.block_size, shift=shift, verify=verify,
                causal=config.cache == "causal", engine=self._lean(config.precision),
            )  # fmt: skip
        dual = config.cache == "dual"
        return ApproximateCache(
            backbone,
            vocab.mask,
            len(vocab),
            dual=dual,
            shift=shift,
            verify=verify,
            engine=self._lean(config.precision),
        )

    def auto(self) -> Precision:
        """The number format that `auto` is."""
        # The lean engine holds weights of its own, for which there is no room beside those of a public model.
        return "fp32" if self._parts.public else auto_precision(self._weights(), many=True)

    def _lean(self, precision: Precision) -> LeanEngine | None:
        """The weights as they are read fastest, read once; None where only the module computes them."""
        backbone = self._weights()
        if not supports(backbone) or self._parts.public:
            refuse_format(precision, backbone)
            return None
        if precision not in self._engines:
            self._engines[precision] = LeanEngine(backbone, len(self._parts.vocab), precision, rows=16)
        return self._engines[precision]

    def plain(self, precision: Precision) -> BackboneDenoiser:
        """The denoiser without a cache."""
        if precision not in self._plain:
            backbone, vocab = self._weights(), self._parts.vocab
            shift, unseen = self._defaults.shift, self._defaults.isolated_masks
            self._plain[precision] = BackboneDenoiser(
                backbone, vocab.mask, len(vocab), shift=shift, unseen=unseen, lean=not self._parts.public,
                precision=precision,
            )  # fmt: skip
        return self._plain[precision]

    def _check(self, config: DiffusionConfig) -> None:
        trained = self._defaults.trained_block
        kind = self._defaults.trained_cache
        if trained is None and config.cache in EXACT:
            raise ConfigError(
                f"the cache {config.cache!r} is for models that were trained block by block, and this one looks both"
                " ways; use the cache prefix, dual or none.",
                code="bad_value",
            )
        # Under the causal cache a short block is one of a gap's end, which training has too.
        sizes = range(1, (trained or 0) + 1) if kind == "causal" else (trained,)
        if trained is not None and (config.cache != kind or config.block_size not in sizes):
            most = " at most" if kind == "causal" else ""
            raise ConfigError(
                f"the model was trained in blocks of{most} {trained}; use --cache {kind} and --block-size {trained}.",
                code="bad_value",
            )

    def _weights(self) -> DecoderWeights:
        if self._backbone is None:
            self._backbone = diffusion_weights(self._parts).to(device_of(self._parts.weights))
        return self._backbone
