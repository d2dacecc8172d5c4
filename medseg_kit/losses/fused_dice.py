"""Spatial and edge Dice losses of FedCoWPro (equations 2 and 3).

The paper leaves open how the horizontal and vertical responses are put together and scaled; here
the Sobel kernels are divided by 4 and the map is their magnitude, so it lies in [0, 1] and the loss
never exceeds 1.
"""

from __future__ import annotations

import torch
from torch.nn import functional

EPSILON = 1e-6
DENOMINATORS = ("squared", "linear")
_FLOOR = 1e-4  # magnitude of a blank map before it is taken off


def spatial_dice(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return ``1 - 2 sum(t p) / (sum t + sum p)`` of each image, ``(B,)``.

    Args:
        pred: Probabilities ``(B, H, W)`` of the foreground.
        target: ``(B, H, W)`` in [0, 1].

    Raises:
        ValueError: If the shapes differ.
    """
    return _dice(pred, target, power=1)


def edge_dice(
    pred: torch.Tensor, target: torch.Tensor, *, denominator: str = "squared"
) -> torch.Tensor:
    """Return the Dice loss of the edge maps of each image, ``(B,)``; 0 where both are blank.

    Args:
        pred: Probabilities ``(B, H, W)`` of the foreground.
        target: ``(B, H, W)`` in [0, 1].
        denominator: "squared", which gives 0 for equal maps, or "linear" as printed, which does
            not, since edge maps are no masks.

    Raises:
        ValueError: If the shapes differ, or for another denominator.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator!r}")
    return _dice(edge_map(pred), edge_map(target), power=2 if denominator == "squared" else 1)


def edge_map(image: torch.Tensor) -> torch.Tensor:
    """Return the magnitude of the Sobel gradient, ``(B, H, W)`` in [0, 1].

    Args:
        image: ``(B, H, W)`` in [0, 1]; continued by its border.
    """
    smooth = torch.tensor([1.0, 2.0, 1.0], dtype=image.dtype, device=image.device)
    step = torch.tensor([-1.0, 0.0, 1.0], dtype=image.dtype, device=image.device)
    across = torch.outer(smooth, step) / 4
    kernels = torch.stack([across, across.T])[:, None]
    padded = functional.pad(image[:, None], (1, 1, 1, 1), mode="replicate")
    squares = functional.conv2d(padded, kernels).square().sum(dim=1)
    return ((squares + _FLOOR**2).sqrt() - _FLOOR).clamp(0, 1)


def _dice(pred: torch.Tensor, target: torch.Tensor, *, power: int) -> torch.Tensor:
    if pred.shape != target.shape or pred.dim() != 3:
        raise ValueError(
            f"pred and target must be (B, H, W), got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    shared = (pred * target).sum((1, 2))
    total = (pred**power + target**power).sum((1, 2))
    return 1 - (2 * shared + EPSILON) / (total + EPSILON)
