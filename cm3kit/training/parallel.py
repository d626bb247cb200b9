"""Several processes that train as one: the model in each, and tensors that are spread over all of them.

Every process draws the whole batch and takes its share, so that what is learned does not depend on their number.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cm3kit.training.task import Task, TaskInParts
from cm3kit_tokenizers.errors import ConfigError

Value = TypeVar("Value")


def shard(task: Task, accelerator: Accelerator) -> None:
    """Shard weights, gradients and moments over the processes (FSDP2), a layer at a time, and what is in no layer.

    Where training is in bf16, weights go round in it, and are computed with in it, norms and residuals too; those that
    learn, and sums of gradients, stay fp32. PyTorch's `fully_shard` is called as it is, since accelerate has it for
    GPUs only.

    Raises:
        ConfigError: the task has parts that move without gradients.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if isinstance(task, TaskInParts):
        raise ConfigError(
            "loop.shard = true: only decoders can be spread; leave it out, and the processes hold a copy each.",
            code="bad_config",
        )
    model = task.model.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    fast = accelerator.mixed_precision == "bf16"
    # Inputs stay as they are: weights of a loss and times are no activations.
    policy = MixedPrecisionPolicy(
        torch.bfloat16 if fast else None, torch.float32 if fast else None, cast_forward_inputs=False
    )
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def recompute(model: nn.Module) -> None:
    """Keep no activations inside layers, and compute them again on the way back; ConfigError if no part can."""
    taken: list[str] = []
    for name, module in model.named_modules():
        if any(f"{name}.".startswith(f"{outer}.") or not outer for outer in taken):
            continue
        # Of transformers, by its name in newer and in older versions; and of diffusers.
        enable = getattr(module, "activation_checkpointing_enable", None)
        enable = enable or getattr(module, "gradient_checkpointing_enable", None)
        if enable is not None:
            enable({"use_reentrant": False})
            taken.append(name)
        elif getattr(module, "_supports_gradient_checkpointing", False):
            module.enable_gradient_checkpointing()
            taken.append(name)
    if not taken:
        raise ConfigError("loop.recompute = true: this model has no layers that can be.", code="bad_config")


def prepare(task: Task, accelerator: Accelerator) -> nn.Module:
    """The model as it is called in a step; with several processes gradients are their mean.

    The optimizer is not wrapped: there is no scale of losses to undo, and accelerate looks up packages at every step.
    """
    if is_spread(task.model):
        return task.model
    # The discriminator of an image tokenizer is not used in the first steps.
    accelerator.ddp_handler = DistributedDataParallelKwargs(
        find_unused_parameters=isinstance(task, TaskInParts)
    )
    model: nn.Module = accelerator.prepare(task.model)
    return model


def quiet(model: nn.Module, accelerator: Accelerator, last: bool) -> AbstractContextManager[Any]:
    """Let gradients of all but the last micro-batch stay in their process, where there are copies of the model."""
    if last or accelerator.num_processes == 1 or is_spread(model):
        return nullcontext()
    held: AbstractContextManager[Any] = accelerator.no_sync(model)
    return held


def is_spread(model: nn.Module) -> bool:
    """Whether the weights are spread over processes."""
    return any(isinstance(each, DTensor) for each in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A tensor with nothing missing; every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A tensor that every process has whole, on the device of another and spread as that one is."""
    if not isinstance(like, DTensor):
        return tensor if like is None else tensor.to(like.device)
    on = tensor.to(like.device)
    return distribute_tensor(on, like.device_mesh, like.placements, src_data_rank=None)


def gathered(accelerator: Accelerator, mine: Value) -> list[Value]:
    """What each process has, in their order; every process has to call this."""
    if accelerator.num_processes == 1:
        return [mine]
    found: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(found, mine)
    return found


def agreed(accelerator: Accelerator, mine: Value) -> Value:
    """What the main process has; every process has to call this."""
    return gathered(accelerator, mine)[0]
