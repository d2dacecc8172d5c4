"""How a long prediction uses memory: the allocator's settings, and recognising exhaustion."""

from __future__ import annotations

import ctypes
import logging
import sys

import torch
from torch import nn

logger = logging.getLogger(__name__)

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_KEEP_BYTES = (1 << 31) - 1
_GROW_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Let the process reuse freed memory instead of returning it to the system at once.

    A convolution's output has tens of megabytes; glibc maps and unmaps each, and the page faults
    take up to a third of a CPU prediction's time. The setting holds for the whole process and
    cannot be undone, so only the batch predictor asks for it.

    Returns:
        True if the allocator took the setting; False on other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {
        _M_ARENA_MAX: 1,
        _M_MMAP_MAX: 0,
        _M_TRIM_THRESHOLD: _KEEP_BYTES,
        _M_TOP_PAD: _GROW_BYTES,
    }
    taken = all(mallopt(option, value) == 1 for option, value in settings.items())
    logger.debug("allocator keeps freed memory: %s", taken)
    return taken


def use_channels_last(network: nn.Module) -> None:
    """Store the weights of convolutions channels-last, which runs faster on a CPU.

    Args:
        network: Changed in place; its values stay the same.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for the error that PyTorch raises when a device's memory is exhausted."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()
