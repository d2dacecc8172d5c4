"""CCT-R's bank of feature maps, stored as the slices lay before augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

SEEN = 1e-3  # norm of a feature, below which augmentation has moved its pixel out of the image


class FeatureMaps:
    """Feature maps by (volume, slice): known ones are overwritten, the oldest leave.

    Args:
        capacity: Most maps kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.maps: dict[tuple[int, int], torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.maps)

    def put(self, volumes: torch.Tensor, slices: torch.Tensor, maps: torch.Tensor) -> None:
        """Store maps ``(B, d, h, w)`` in half precision; a known slice keeps its age."""
        for volume, number, content in zip(volumes.tolist(), slices.tolist(), maps, strict=True):
            self.maps[volume, number] = content.to(torch.float16)
        while len(self.maps) > self.capacity:
            del self.maps[next(iter(self.maps))]

    def volumes(self) -> list[int]:
        """Return the volumes of which a slice is here, in order."""
        return sorted({volume for volume, _ in self.maps})

    def sample(
        self, volume: int, slices: torch.Tensor, pixels: torch.Tensor, size: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features at pixels of a volume's slices, and whether they have been seen.

        Args:
            volume: The volume.
            slices: Slice of each point ``(n,)``.
            pixels: ``(n, 2)`` as (column, row) of canonical slices of ``size``.
            size: Rows and columns of the canonical slices.

        Returns:
            ``(n, d)``, zeros where there is nothing, and ``(n,)`` bool: the slice is here, and
            augmentation had not moved the pixel out of it.
        """
        some = next(iter(self.maps.values()))
        result = torch.zeros(len(pixels), some.shape[0], device=pixels.device)
        there = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        extent = torch.tensor([size[1], size[0]], device=pixels.device)
        grid = (2 * pixels + 1) / extent - 1
        for number in slices.unique().tolist():
            content = self.maps.get((volume, number))
            if content is None:
                continue
            chosen = slices == number
            sampled = F.grid_sample(
                content[None].to(grid), grid[chosen][None, None], "bilinear", "border", False
            )
            result[chosen] = sampled[0, :, 0].t()
            there[chosen] = result[chosen].norm(dim=1) > SEEN
        return result, there

    def state_dict(self) -> dict[str, Any]:
        """Return keys and maps."""
        if not self.maps:
            return {"keys": torch.zeros(0, 2, dtype=torch.int64), "maps": None}
        contents = [content.cpu() for content in self.maps.values()]  # resumed ones lie there
        return {"keys": torch.tensor(list(self.maps)), "maps": torch.stack(contents)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        keys = [(volume, number) for volume, number in state["keys"].tolist()]
        contents = [] if state["maps"] is None else [*state["maps"]]
        self.maps = dict(zip(keys, contents, strict=True))


def unaugmented(maps: torch.Tensor, matrix: torch.Tensor, full: Sequence[int]) -> torch.Tensor:
    """Return feature maps as they lay before augmentation; zeros where nothing was seen.

    Args:
        maps: ``(B, d, h, w)`` of augmented images.
        matrix: ``(B, 2, 3)``, pixel (column, row, 1) of the augmented to that of the canonical
            image.
        full: Rows and columns of the image.
    """
    rows, columns = maps.shape[2:]
    y = (torch.arange(rows, device=maps.device) + 0.5) * full[0] / rows - 0.5
    x = (torch.arange(columns, device=maps.device) + 0.5) * full[1] / columns - 0.5
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    inverse = torch.linalg.inv(matrix[:, :, :2].float())
    moved = points[None] - matrix[:, None, None, :, 2]
    # sums, not matrix products: those would be in half precision under autocast
    pixels = (inverse[:, None, None] * moved[..., None, :]).sum(-1)
    grid = (2 * pixels + 1) / torch.tensor([full[1], full[0]], device=maps.device) - 1
    return F.grid_sample(maps.float(), grid, "bilinear", "zeros", False)


def canonical_pixels(
    anchors: torch.Tensor, size: tuple[int, int], full: Sequence[int], matrix: torch.Tensor
) -> torch.Tensor:
    """Return where anchors lie in the canonical slices, ``(n, 2)`` as (column, row).

    Args:
        anchors: Flat indices into ``B x h x w`` feature pixels, ``(n,)``.
        size: h and w.
        full: Rows and columns of the image.
        matrix: Of each anchor's image, ``(n, 2, 3)``, augmented to canonical pixels.
    """
    place = anchors % (size[0] * size[1])
    row, column = place // size[1], place % size[1]
    x = (column + 0.5) * full[1] / size[1] - 0.5
    y = (row + 0.5) * full[0] / size[0] - 0.5
    points = torch.stack([x, y, torch.ones_like(x)], dim=1).to(matrix.dtype)
    return (matrix * points[:, None]).sum(-1)
