"""What a run costs: parameters, operations, seconds and memory."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from medseg_kit.study.spec import Job


def describe_cost(
    job: Job, *, seconds: dict[str, float], local_steps: int | None, num_cases: int
) -> dict[str, Any]:
    """Return the cost of a run; None for what does not apply to it.

    `parameters` and `gflops` (10^9 multiply-adds of one window or slice, counted twice) are those
    of the deployed network, of a pair the students that answer; `seconds_per_step` holds everything
    between two steps, validation included, and of a federation counts the steps of all sites, which
    are simulated one after the other; `peak_memory_gib` is that of the whole process;
    `registration_seconds` is what all pairs of the run's registration folder took, in seconds of
    one thread.

    Args:
        job: The run.
        seconds: `train` and `predict`.
        local_steps: Optimisation steps of one site.
        num_cases: Predicted cases.
    """
    import torch

    steps = (local_steps or 0) * _num_sites(job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    cost: dict[str, Any] = {
        "parameters": None,
        "gflops": None,
        "seconds_per_step": seconds["train"] / steps if steps else None,
        "seconds_per_case": seconds["predict"] / max(num_cases, 1),
        "peak_memory_gib": round(peak * (1 if sys.platform == "darwin" else 1024) / 2**30, 2),
        "peak_gpu_memory_gib": gpu,
        "registration_seconds": _registration_seconds(job),
    }
    return cost | (_network_cost(job) if job.spec.bundle and job.spec.mode != "command" else {})


def _num_sites(job: Job) -> int:
    """Return how many sites make the run's steps."""
    from medseg_kit.data.datalist import site_folders

    return len(site_folders(job.spec.sites or "")) if job.spec.mode == "federate" else 1


def _registration_seconds(job: Job) -> float | None:
    """Return what the folder of `medseg register` says that a run uses; None without one."""
    folder = job.spec.paths.get("registration")
    report = None if folder is None else Path(folder) / "report.json"
    if report is None or not report.is_file():
        return None
    return float(json.loads(report.read_text(encoding="utf-8"))["pairs"]["seconds"])


def _network_cost(job: Job) -> dict[str, Any]:
    """Return parameters and operations of the network that the bundle deploys."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from medseg_kit.bundle.config import load_config
    from medseg_kit.networks.dual import DualNetwork

    files = ["inference.yaml", *job.spec.inference.get("overlays", ())]
    overrides = job.spec.inference.get("overrides", {})
    parser = load_config(str(job.spec.bundle), files, overrides=overrides)
    network = parser.get_parsed_content("network_def").eval()
    inferer = parser.get_parsed_content("inferer")
    size = getattr(inferer, "slice_size", None) or getattr(inferer, "roi_size", None)
    parts = network.answering() if isinstance(network, DualNetwork) else [network]
    numbers = (p.numel() for part in parts for p in part.parameters())
    cost: dict[str, Any] = {"parameters": sum(numbers)}
    if size is not None:
        channels = parser["_meta_"]["network_data_format"]["inputs"]["image"]["num_channels"]
        plain_attention = sdpa_kernel(SDPBackend.MATH)  # the CPU's fused one is not counted
        with plain_attention, FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, channels, *size))
        cost["gflops"] = counter.get_total_flops() / 1e9
    return cost
