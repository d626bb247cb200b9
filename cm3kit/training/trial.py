"""How long parts of a training step take, tried out on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from cm3kit.models.attention import block_mask
from cm3kit.models.backbone import build_backbone
from cm3kit.models.timestep import add_timestep
from cm3kit.objectives.contract import Objective
from cm3kit.rng import generator
from cm3kit.training.collate import all_scored, pack
from cm3kit.training.decoder import DecoderRecipe, Scorer
from cm3kit.training.speed import peak_flops, step_flops

DIRECT = 6.0  # seconds that a step may take at best to be tried out as it is
FEW = 2048  # ids of the rows that a longer one is tried out on


def step_seconds(recipe: DecoderRecipe, size: int, fast: bool, device: str = "cpu") -> float:
    """Seconds of a step, without drawing its batch: of whole ones where these are short.

    Else of steps with one layer and with two on a few rows, from which whole ones are told.

    Args:
        size: of the id space.
        fast: compute in bf16.
    """
    shape, loop = recipe.backbone, recipe.loop
    with torch.device("meta"):
        model = Scorer(build_backbone(shape, size))
    flops = step_flops(model, loop.batch_size, recipe.window, shape.layers, shape.hidden_size)
    if flops / peak_flops(device, torch.bfloat16 if fast else torch.float32) <= DIRECT:
        rows = -(-loop.batch_size // loop.accumulate)
        pass_, update = _timed(recipe, shape.layers, size, rows, fast, device)
        return pass_ * loop.batch_size / rows + update
    rows = max(1, min(loop.batch_size, FEW // recipe.window))
    one, two = (_timed(recipe, layers, size, rows, fast, device) for layers in (1, 2))
    pass_, update = (low + (shape.layers - 1) * (high - low) for low, high in zip(one, two, strict=True))
    return pass_ * loop.batch_size / rows + update


def _timed(
    recipe: DecoderRecipe, layers: int, size: int, rows: int, fast: bool, device: str
) -> tuple[float, float]:
    """Seconds of forward and backward on so many rows, and of what follows once a step."""
    window = recipe.window
    backbone = build_backbone(recipe.backbone.model_copy(update={"layers": layers}), size)
    if recipe.timestep is not None:
        add_timestep(backbone, recipe.timestep)
    model = Scorer(backbone).train().to(device)
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, fused=True)
    average = [each.detach().clone() for each in model.state_dict().values()]
    ids_BT = torch.randint(size, (rows, window), generator=generator(0)).to(device)
    mask_B1TT = torch.ones(rows, 1, window, window, dtype=torch.bool, device=device).tril()
    times = (torch.zeros(rows, window, device=device),) if recipe.timestep is not None else ()

    def one_pass() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast):
            backward(model(ids_BT, all_scored(ids_BT), mask_B1TT, ids_BT * 0, *times)[0] / ids_BT.numel())

    def update() -> None:
        nn.utils.clip_grad_norm_(learning, recipe.loop.clip)
        optimizer.step()
        torch._foreach_lerp_(average, list(model.state_dict().values()), 0.5)

    return fastest(one_pass, device=device), fastest(update, device=device)


def drawing_seconds(
    objective: Objective, documents: Sequence[Sequence[int]], rows: int, window: int, times: int = 3
) -> float:
    """Seconds that a batch takes to draw, from such documents (ids): cut, masked, packed, and who sees whom."""
    mean = sum(min(len(each), window) for each in documents) / len(documents) + 6
    count = int(1.3 * rows * window / mean) + 2
    drawn = [documents[place % len(documents)] for place in range(count)]
    rng = generator(0)

    def draw() -> None:
        packed = pack(objective.make_examples(drawn, rng, window), rows, window)
        block_mask(packed.documents_BT, packed.blocks_BT, packed.noisy_BT)

    return fastest(draw, times)


def fastest(act: Callable[[], object], times: int = 3, device: str = "cpu") -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    act()
    took = []
    for _ in range(times):
        _wait_for(device)
        start = time.perf_counter()
        act()
        _wait_for(device)
        took.append(time.perf_counter() - start)
    return min(took)


def _wait_for(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def backward(loss: Tensor) -> None:
    """`loss.backward()`, which torch does not type."""
    loss.backward()  # type: ignore[no-untyped-call]
