"""The pixels of all branches at one scale, numbered through, for contrastive losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medseg_kit.engines.semi_supervised import Branch
from medseg_kit.typing import UserError


class BranchPixels:
    """Features of pixels by one number: branch by branch, image by image, row by row.

    Args:
        branches: Branches with projections, N images each.
        scale: Scale of the features.

    Raises:
        UserError: If the network has no projector of that scale.
    """

    def __init__(self, branches: Sequence[Branch], scale: str) -> None:
        if missing := [branch for branch in branches if scale not in branch.projected]:
            raise UserError(
                f"contrast at the scale {scale!r}, but the network projects"
                f" {list(missing[0].projected)}: list it in `scales`, or choose one of those"
                " (MCSC: the keys of `patches`; CCT-R: `train#contrast#scale`)"
            )
        self.projected = [branch.projected[scale] for branch in branches]
        self.size = self.projected[0].size

    def numbers(self) -> torch.Tensor:
        """Return the number of each pixel, ``(branches, N, h, w)``."""
        tap = self.projected[0].tap
        shape = (len(self.projected), len(tap), *self.size)
        return torch.arange(torch.Size(shape).numel(), device=tap.device).view(shape)

    def at(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the features of pixels ``(n,)`` as ``(n, d)`` float32 with gradient.

        The projectors are in the graph even if there is no pixel, as data-parallel training wants.
        """
        first = self.projected[0].tap
        area = len(first) * self.size[0] * self.size[1]
        branch = numbers // area
        padded = torch.zeros(1, dtype=torch.long, device=first.device)
        parts = []
        for index, projected in enumerate(self.projected):
            own = numbers[branch == index] - index * area
            parts.append(projected.pixels(torch.cat([own, padded]))[: len(own)])
        place = branch.argsort(stable=True).argsort()
        return torch.cat(parts)[place].float()

    @torch.no_grad()
    def all(self) -> torch.Tensor:
        """Return the features of all pixels, ``(P, d)`` without gradient."""
        return torch.cat([projected.all() for projected in self.projected])


def random_subset(index: torch.Tensor, count: int) -> torch.Tensor:
    """Return ``index`` ``(n,)``, or ``count`` random entries, none twice, if n is larger."""
    if len(index) <= count:
        return index
    return index[torch.randperm(len(index), device=index.device)[:count]]
