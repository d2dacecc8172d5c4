"""From logits on the network's grid to a label map on the file's grid, exactly but quickly.

The reference is softmax, linear resampling of every class to the file's grid, argmax. A resampled
probability is a weighted mean of its eight neighbours, so where all eight have the same winner, by
more than rounding, that winner is the answer; only the other voxels are resampled. The label map is
the same, the work falls from all voxels to those near a boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional

from medseg_kit.inference.grid import Grid, resample

# A lead in logits that survives softmax, interpolation and rounding: with 254 classes the lead in
# probability is at least 1e-2 / 254 = 4e-5, more than what rounding to float32 (1e-7) and the
# neglected displacement of `Grid.is_diagonal` (1e-5) can take away.
_SAFE_LEAD = 1e-2
_OPEN = 255
_CHUNK_VOXELS = 1 << 18
_BLOCK_VOXELS = 1 << 21
_POINTS = 1 << 18


def winners(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the class with the largest logit and its lead over the second.

    Args:
        logits: ``(C, H, W, D)`` with at least two classes.

    Returns:
        Labels uint8 and leads float32, both ``(H, W, D)``.
    """
    shape = logits.shape[1:]
    labels = torch.empty(shape, dtype=torch.uint8, device=logits.device)
    leads = torch.empty(shape, dtype=torch.float32, device=logits.device)
    rows = max(_CHUNK_VOXELS // (shape[1] * shape[2]), 1)
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        first, second = logits[0, part].clone(), torch.full_like(logits[0, part], -torch.inf)
        label = labels[part].zero_()
        for index in range(1, len(logits)):
            value = logits[index, part]
            second = torch.maximum(second, torch.minimum(first, value))
            label.masked_fill_(value > first, index)
            first = torch.maximum(first, value)
        leads[part] = first - second
    return labels, leads


def label_map(
    logits: torch.Tensor, labels: torch.Tensor, leads: torch.Tensor, grid: Grid
) -> np.ndarray:
    """Return argmax of the resampled softmax on the file's grid, ``(H, W, D)`` uint8.

    Args:
        logits: ``(C, H, W, D)`` on the network's grid, fewer than 255 classes.
        labels: Winners of the logits.
        leads: Leads of the winners.
        grid: Both grids.
    """
    settled = torch.where(leads > _SAFE_LEAD, labels, _OPEN)
    if grid.backward is None:
        return _stored(_settle(logits, settled), grid)
    cells = _cells(settled)
    turned = _Turned(grid, cells)
    labels = torch.empty(turned.shape, dtype=torch.uint8, device=logits.device)
    planes = max(_BLOCK_VOXELS // max(labels.shape[1] * labels.shape[2], 1), 1)
    for start in range(0, len(labels), planes):
        stop = min(start + planes, len(labels))
        block = labels[start:stop]
        turned.lookup(cells, start, stop, out=block)
        flat = block.view(-1)
        open_points = torch.nonzero(flat == _OPEN).squeeze(1)
        for some in open_points.split(_POINTS):
            if len(some):
                points = turned.coordinates(some, block.shape, start)
                flat[some] = _argmax_at(logits, points)
    stored = torch.zeros(grid.stored_shape[::-1], dtype=torch.uint8, device=logits.device)
    stored[turned.box] = labels
    return stored.permute(2, 1, 0).cpu().numpy()


def probabilities(logits: torch.Tensor, grid: Grid) -> Iterator[np.ndarray]:
    """Yield the softmax of each class on the file's grid, ``(H, W, D)`` float32, one at a time.

    Args:
        logits: ``(C, H, W, D)`` on the network's grid.
        grid: Both grids.
    """
    normaliser = torch.logsumexp(logits, dim=0)
    for logit in logits:
        probability = torch.exp(logit - normaliser)
        if grid.backward is not None:
            probability = resample(probability, grid.backward, grid.oriented_shape)
        yield grid.restore(probability).cpu().numpy()


def _settle(logits: torch.Tensor, settled: torch.Tensor) -> torch.Tensor:
    """Return the labels with the open voxels decided by the softmax itself."""
    is_open = settled == _OPEN
    if bool(is_open.any()):
        settled[is_open] = _first_largest(torch.softmax(logits[:, is_open], dim=0))
    return settled


def _stored(labels: torch.Tensor, grid: Grid) -> np.ndarray:
    return grid.restore(labels).cpu().numpy()


def _cells(settled: torch.Tensor) -> torch.Tensor:
    """Return the common label of each voxel and its next neighbours on all axes, else open."""
    cells = settled
    for axis in range(3):
        following = torch.cat(
            [cells.narrow(axis, 1, cells.shape[axis] - 1), cells.narrow(axis, -1, 1)], dim=axis
        )
        cells = torch.where(cells == following, cells, _OPEN)
    return cells


class _Turned:
    """The file's voxels, slowest axis first, as places in the network's grid.

    Only those in ``box`` count: outside it all cells are background.

    Args:
        grid: Both grids.
        cells: Common label of each voxel and its next neighbours, 0 for background.
    """

    def __init__(self, grid: Grid, cells: torch.Tensor) -> None:
        if grid.backward is None:
            raise ValueError("the grids are the same; nothing is looked up")
        self.grid = grid
        self.matrix = torch.as_tensor(grid.backward, dtype=torch.float64, device=cells.device)
        # oriented index of each stored index, by stored axis
        self.indices = [
            torch.arange(side, dtype=torch.float64, device=cells.device)
            for side in grid.stored_shape
        ]
        for axis, index in enumerate(self.indices):
            if grid.flipped[axis]:
                self.indices[axis] = index.flip(0)
        kept = [slice(0, side) for side in grid.stored_shape]
        if grid.is_diagonal:
            kept = [self._kept(cells, stored) for stored in range(3)]
        self.indices = [index[part] for index, part in zip(self.indices, kept, strict=True)]
        self.box = tuple(reversed(kept))
        self.shape = tuple(len(index) for index in reversed(self.indices))

    def _kept(self, cells: torch.Tensor, stored: int) -> slice:
        """Return the part of a stored axis that lies over cells other than background."""
        axis = self.grid.order.index(stored)
        found = cells.amax(dim=[other for other in range(3) if other != axis]).nonzero()
        if not len(found):
            return slice(0, 0)
        place = self._place(stored, axis).long()
        inside = ((place >= found[0]) & (place <= found[-1])).nonzero()
        return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)

    def _place(self, stored: int, axis: int) -> torch.Tensor:
        """Return where a stored axis lies along the network's axis, if the grid is diagonal."""
        index = self.indices[stored]
        return self._clip(self.matrix[axis, axis] * index + self.matrix[axis, 3], axis)

    def lookup(self, cells: torch.Tensor, start: int, stop: int, *, out: torch.Tensor) -> None:
        """Write the cells' labels for planes ``start`` to ``stop`` of the box's first axis."""
        if not self.grid.is_diagonal:
            size = (stop - start, *out.shape[1:])
            every = torch.arange(out.numel(), device=cells.device)
            cell = [place.long() for place in self.coordinates(every, size, start)]
            out.view(-1).copy_(cells[cell[0], cell[1], cell[2]])
            return
        axes = [self.grid.order.index(stored) for stored in (2, 1, 0)]
        turned = cells.permute(axes)
        for position, (stored, axis) in enumerate(zip((2, 1, 0), axes, strict=True)):
            place = self._place(stored, axis)
            place = place[start:stop] if stored == 2 else place
            turned = turned.index_select(position, place.long())
        out.copy_(turned)

    def coordinates(
        self, points: torch.Tensor, size: Sequence[int], start: int
    ) -> list[torch.Tensor]:
        """Return the place of voxels of a block in the network's grid, one float64 vector an axis.

        Args:
            points: Flat indices into the block.
            size: Shape of the block, the file's last axis first.
            start: First plane of the block.
        """
        row, column = size[1] * size[2], size[2]
        index = [points % column, points % row // column, points // row + start]
        oriented = [self.indices[stored][index[stored]] for stored in self.grid.order]
        places = torch.stack(oriented, dim=-1) @ self.matrix[:3, :3].T + self.matrix[:3, 3]
        return [self._clip(place, axis) for axis, place in enumerate(places.unbind(dim=-1))]

    def _clip(self, place: torch.Tensor, axis: int) -> torch.Tensor:
        return place.clamp_(0, self.grid.shape[axis] - 1)


def _argmax_at(logits: torch.Tensor, places: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the class with the largest resampled probability at places between voxels.

    Only the box around the places is turned into probabilities.
    """
    box, local = [slice(None)], []
    for axis, place in enumerate(places):
        side = logits.shape[1 + axis]
        low = int(place.min())
        high = min(int(place.max()) + 2, side)
        box.append(slice(low, high))
        local.append((2 * (place - low) + 1) / (high - low) - 1)
    probability = torch.softmax(logits[tuple(box)], dim=0).to(torch.float64)
    points = torch.stack(local[::-1], dim=-1)[None, None, None]
    sampled = functional.grid_sample(
        probability[None], points, mode="bilinear", padding_mode="border", align_corners=False
    )
    return _first_largest(sampled[0, :, 0, 0].to(torch.float32))


def _first_largest(values: torch.Tensor) -> torch.Tensor:
    """Return argmax over the first axis ``(C, N)`` as uint8, the first class on a tie."""
    return values.argmax(dim=0).to(torch.uint8)
