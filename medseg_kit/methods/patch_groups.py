"""MCSC's groups: one patch of every feature map, each from its own random place."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from medseg_kit.methods.branch_pixels import BranchPixels
from medseg_kit.typing import UserError


def foreground_groups(
    pixels: BranchPixels,
    numbers: torch.Tensor,
    labels: torch.Tensor,
    patch: int,
    num_groups: int | None = None,
    *,
    grid_minus_one: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features ``(groups, n, d)`` and classes ``(groups, n)`` of groups with foreground.

    Args:
        pixels: Features.
        numbers: Of the pixels of the maps that count, ``(N, h, w)``, N at least 1.
        labels: Their classes at the image's size, ``(N, H, W)``.
        patch: Side of a patch.
        num_groups: Groups, drawn at random; all of them if None.
        grid_minus_one: Leave the last row and column of patches out, as MCSC's code does.

    Raises:
        UserError: If no patch fits.
    """
    classes = resize_labels(labels, pixels.size)
    maps = torch.stack([numbers, classes], dim=1)
    if grid_minus_one:
        rows, columns = ((side // patch - 1) * patch for side in pixels.size)
        maps = maps[:, :, :rows, :columns]
    size = maps.shape[2], maps.shape[3]
    if num_patches(size, patch) == 0:
        largest = min(pixels.size) // (2 if grid_minus_one else 1)
        raise UserError(
            f"patches of {patch} pixels do not fit features of {pixels.size[0]} x {pixels.size[1]}:"
            f" take patches of at most {largest}, or larger images"
        )
    order = random_order(len(numbers), num_patches(size, patch), numbers.device)
    if num_groups is not None:
        order = order[:, :num_groups]
    cut = patch_groups(maps, patch, order)
    cut = cut[(cut[..., 1] != 0).any(1)]
    features = pixels.at(cut[..., 0].flatten()).unflatten(0, cut.shape[:2])
    return features, cut[..., 1]


def patch_groups(maps: torch.Tensor, patch: int, order: torch.Tensor) -> torch.Tensor:
    """Return the pixels of each group, ``(groups, N x patch x patch, c)``.

    The maps are cut into a grid of patches without overlap (what does not fill a patch is left
    out); group m takes the m-th patch in each map's own order.

    Args:
        maps: ``(N, c, h, w)``.
        patch: Side of a patch.
        order: ``(N, patches)``, a permutation of the patches for each map.
    """
    rows, columns = maps.shape[2] // patch, maps.shape[3] // patch
    cut = maps[:, :, : rows * patch, : columns * patch]
    tiles = cut.unflatten(2, (rows, patch)).unflatten(4, (columns, patch))
    tiles = tiles.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)  # (N, patches, pixels, c)
    chosen = torch.arange(len(maps), device=maps.device)[:, None], order
    groups: torch.Tensor = tiles[chosen].transpose(0, 1).flatten(1, 2)
    return groups


def random_order(num_maps: int, num_patches: int, device: torch.device) -> torch.Tensor:
    """Return an independent random permutation of the patches for each map."""
    return torch.rand(num_maps, num_patches).argsort(1).to(device)


def num_patches(size: tuple[int, int], patch: int) -> int:
    """Return how many whole patches a map of ``(h, w)`` holds.

    >>> [num_patches((side, side), patch) for side, patch in ((224, 19), (56, 28), (28, 14))]
    [121, 4, 4]
    """
    return (size[0] // patch) * (size[1] // patch)


def resize_labels(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return labels ``(B, H, W)`` at another size by the pixel nearest to each centre.

    Centres stay in place, as in `resize_maps` and in the features of a strided network;
    torch's "nearest" would take the first pixel of each block, half a block away.
    """
    return F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()


def resize_maps(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return maps ``(B, C, H, W)`` at another size, bilinear."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
