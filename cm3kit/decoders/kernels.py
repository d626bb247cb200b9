"""Matrix products with weights packed once, by number format.

Reading the weights bounds the time of a decoding step, so fewer bytes per weight give more tokens per second.
Every kernel takes and gives fp32 (on a CPU those of bf16 give bf16, and take it too), and gives a row the same bits
whatever the other rows hold. On a CPU all but those of int8 do so however many other rows there are, too: libraries
sum few rows in another order than many, so steps and prompts have kernels of their own.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, silu

from cm3kit.decoders.settings import Precision
from cm3kit_tokenizers.errors import ConfigError

Product = Callable[[Tensor], Tensor]
Packer = Callable[[Tensor, int], Product]

# 7 bits: the u8 x s8 dot product of processors without VNNI overflows on 8 (FBGEMM's reduce_range).
_STEPS, _ZERO = 63, 64

MIXED: Precision = "bf16-fp16"
"""Prompts in bf16, which has twice the rate of fp32 in many rows; steps fp16-packed, which are the fastest in one."""
TILE = 8
COUNTS = 1, 2, 3, 5, TILE, 15, 16, 17, 24, 31, 32, 33, 48, 64, 160
"""Rows of steps that products are tried on."""
SHAPES = 32, 64, 96, 128, 192, 256
"""Rows that products of prompts are computed of, as far as they have the same bits; others are padded to the next."""
EDGES = 1, 2, 3, TILE, 17, 33, 48, 100, 250
"""Others that they are tried on, as they need no padding where all are alike."""
MANY, SHORT = 160, 64
"""So many rows and more are those of prompts, and so few those of short ones."""


def of_prompts(precision: Precision) -> Precision:
    """The format of the products of prompts, many rows at once; that of a step is `of_steps`."""
    return "bf16" if precision == MIXED else precision


def of_steps(precision: Precision) -> Precision:
    """The format of the products of a step, which reads all weights for a few rows."""
    return "fp16-packed" if precision == MIXED else precision


def pack(weight_NK: Tensor, precision: Precision, rows: int, gated: bool = False) -> Product:
    """A function from (M, K) to (M, N) that multiplies by the transposed weight.

    Args:
        rows: the M that matters most for speed; any M works.
        gated: give SiLU of the first half of the columns times the second half, (M, N / 2).

    Raises:
        ConfigError: this machine has no kernel for the precision.
    """
    return pack_all(weight_NK, precision, (rows,), gated)[0]


def pack_all(
    weight_NK: Tensor, precision: Precision, rows: Sequence[int], gated: bool = False
) -> list[Product]:
    """As `pack`, a function for each of some M; where they can they share the packed weight."""
    assert precision not in ("auto", MIXED), "a format of products is chosen before"
    weight_NK = weight_NK.detach()
    if gated and precision == "bf16" and _has_mkldnn(weight_NK):
        return _pack_bf16(weight_NK, rows, _packed_gated)
    products = _PACKERS[precision](weight_NK, rows)
    return [_gated(each) for each in products] if gated else products


def _gated(product: Product) -> Product:
    def multiply(x_MK: Tensor) -> Tensor:
        gate_MN, up_MN = product(x_MK).chunk(2, -1)
        return silu(gate_MN).mul_(up_MN)

    return multiply


def _pack_fp32(weight_NK: Tensor, rows: Sequence[int]) -> list[Product]:
    weight_NK = weight_NK.float().contiguous()
    if not _has_mkldnn(weight_NK):
        return [lambda x_MK: linear(x_MK, weight_NK)] * len(rows)
    return _steady(_packed, weight_NK, rows)


def _packed(weight_NK: Tensor, rows: int) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_NK, rows)
    return lambda x_MK: torch.ops.mkldnn._linear_pointwise(x_MK, packed, None, "none", [], "")


def _steady(packer: Packer, weight_NK: Tensor, rows: Sequence[int]) -> list[Product]:
    """The products of a packer for so many rows, of as many at once as have the same bits whatever there are."""
    # A weight that is packed for one row is summed in another order than for several.
    least = max(min(rows), 2)
    product, found = packer(weight_NK, least), []
    for each in rows:
        shapes = _steady_shapes(packer, *weight_NK.shape, least, each >= MANY)
        found.append(_of_shapes(product, shapes) if shapes else in_tiles(packer(weight_NK, TILE)))
    return found


@lru_cache(maxsize=256)
def _steady_shapes(packer: Packer, n: int, k: int, rows: int, many: bool) -> tuple[int, ...]:
    """The numbers of rows, in order, that this machine's kernel sums alike; () where those are too few.

    No library promises it, so it is tried: on numbers that cancel, where what is left depends on each rounding of the
    sums; a result in bf16 would tell a difference of the last bits but once in thousands.
    """
    rng = torch.Generator().manual_seed(0)
    half, order_K = -(-k // 2), torch.randperm(k, generator=rng)
    counts = sorted({*(COUNTS if not many else EDGES), *(SHAPES if many else ())})
    weight_NH, x_MH = torch.randn(n, half, generator=rng), torch.randn(counts[-1], half, generator=rng)
    x_MH *= 2.0 ** torch.randint(-6, 7, x_MH.shape, generator=rng)
    weight_NK, x_MK = torch.cat([weight_NH] * 2, 1)[:, order_K], torch.cat([x_MH, -x_MH], 1)[:, order_K]
    product = packer(weight_NK.contiguous(), rows)
    found = {count: product(x_MK[:count]) for count in counts}

    def alike(some: Sequence[int]) -> list[int]:
        return [each for each in some if torch.equal(found[each], found[some[-1]][:each])]

    for least in (1, 2):
        if alike(counts[least - 1 :]) == counts[least - 1 :]:
            return tuple(range(least, counts[-1] + 1))
    if many:
        # Short prompts are many, and are not to be padded to long ones.
        parts = [alike([each for each in SHAPES if each <= most]) for most in SHAPES]
        return tuple(next(each for each in reversed(parts) if each[0] <= SHORT))
    most = max([at for at in range(2, len(counts)) if len(alike(counts[1:at])) == at - 1], default=2)
    first = 1 if alike([1, counts[most - 1]])[0] == 1 else 2
    return tuple(range(first, counts[most - 1] + 1)) if counts[most - 1] >= TILE else ()


def _of_shapes(product: Product, shapes: tuple[int, ...]) -> Product:
    """The product, always of so many rows, padded with zeros, as one of the shapes has."""

    def padded(x_MK: Tensor) -> Tensor:
        rows = len(x_MK)
        missing = shapes[bisect_left(shapes, rows)] - rows
        return product(pad(x_MK, (0, 0, 0, missing)))[:rows] if missing else product(x_MK)

    def multiply(x_MK: Tensor) -> Tensor:
        if len(x_MK) <= shapes[-1]:
            return padded(x_MK)
        return torch.cat([padded(each) for each in torch.split(x_MK, shapes[-1])])

    return multiply


def in_tiles(product: Product) -> Product:
    """The product, always over `TILE` rows at once: so its shape tells nothing of how many rows there are."""

    def multiply(x_MK: Tensor) -> Tensor:
        missing = -len(x_MK) % TILE
        tiles = torch.split(pad(x_MK, (0, 0, 0, missing)), TILE)
        return torch.cat([product(each) for each in tiles])[: len(x_MK)]

    return multiply


def _packed_bf16(weight_NK: Tensor, rows: int) -> Product:
    product = _packed(weight_NK.bfloat16(), rows)
    return lambda x_MK: product(x_MK.bfloat16())


def _pack_bf16(weight_NK: Tensor, rows: Sequence[int], packer: Packer | None = None) -> list[Product]:
    weight_NK = weight_NK.bfloat16().contiguous()
    if not _has_mkldnn(weight_NK):
        return [lambda x_MK: linear(x_MK.bfloat16(), weight_NK).float()] * len(rows)
    try:
        return _steady(packer or _packed_bf16, weight_NK, rows)
    except RuntimeError:  # a processor without products of bf16: round as they do, at the speed of fp32
        exact = [_rounded(each) for each in _pack_fp32(weight_NK, rows)]
        return exact if packer is None else [_gated(each) for each in exact]


def _rounded(product: Product) -> Product:
    return lambda x_MK: product(x_MK.bfloat16().float()).bfloat16()


def _packed_gated(weight_NK: Tensor, rows: int) -> Product:
    """SiLU and the product with it before results are rounded, and without passes of their own."""
    gate, up = (torch.ops.mkldnn._reorder_linear_weight(each.bfloat16(), rows) for each in weight_NK.chunk(2))
    product = torch.ops.mkldnn._linear_pointwise

    def multiply(x_MK: Tensor) -> Tensor:
        x_MK = x_MK.bfloat16()
        gate_MN = product(x_MK, gate, None, "swish", [], "")
        found: Tensor = product.binary(x_MK, gate_MN, up, None, "mul")
        return found

    return multiply


def _pack_fp16(weight_NK: Tensor, rows: Sequence[int]) -> list[Product]:
    check_format("fp16-packed", weight_NK.device)
    return _steady(_packed_fp16, weight_NK.float().contiguous(), rows)


def _packed_fp16(weight_NK: Tensor, rows: int) -> Product:
    if not hasattr(torch, "fbgemm_linear_fp16_weight_fp32_activation"):
        with _fbgemm():
            slower = torch.ops.quantized.linear_prepack_fp16(weight_NK, None)
        return lambda x_MK: torch.ops.quantized.linear_dynamic_fp16(x_MK.float(), slower)
    with _deprecated():
        packed = torch.fbgemm_pack_gemm_matrix_fp16(weight_NK)
        product = torch.fbgemm_linear_fp16_weight_fp32_activation
        product(torch.zeros(1, weight_NK.shape[1]), packed, None)
    return lambda x_MK: product(x_MK.float(), packed, None)


def _pack_int8(weight_NK: Tensor, rows: Sequence[int]) -> list[Product]:
    check_format("int8", weight_NK.device)
    weight_NK = weight_NK.float().contiguous()
    scale_N = (weight_NK.abs().amax(1) / 127).clamp_min(1e-12).double()
    zero_N = torch.zeros(len(weight_NK), dtype=torch.int64)
    with _deprecated(), _fbgemm():
        quantized = torch.quantize_per_channel(weight_NK, scale_N, zero_N, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantized, None)
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32

    def multiply(x_MK: Tensor) -> Tensor:
        if len(x_MK) == 1:
            alone: Tensor = torch.ops.quantized.linear_dynamic(x_MK, packed, True)
            return alone
        # One scale per row: with one for the whole tensor a row would depend on the others.
        scale_M1 = x_MK.abs().amax(-1, keepdim=True).clamp_min_(1e-12)
        y_MN: Tensor = product(x_MK / scale_M1, 1 / _STEPS, _ZERO, packed)
        return y_MN.mul_(scale_M1)

    return [multiply] * len(rows)


def _has_mkldnn(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and bool(torch._C._has_mkldnn)


def has_fbgemm() -> bool:
    """Whether this PyTorch has the packed products of x86 processors."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(torch, "quantize_per_channel")


def check_format(precision: Precision, device: torch.device) -> None:
    """ConfigError (`bad_value`) where weights cannot be packed in a format."""
    packed = of_steps(precision) in ("fp16-packed", "int8")
    if packed and (device.type != "cpu" or not has_fbgemm()):
        raise ConfigError(
            f"precision {precision!r} needs an x86 processor; choose fp32 or bf16.", code="bad_value"
        )


@contextmanager
def _deprecated() -> Iterator[None]:
    # PyTorch deprecates these kernels; the successors take up to twice as long on one row.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextmanager
def _fbgemm() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


_PACKERS: dict[Precision, Callable[[Tensor, Sequence[int]], list[Product]]] = {
    "fp32": _pack_fp32,
    "bf16": _pack_bf16,
    "fp16-packed": _pack_fp16,
    "int8": _pack_int8,
}
