"""Mixed precision where the device has it."""

from __future__ import annotations

import logging
from functools import cache

import torch

logger = logging.getLogger(__name__)

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# What a processor calls its instructions for products in half precision (x86, then ARM).
CPU_INSTRUCTIONS = {
    "bf16": ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"),
    "fp16": ("amx_fp16", "avx512_fp16", "fp16_arith"),
}
SLOW_ON_INTEL = ("avx512_bf16",)  # slower than float32


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """Return an autocast for ``device``; one that does nothing where it would only cost time.

    A device without the instructions emulates half precision: a training step of the 2-D U-Net
    took 11 times as long in bfloat16 as in float32 on a processor with AVX2 alone. An Intel
    processor multiplies bfloat16 fast by its AMX unit only, which virtual machines often hide:
    without it products take 1.5 to 2 times as long as in float32, and 3-D convolutions 1.7 to 2.4
    times (Xeon, one thread, torch 2.13). In both cases float32 is kept, and a line in the log says
    so.

    Args:
        device: Where it computes.
        amp: "off", "bf16" or "fp16".
    """
    enabled = amp != "off" and has_gain(device.type, amp)
    return torch.autocast(device.type, dtype=AMP_DTYPES[amp], enabled=enabled)


@cache
def has_gain(device_type: str, amp: str) -> bool:
    """Return whether the device computes in that precision itself, and not slower than in float32.

    Args:
        device_type: "cpu" or "cuda"; others are taken to have both.
        amp: "bf16" or "fp16"; every CUDA device has the second.
    """
    gain = True
    if device_type == "cpu":
        found = torch.cpu.get_capabilities()
        slow = SLOW_ON_INTEL if str(found.get("cpu_name", "")).startswith("Intel") else ()
        gain = any(found.get(name, False) for name in CPU_INSTRUCTIONS[amp] if name not in slow)
    elif device_type == "cuda" and amp == "bf16":
        gain = torch.cuda.is_bf16_supported(including_emulation=False)
    if not gain:
        logger.info("this %s has no fast %s instructions: computing in float32", device_type, amp)
    return gain
