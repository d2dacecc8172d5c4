"""Where a point of one volume lies in another, for training steps: tables of tensors, no ITK.

A(f, m) maps points of the fixed volume f to points of the moving volume m (section 6.3.4 of the
CCT-R thesis calls this T). Here points are voxel indices, so a whole batch of anchors is mapped by
one product with 3 x 4 matrices; a B-spline adds a displacement sampled from a coarse grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from medseg_kit.data.budgets import case_key
from medseg_kit.registration.grids import file_grid, network_grid
from medseg_kit.typing import PathLike, UserError

MAPS_NAME = "maps.pt"
Volumes = torch.Tensor | int


class RegistrationMaps:
    """Point maps between the volumes of a data set, made by ``medseg register``.

    Volumes are numbered by their position in `cases`, as in the ``volume`` of a batch. Points are
    continuous voxel indices along the axes of the volumes as the network's pipeline orients them.

    Args:
        reg_dir: Folder that ``medseg register`` wrote.
        cases: Datalist dictionaries, or case keys (`SliceDataset.case_keys`), in the data set's
            order.
        orientation: As `SliceDataset`: the axis codes of the network's grid, the file's own if
            None.
        direction: As `SliceDataset`: the direction of the body across which slices are cut.

    Attributes:
        sizes: Voxels along the axes of each volume, ``(V, 3)`` int64.
        slice_axes: Axis across the slices of each volume, ``(V,)`` int64.
        has: Whether A(f, m) is there, ``(V, V)`` bool, fixed volume first.

    Raises:
        UserError: When the folder has no maps, or none between the volumes of the list.
    """

    def __init__(
        self,
        reg_dir: PathLike,
        cases: Sequence[Mapping[str, Any] | str],
        *,
        orientation: str | None = None,
        direction: str | None = None,
    ) -> None:
        path = Path(reg_dir) / MAPS_NAME
        if not path.is_file():
            raise UserError(f"{path} does not exist; make it with `medseg register DATA --out DIR`")
        content = torch.load(path, map_location="cpu", weights_only=True)
        keys = [case if isinstance(case, str) else case_key(case) for case in cases]
        stored = {key: index for index, key in enumerate(content["keys"])}
        grids = [
            network_grid(content["sizes"][at], content["affines"][at], orientation, direction)
            if (at := stored.get(key)) is not None
            else file_grid()
            for key in keys
        ]
        self.sizes = torch.stack([grid.size for grid in grids])
        self.slice_axes = torch.tensor([grid.slice_axis for grid in grids])
        # (V, 3, 4): voxel of the network's grid to voxel of the file, and back
        self._to_file = torch.stack([grid.to_file for grid in grids])
        self._from_file = torch.stack([grid.from_file for grid in grids])
        self._pairs = _pair_table(content, keys)
        self._matrices = content["matrices"]
        self._displacements = content["displacements"]
        self._steps = content["displacement_steps"]
        if not bool(self.has.any()):
            raise UserError(
                f"{path} holds no registration between the {len(keys)} volumes of the list"
                f" ({', '.join(keys[:3])}, ...); is it of another data set?"
            )

    @property
    def has(self) -> torch.Tensor:
        """Whether A(f, m) is there, ``(V, V)`` bool, fixed volume first; never from f to f."""
        return self._pairs >= 0

    def to(self, device: torch.device | str) -> RegistrationMaps:
        """Move all tables to a device and return self."""
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        return self

    def map_points(
        self, volume_from: Volumes, volume_to: Volumes, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where points of one volume lie in another: A(from, to).

        Args:
            volume_from: Volume of each point, ``(N,)`` int64, or one for all.
            volume_to: Volume to map each point to, ``(N,)`` int64, or one for all.
            points: Voxel indices in `volume_from`, ``(N, 3)``.

        Returns:
            Voxel indices in `volume_to`, ``(N, 3)`` float32, and ``(N,)`` bool: there is a
            registration and the point lies inside the volume. Other points are meaningless.
        """
        source, target = (
            torch.as_tensor(volume, device=points.device).expand(len(points))
            for volume in (volume_from, volume_to)
        )
        pair = self._pairs[source, target]
        at = _apply(self._to_file[source], points.float())
        mapped = _apply(self._matrices[pair.clamp_min(0)], at)
        if self._displacements is not None:
            mapped = mapped + self._displaced(pair, at)
        result = _apply(self._from_file[target], mapped)
        inside = ((result >= -0.5) & (result <= self.sizes[target] - 0.5)).all(1)
        return result, inside & (pair >= 0)

    def pixels_to_voxels(
        self, volume: Volumes, slices: torch.Tensor, pixels: torch.Tensor, *, size: Sequence[int]
    ) -> torch.Tensor:
        """Return the voxel indices of pixels in canonical (resized, not augmented) slices.

        Args:
            volume: Volume of each pixel, ``(N,)`` int64, or one for all.
            slices: Slice of each pixel, ``(N,)``.
            pixels: ``(N, 2)`` as (column x, row y), continuous; pixel centres are whole numbers.
            size: Rows and columns of the canonical slices.

        Returns:
            ``(N, 3)`` float32.
        """
        axis, planes = self._axes(volume, len(pixels))
        across = self._sizes_of(volume, len(pixels)).gather(1, planes).float()
        wanted = torch.as_tensor(tuple(size), dtype=torch.float32, device=pixels.device)
        # pixel centres stay in place when slices are resized (align_corners=False)
        in_plane = (pixels.flip(1).float() + 0.5) * across / wanted - 0.5
        voxels = torch.empty(len(pixels), 3, device=pixels.device)
        voxels.scatter_(1, planes, in_plane)
        return voxels.scatter_(1, axis, slices[:, None].float())

    def voxels_to_pixels(
        self, volume: Volumes, voxels: torch.Tensor, *, size: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return slice and pixel of voxel indices; the inverse of `pixels_to_voxels`.

        Args:
            volume: Volume of each voxel, ``(N,)`` int64, or one for all.
            voxels: ``(N, 3)``.
            size: Rows and columns of the canonical slices.

        Returns:
            Nearest slice ``(N,)`` int64, and pixel ``(N, 2)`` float32 as (column x, row y).
        """
        axis, planes = self._axes(volume, len(voxels))
        across = self._sizes_of(volume, len(voxels)).gather(1, planes).float()
        wanted = torch.as_tensor(tuple(size), dtype=torch.float32, device=voxels.device)
        in_plane = (voxels.gather(1, planes).float() + 0.5) * wanted / across - 0.5
        return voxels.gather(1, axis)[:, 0].round().long(), in_plane.flip(1)

    def _sizes_of(self, volume: Volumes, count: int) -> torch.Tensor:
        return self.sizes[volume].expand(count, 3)

    def _axes(self, volume: Volumes, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the axis across the slices ``(N, 1)`` and the two others in order ``(N, 2)``."""
        axis = self.slice_axes[volume].expand(count)[:, None]
        first, second = (axis == 0).long(), 2 - (axis == 2).long()
        return axis, torch.cat([first, second], 1)

    def _displaced(self, pair: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return what a B-spline adds to the mapped points, ``(N, 3)`` in voxels of the target."""
        result = torch.zeros_like(points)
        for index in pair.unique().tolist():
            if index < 0:
                continue
            chosen = pair == index
            grid = self._displacements[index].to(points.dtype)
            last = torch.tensor(grid.shape[1:], device=points.device) - 1
            place = points[chosen] / self._steps[index] / last * 2 - 1
            # grid_sample names the last axis first
            sampled = functional.grid_sample(
                grid[None], place.flip(1)[None, :, None, None], "bilinear", "border", True
            )
            result[chosen] = sampled[0, :, :, 0, 0].T
        return result


def _apply(matrices: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Apply ``(N, 3, 4)`` matrices to ``(N, 3)`` points.

    By a sum, not a matrix product: that would be in half precision under autocast, voxels off.
    """
    return (matrices[..., :3] * points[:, None]).sum(-1) + matrices[..., 3]


def _pair_table(content: Mapping[str, Any], keys: Sequence[str]) -> torch.Tensor:
    """Return the pair's number by fixed and moving volume ``(V, V)``, -1 where there is none."""
    place = {key: index for index, key in enumerate(keys)}
    table = torch.full((len(keys), len(keys)), -1, dtype=torch.int64)
    for number, (fixed, moving) in enumerate(content["pairs"].tolist()):
        ends = place.get(content["keys"][fixed]), place.get(content["keys"][moving])
        if None not in ends:
            table[ends] = number
    return table
