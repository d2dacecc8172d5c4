"""Qualitative grids: one row a case, columns image, ground truth and each method's segmentation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from medseg_kit.report.figures import PALETTE, STYLE, legend_below
from medseg_kit.report.overlays import shown_slices, to_unit

if TYPE_CHECKING:
    import numpy.typing as npt

OPACITY = 0.55


def qualitative_grid(rows: Sequence[Mapping[str, Any]], *, organs: Sequence[str]) -> bytes:
    """Return a PNG with a row a case: the slice with most ground truth, and its label maps.

    Args:
        rows: `title`, `image` (H, W, D), `affine` and `maps`: column title -> label map of the
            image's shape, the ground truth first; every row has the same columns.
        organs: Names of the values 1, 2, ...

    Raises:
        ValueError: If there is no row, or rows differ in their columns.
    """
    if not rows or len({tuple(row["maps"]) for row in rows}) != 1:
        raise ValueError("a grid needs at least one row, and the same columns in all rows")
    columns = list(rows[0]["maps"])
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        size = (1.7 * (len(columns) + 1), 1.8 * len(rows) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
        for axes, row in zip(grid, rows, strict=True):
            for cell, picture in zip(axes, _pictures(row, len(organs)), strict=True):
                cell.imshow(picture, interpolation="nearest")
                cell.set_xticks([], [])
                cell.set_yticks([], [])
            axes[0].set_ylabel(row["title"], fontsize=8)
        for cell, title in zip(grid[0], ["image", *columns], strict=True):
            cell.set_title(title, fontsize=8)
        handles = [
            mpl.patches.Patch(color=organ_color(value), label=name)
            for value, name in enumerate(organs, 1)
        ]
        legend_below(figure, handles)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _pictures(row: Mapping[str, Any], num_organs: int) -> list[npt.NDArray[np.float64]]:
    maps = list(row["maps"].values())
    arrays = [np.asarray(array, dtype=float) for array in (row["image"], *maps)]
    (image, *slices), _ = shown_slices(arrays, row["affine"], foreground=arrays[1] > 0)
    grey = np.repeat(to_unit(image, None)[..., None], 3, axis=-1)
    pictures = [grey]
    for labels in slices:
        picture = grey.copy()
        for value in range(1, num_organs + 1):
            mask = labels == value
            picture[mask] = (1 - OPACITY) * picture[mask] + OPACITY * np.array(organ_color(value))
        pictures.append(picture)
    return pictures


def organ_color(value: int) -> tuple[float, float, float]:
    """Return the colour of label value 1, 2, ... in all pictures."""
    return to_rgb(PALETTE[(value - 1) % len(PALETTE)])
