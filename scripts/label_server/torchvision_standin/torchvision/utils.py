"""The two functions of `torchvision.utils` that MONAI Label imports."""

from __future__ import annotations

import math
from os import PathLike
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image


def make_grid(
    images: torch.Tensor | list[torch.Tensor], nrow: int = 8, padding: int = 2
) -> torch.Tensor:
    """Return images side by side in one picture.

    Args:
        images: ``(B, C, H, W)``, or a list of ``(C, H, W)``; one channel becomes three.
        nrow: Pictures in a row.
        padding: Pixels of black between pictures.

    Returns:
        ``(C, height, width)``.
    """
    batch = torch.stack(images) if isinstance(images, list) else images
    if batch.dim() != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(batch.shape)}")
    if batch.shape[1] == 1:
        batch = batch.expand(-1, 3, -1, -1)
    columns = min(nrow, len(batch))
    rows = math.ceil(len(batch) / columns)
    height, width = batch.shape[2] + padding, batch.shape[3] + padding
    grid = batch.new_zeros((batch.shape[1], rows * height + padding, columns * width + padding))
    for index, image in enumerate(batch):
        top = (index // columns) * height + padding
        left = (index % columns) * width + padding
        grid[:, top : top + batch.shape[2], left : left + batch.shape[3]] = image
    return grid


def save_image(
    images: torch.Tensor | list[torch.Tensor],
    path: str | PathLike[str] | BinaryIO,
    format: str | None = None,
    nrow: int = 8,
    padding: int = 2,
) -> None:
    """Write images with values in ``[0, 1]`` as one picture; see `make_grid`."""
    if isinstance(images, torch.Tensor) and images.dim() == 3:
        images = images[None]
    grid = make_grid(images, nrow=nrow, padding=padding)
    pixels = grid.mul(255).add(0.5).clamp(0, 255).permute(1, 2, 0).to("cpu", torch.uint8)
    Image.fromarray(np.asarray(pixels)).save(path, format=format)
