"""Whether a training fits on another device, and how long it would take there.

Memory is what the estimate counts: weights, gradients, moments and averages, and the larger of activations in bf16 and
the export. To that come the context of the driver and a tenth of the activations for the allocator. Time is FLOPs over
a share of the device's peak, which is assumed and said: large decoders reach about two fifths of it, small ones are
bound by starting kernels. One of 12 M weights reached 7 % of an H200 (13 % compiled), from which the middle is set.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cm3kit.quantities import duration, memory
from cm3kit.training.estimate import Estimate

CONTEXT = 700_000_000  # bytes that a CUDA context and its libraries take
LARGE, MIDDLE = (
    0.4,
    50e6,
)  # share of the peak that large models reach, and weights at which half of that is reached


@dataclass(frozen=True, slots=True)
class Fit:
    """A training on another device: bytes needed and available, and seconds at a share of its peak.

    `seconds` and `share` are None where the speed of the device is not known, `fits` where its memory is not.
    """

    needed: int
    fits: bool | None
    share: float | None
    seconds_per_step: float | None
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """The same as a mapping."""
        return asdict(self)

    def lines(self, device_memory: int | None, tflops: float | None) -> list[str]:
        """The figures as lines of text."""
        out = [f"on the device      {memory(self.needed)} needed"]
        if device_memory is not None:
            used = f"{self.needed / device_memory:.0%} of {memory(device_memory)}"
            out[0] += (
                f", {used}: it fits" if self.fits else f", {used}: it does not fit; raise loop.accumulate"
            )
        if self.seconds is not None and self.seconds_per_step is not None:
            out.append(
                f"time there         {duration(self.seconds)}, {1000 * self.seconds_per_step:.3g} ms a step"
            )
            out.append(
                f"assumed            {self.share:.0%} of {tflops:g} TFLOPS, as models of this size reach about"
            )
        return out


def fit(told: Estimate, steps: int, device_memory: int | None, tflops: float | None) -> Fit:
    """Compare an estimate with a device of so many bytes and so many bf16 TFLOPS."""
    held = told.weights + told.gradients + told.moments + told.average
    needed = CONTEXT + held + max(int(1.1 * told.activations), told.export)
    fits = None if device_memory is None else needed <= device_memory
    if tflops is None:
        return Fit(needed, fits, None, None, None)
    share = LARGE * told.parameters / (told.parameters + MIDDLE)
    seconds = told.flops_per_step / (tflops * 1e12 * share)
    return Fit(needed, fits, share, seconds, seconds * steps)
