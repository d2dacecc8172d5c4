"""The largest connected regions of classes, in slices and in volumes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import MapTransform, get_largest_connected_component_mask
from skimage.measure import label as connected_regions
from torch.nn import functional as F

from medseg_kit.typing import UserError


def largest_components(labels: torch.Tensor) -> torch.Tensor:
    """Keep the largest region (8 neighbours) of each foreground class in each slice.

    One search serves all slices and classes: the slices are laid below each other with an empty row
    between them. MONAI's `KeepLargestConnectedComponent`, called a slice at a time, gives the same
    map in four times the time.

    Args:
        labels: Class of each pixel, ``(B, H, W)``, at most 255 classes; on any device, the search
            runs on the CPU.
    """
    batch, height, width = labels.shape
    if batch == 0:
        return labels
    rows = F.pad(labels.cpu().to(torch.uint8), (0, 0, 0, 1))
    found = connected_regions(rows.view(-1, width).numpy(), background=0, connectivity=2)
    region = torch.from_numpy(found).flatten().long()
    sizes = torch.bincount(region)
    sizes[0] = 0  # the background
    # a group is one class in one slice; all pixels of a region are of the same group
    num_classes = int(rows.max()) + 1
    group_of_pixel = torch.arange(batch)[:, None, None] * num_classes + rows
    group = torch.zeros_like(sizes).scatter_(0, region, group_of_pixel.flatten())
    rank = sizes * len(sizes) - torch.arange(len(sizes))  # of equally large ones the first stays
    best = torch.full((batch * num_classes,), -len(sizes)).scatter_reduce(0, group, rank, "amax")
    keep = (rank == best[group]) & (sizes > 0)
    kept = keep[region].view_as(rows)[:, :height].to(labels.device)
    return torch.where(kept, labels, 0)


class KeepLargestd(MapTransform):
    """Keep the largest regions (26 neighbours) of each organ in a label map.

    MONAI's `KeepLargestConnectedComponentd` searches the whole volume for every organ; this one
    only the box around it, with MONAI's function.

    Args:
        keys: Label maps ``(1, H, W, D)``.
        num_regions: Regions that stay for label values 1, 2, ...; all where None.

    Raises:
        UserError: If a number is none of at least 1.
    """

    def __init__(self, keys: Sequence[str] | str, *, num_regions: Sequence[int | None]) -> None:
        super().__init__(keys)
        self.num_regions = tuple(num_regions)
        if not all(number is None or _counts(number) for number in self.num_regions):
            raise UserError(
                f"num_regions is {num_regions}; give a list with a number of at least 1, or "
                "null, for each organ in their order, such as [1, null, 2]"
            )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the data with cleaned copies of the label maps."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._clean(result[key].clone())
        return result

    def _clean(self, labels: torch.Tensor) -> torch.Tensor:
        for value, number in enumerate(self.num_regions, 1):
            organ = labels == value
            if number is None or not organ.any():
                continue
            box = tuple(_extent(organ, axis) for axis in range(organ.dim()))
            kept = get_largest_connected_component_mask(organ[box], num_components=number)
            labels[box][organ[box] & ~kept.bool()] = 0
        return labels


def _counts(value: Any) -> bool:
    return isinstance(value, int) and value > 0


def _extent(mask: torch.Tensor, axis: int) -> slice:
    """Return where along an axis a mask has voxels."""
    others = [other for other in range(mask.dim()) if other != axis]
    found = mask.any(dim=others).nonzero()
    return slice(int(found[0]), int(found[-1]) + 1)
