"""bfloat16 for fast inference, with float32 where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from medseg_kit.engines.precision import autocast


@contextmanager
def fast_precision(
    network: Callable[..., Any],
    device: torch.device,
    *,
    fast: bool,
    full_precision: Sequence[str] = (),
) -> Iterator[None]:
    """Compute in bfloat16 in fast mode, if the device has it, but for what keeps float32.

    Args:
        network: What runs.
        device: Where it runs.
        fast: Nothing changes if false.
        full_precision: Names of sub-modules of the network.
    """
    if not fast:
        yield
        return
    kept = []
    if isinstance(network, nn.Module):
        kept = [network.get_submodule(name) for name in full_precision]
    with autocast(device, "bf16"), ExitStack() as stack:
        for module in kept:
            stack.enter_context(_in_float32(module, device))
        yield


@contextmanager
def _in_float32(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Let a module compute in float32 within an autocast."""
    forward = module.forward

    def full(*tensors: torch.Tensor) -> Any:
        with torch.autocast(device.type, enabled=False):
            return forward(*(tensor.float() for tensor in tensors))

    module.forward = full
    try:
        yield
    finally:
        del module.forward  # the class's own is found again
