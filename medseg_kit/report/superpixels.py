"""Pictures of one-shot training: superpixels, the two views of an episode, and an edge map."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from skimage.segmentation import mark_boundaries
from tqdm import tqdm

from medseg_kit.data.episodes import Distortion, SuperpixelSlices
from medseg_kit.files import write_bytes
from medseg_kit.losses.fused_dice import edge_map
from medseg_kit.report.figures import STYLE

if TYPE_CHECKING:
    import numpy.typing as npt

COLUMNS = ("slice", "superpixels", "support", "query", "edges of the query's mask")
NUM_ROWS = 4
_YELLOW = (1.0, 0.85, 0.1)


def write_pictures(dataset: SuperpixelSlices, distortion: Distortion | None, folder: Path) -> None:
    """Write a picture of each training scan: four of its slices, each with an episode.

    It is called as the scan's superpixels are.

    Args:
        dataset: The slices and their superpixels.
        distortion: Makes the two views of an episode; both are the slice itself if None.
        folder: Where the pictures go.
    """
    volumes = dataset.store.volume[dataset.usable]
    for number, case in enumerate(tqdm(dataset.cases, unit="scan", desc="pictures")):
        own = (volumes == number).nonzero()[:, 0]
        if len(own):
            rows = own[torch.linspace(0, len(own) - 1, NUM_ROWS + 2).long()[1:-1]]
            name = dataset.files.path(case).name.removesuffix(".nii.gz")
            write_bytes(folder / f"{name}.png", episode_picture(dataset, distortion, rows))


def episode_picture(
    dataset: SuperpixelSlices,
    distortion: Distortion | None,
    indices: torch.Tensor,
    *,
    seed: int = 0,
) -> bytes:
    """Return a PNG with a row a slice and the columns `COLUMNS`.

    Args:
        dataset: The slices and their superpixels.
        distortion: As `write_pictures`.
        indices: Positions among the usable slices, ``(R,)``.
        seed: Decides the superpixels and the distortions.
    """
    generator = torch.Generator().manual_seed(seed)
    image, mask = dataset.draw(indices, generator)
    views = [
        (image, mask) if distortion is None else distortion(image, mask, generator=generator)
        for _ in range(2)
    ]
    pieces = dataset.pieces[dataset.usable[indices]]
    edges = edge_map(views[1][1][:, 0].float())
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        size = (1.8 * len(COLUMNS), 1.8 * len(indices) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(indices), len(COLUMNS), squeeze=False)
        for row, axes in enumerate(grid):
            cells = [
                _gray(image[row]),
                mark_boundaries(_gray(image[row]), pieces[row].numpy(), color=_YELLOW),
                *(_overlay(_gray(view[row]), inside[row]) for view, inside in views),
                edges[row].expand(3, -1, -1).movedim(0, -1).numpy(),
            ]
            for cell, picture, title in zip(axes, cells, COLUMNS, strict=True):
                # patient right on the left, front at the top
                cell.imshow(picture.swapaxes(0, 1)[::-1, ::-1], interpolation="nearest")
                cell.set_axis_off()
                if row == 0:
                    cell.set_title(title, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _gray(image: torch.Tensor) -> npt.NDArray[np.float32]:
    """Return a slice ``(1, H, W)`` as RGB in [0, 1]."""
    low, high = image.min(), image.max()
    unit = (image - low) / (high - low).clamp_min(1e-6)
    rgb: npt.NDArray[np.float32] = unit.expand(3, -1, -1).movedim(0, -1).numpy()
    return rgb


def _overlay(picture: npt.NDArray[np.float32], mask: torch.Tensor) -> npt.NDArray[np.float32]:
    share = 0.5 * mask[0].float().numpy()[:, :, None]
    tinted = (1 - share) * picture + share * np.array(_YELLOW)
    rgb: npt.NDArray[np.float32] = tinted.astype(np.float32)
    return rgb
