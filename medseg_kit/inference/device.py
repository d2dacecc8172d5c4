"""Which device a prediction runs on, and which share of the work a process has."""

from __future__ import annotations

import os

import torch

from medseg_kit.typing import UserError


def select_device(wish: str | torch.device = "auto") -> torch.device:
    """Return the device for this process; under torchrun each process gets its own GPU.

    Args:
        wish: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Raises:
        UserError: If the device is unknown or not present.
    """
    name = str(wish)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:0") from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    index = local_rank % max(count, 1) if ":" not in name else device.index
    if index >= count:
        raise UserError(f"device '{name}' asked for, but {count} GPUs are present; use cpu or auto")
    return torch.device("cuda", index)


def share(num_parts: int, part_id: int) -> tuple[int, int]:
    """Return the number of shares and this process's share: parts times torchrun's processes.

    Args:
        num_parts: Machines or jobs that share the work.
        part_id: Which of them this is, from 0.

    Raises:
        UserError: If ``part_id`` is not in ``[0, num_parts)``.
    """
    if num_parts < 1 or not 0 <= part_id < num_parts:
        raise UserError(
            f"part_id must be at least 0 and below num_parts, got part {part_id} of {num_parts}"
        )
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    return num_parts * world_size, part_id * world_size + rank
