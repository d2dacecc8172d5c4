"""What a run was done with: hardware and versions."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "SimpleITK")


def describe_hardware() -> dict[str, object]:
    """Return processor, usable cores, memory in GiB and the GPU's name (None without one).

    ``bf16`` says whether ``amp: bf16`` computed in bfloat16 or, for want of it, in float32.
    """
    import psutil
    import torch

    from medseg_kit.engines.precision import has_gain

    on_gpu = torch.cuda.is_available()
    return {
        "machine": platform.machine(),
        "processor": _processor_name(),
        "cores": num_cores(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if on_gpu else None,
        "bf16": has_gain("cuda" if on_gpu else "cpu", "bf16"),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of what its numbers depend on.

    ``source`` is a digest of the package's own files, which tells states of one version apart.
    """
    from medseg_kit import __version__

    return {
        "python": platform.python_version(),
        "medseg_kit": __version__,
        "source": _source_digest(),
        **{name: version(name) for name in PACKAGES},
    }


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _source_digest() -> str:
    """Return 12 hexadecimal digits of the sha256 of the package's Python files."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a pseudo file
            lines = [line for line in file if line.startswith("model name")]
    except OSError:
        return platform.processor()
    return lines[0].partition(":")[2].strip() if lines else platform.processor()
