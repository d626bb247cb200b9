"""Settings of the autoregressive decoder, and the names of both decoders."""

from __future__ import annotations

from pydantic import Field

from cm3kit.config import Settings
from cm3kit.decode_options import CompileName as CompileName
from cm3kit.decode_options import DecoderName as DecoderName
from cm3kit.decode_options import DraftName as DraftName
from cm3kit.decode_options import Precision as Precision


class Sampling(Settings):
    """How ids of one modality are drawn.

    `temperature` 0 takes the best id, and so does `top_p` 0. `top_k` 0 and `top_p` 1 cut nothing.
    """

    temperature: float = Field(default=1.0, ge=0, le=100)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, ge=0, le=1)


class DecodeConfig(Settings):
    """How a canvas is filled.

    Attributes:
        text: sampling of text, markup and end ids.
        image: sampling of image codes.
        guidance: weight of the text condition (CM3Leon, arXiv:2309.02591, eq. 1-2); 1 guides nothing.
        guidance_image: weight of the image condition where a row has three streams.
        cd_k: rank of the probability that cuts in CD-K; None samples from guided logits instead.
        cd_alpha: share of that probability that an id must reach.
        cd_expert_temperature: temperature of the conditional distribution in CD-K.
        cd_student_temperature: temperature of the unconditional one.
        eoss_bias: added to the logit of the end ids; above 0 makes runs shorter.
        repetition_penalty: divides the logits of text ids that stand in the run already (Keskar et al.,
            arXiv:1909.05858, sec. 4.1).
        batch_size: rows decoded together; fixed, so that a result does not depend on the other rows.
        parallel: fill the blanks of a row independently, from copies of one cache.
        draft: what guesses further ids for a pass to verify (`causal.drafts`); it changes nothing that is written.
        precision: number format of the weights in matrix products; auto is by device and model (`decoders.precision`).
        compile: how the steps of plain Llama and Qwen3 models run on CUDA (`replay.Replay`).
    """

    text: Sampling = Sampling()
    image: Sampling = Sampling()
    guidance: float = Field(default=1.0, ge=0, le=100)
    guidance_image: float = Field(default=1.0, ge=0, le=100)
    cd_k: int | None = Field(default=None, ge=1)
    cd_alpha: float = Field(default=0.5, ge=0, le=1)
    cd_expert_temperature: float = Field(default=0.8, gt=0)
    cd_student_temperature: float = Field(default=0.5, gt=0)
    eoss_bias: float = Field(default=0.0, ge=-100, le=100)
    repetition_penalty: float = Field(default=1.0, gt=0, le=100)
    batch_size: int = Field(default=8, ge=1, le=1024)
    parallel: bool = False
    precision: Precision = "fp32"
    draft: DraftName = "none"
    compile: CompileName = "auto"
