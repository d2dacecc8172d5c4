"""Prototypes of a support mask, and how alike a query's pixels are to them: ALPNet and CoWPro.

Local prototypes (means of grid cells that lie inside the mask) beside the mean of the whole mask,
Ouyang et al. 2020, https://arxiv.org/abs/2007.09886; compared by correlation, CoWPro.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

MIN_NORM = 1e-4
_EPSILON = 1e-5


class Cells(NamedTuple):
    """Candidates for prototypes of B supports, and which of them count.

    Attributes:
        foreground: ``(B, K + 1, C)``, the last one the mean of the whole mask.
        foreground_valid: ``(B, K + 1)`` bool; the last one always.
        background: The same for what is not the mask; the mean only where no cell counts.
        background_valid: ``(B, K + 1)`` bool.
    """

    foreground: torch.Tensor
    foreground_valid: torch.Tensor
    background: torch.Tensor
    background_valid: torch.Tensor


class PrototypeClassifier:
    """Scores query pixels by their similarity to prototypes; it has no weights.

    Args:
        threshold: Share of a cell that must lie inside for its mean to be a prototype.
        scale: Factor on every correlation.
        renormalise_aggregate: Compare with the weighted mean prototype by correlation, as in the
            text of FedCoWPro, instead of by the plain product, as in CoWPro's code (a weighted
            mean of the single scores).
    """

    def __init__(
        self,
        *,
        threshold: float = 0.95,
        scale: float = 20.0,
        renormalise_aggregate: bool = False,
    ) -> None:
        self.threshold = threshold
        self.scale = scale
        self.renormalise_aggregate = renormalise_aggregate

    def __repr__(self) -> str:
        """Name every option: digests of a network, and of prototypes, depend on it."""
        return (
            f"{type(self).__name__}(threshold={self.threshold}, scale={self.scale}, "
            f"renormalise_aggregate={self.renormalise_aggregate})"
        )

    def cells(self, features: torch.Tensor, mask: torch.Tensor, *, window: int) -> Cells:
        """Return the candidates of each support on its own.

        Args:
            features: ``(B, C, h, w)``.
            mask: ``(B, H, W)`` in [0, 1]; resized linearly to the features. A mask so small that
                nothing of it is left then is taken by the area of each pixel.
            window: Side of a grid cell in pixels of the features; smaller than the features.
        """
        inside = _resized(mask.to(features.dtype), features.shape[-2:])
        foreground, fg_valid, _ = self._side(features, inside, window)
        background, bg_valid, local = self._side(features, 1 - inside, window)
        fg_valid[:, -1] = True
        bg_valid[:, -1] = ~local
        return Cells(foreground, fg_valid, background, bg_valid)

    def prototypes(
        self, features: torch.Tensor, mask: torch.Tensor, *, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prototypes of all supports side by side.

        Args:
            features: ``(S, C, h, w)``.
            mask: ``(S, H, W)`` in [0, 1].
            window: Side of a grid cell in pixels of the features.

        Returns:
            Foreground ``(P, C)`` and background ``(Q, C)``.
        """
        cells = self.cells(features, mask, window=window)
        return (
            cells.foreground[cells.foreground_valid],
            cells.background[cells.background_valid],
        )

    def score(
        self, query: torch.Tensor, prototypes: torch.Tensor, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return how alike each pixel is to its most alike prototypes, ``(B, h, w)``.

        The correlation with every prototype weighs the prototypes (softmax), and the pixel is
        compared with their weighted mean.

        Args:
            query: Features ``(B, C, h, w)``.
            prototypes: ``(P, C)`` for all queries, or ``(B, P, C)``.
            valid: Which prototypes count, ``(B, P)`` bool, at least one each; all if None.
        """
        height, width = query.shape[-2:]
        pixels = _standardise(query.flatten(2).transpose(1, 2))  # (B, hw, C)
        points = _standardise(prototypes.to(query.dtype))
        similarity = self.scale * pixels @ points.transpose(-1, -2)  # (B, hw, P)
        weighing = similarity
        if valid is not None:
            weighing = similarity.masked_fill(~valid[:, None], -torch.inf)
        weights = weighing.softmax(dim=-1)
        if self.renormalise_aggregate:
            mean = functional.normalize(weights @ points, dim=-1, eps=MIN_NORM)
            score = self.scale * (pixels * mean).sum(dim=-1)
        else:
            score = (weights * similarity).sum(dim=-1)
        return score.reshape(-1, height, width)

    def _side(
        self, features: torch.Tensor, inside: torch.Tensor, window: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return means ``(B, K + 1, C)``, which cells count, and whether any does, ``(B,)``."""
        side = inside[:, None]
        means = functional.avg_pool2d(features, window).flatten(2)
        share = functional.avg_pool2d(side, window).flatten(1)
        whole = (features * side).sum((2, 3)) / (side.sum((2, 3)) + _EPSILON)
        valid = share > self.threshold
        padded = functional.pad(valid, (0, 1))
        return torch.cat([means, whole[:, :, None]], dim=2).transpose(1, 2), padded, valid.any(1)


def _resized(mask: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Return a mask ``(B, h, w)`` on the grid of the features."""
    if mask.shape[-2:] == size:
        return mask
    linear = functional.interpolate(mask[:, None], size, mode="bilinear")[:, 0]
    area = functional.interpolate(mask[:, None], size, mode="area")[:, 0]
    lost = (linear.sum((1, 2)) == 0)[:, None, None]
    return torch.where(lost, area, linear)


def _standardise(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors ``(..., C)`` of mean 0 and norm 1, so that products are correlations."""
    centred = vectors - vectors.mean(dim=-1, keepdim=True)
    return functional.normalize(centred, dim=-1, eps=MIN_NORM)
