"""Box plots with significance marks: a cluster a structure, a box a series, a dot a case."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medseg_kit.report.figures import STYLE, series_color, series_hatch, series_marker

MAX_BRACKETS = 3
MANY_DOTS = 50
BOX_WIDTH, MANY_BOXES = 0.28, 12  # inches a box; fewer boxes get twice the width


def box_plot(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    ylabel: str,
    marks: Mapping[str, Sequence[tuple[str, str, str]]] | None = None,
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """Return box plots: one cluster a structure, one box a series, every case as a dot.

    Args:
        values: Cluster (for example the structure) -> series (site or model) -> values; NaN is left
            out.
        ylabel: What the values are, with unit.
        marks: Cluster -> (series, series, text), for example ("SegViz", "local", "**"): brackets;
            more than `MAX_BRACKETS` against one series stand as text over the other's box.
        ylim: Range of the axis before marks; automatic if None.
    """
    series = list(dict.fromkeys(itertools.chain.from_iterable(values.values())))
    with mpl.rc_context(STYLE):
        num_boxes = len(values) * len(series)
        width = BOX_WIDTH if num_boxes > MANY_BOXES else 2 * BOX_WIDTH
        figure = Figure(figsize=(max(4.0, width * num_boxes + 2.2), 3.6))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        top: dict[str, float] = {}
        for position, (cluster, groups) in enumerate(values.items()):
            top[cluster] = _draw_cluster(axes, position, groups, series)
        axes.set_xticks(range(len(values)), list(values))
        axes.set_ylabel(ylabel)
        if ylim is not None:
            axes.set_ylim(*ylim)
            axes.set_yticks([tick for tick in axes.get_yticks() if ylim[0] <= tick <= ylim[1]])
        for position, (cluster, pairs) in enumerate((c, (marks or {}).get(c, ())) for c in values):
            if len(pairs) > MAX_BRACKETS and len({first for first, _, _ in pairs}) == 1:
                _write_marks(axes, position, pairs, (series, values[cluster]))
            else:
                _draw_marks(axes, position, pairs, (series, top[cluster]))
        if len(series) > 1:
            handles = [Patch(label=name, **_face(index)) for index, name in enumerate(series)]
            axes.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        figure.tight_layout()
    return figure


def _offset(series: Sequence[str], name: str) -> float:
    return (series.index(name) - (len(series) - 1) / 2) * 0.8 / len(series)


def _face(index: int) -> dict[str, Any]:
    """Return how the box of a series is filled."""
    color = series_color(index)
    return {"facecolor": (color, 0.35), "edgecolor": color, "hatch": series_hatch(index)}


def _draw_cluster(
    axes: Any, position: int, groups: Mapping[str, Sequence[float]], series: Sequence[str]
) -> float:
    """Draw one cluster's boxes and dots; return the highest value."""
    highest = 0.0
    jitter = np.random.default_rng(0)
    for name, raw in groups.items():
        data = np.asarray(raw, dtype=float)
        data = data[~np.isnan(data)]
        if data.size == 0:
            continue
        index = series.index(name)
        x, width, color = position + _offset(series, name), 0.66 / len(series), series_color(index)
        axes.boxplot(
            [data],
            positions=[x],
            widths=width,
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            boxprops=_face(index),
            medianprops={"color": color, "linewidth": 2},
            whiskerprops={"color": color},
            capprops={"color": color},
        )
        dots = x + jitter.uniform(-0.18, 0.18, data.size) * width
        size, alpha = (9, 0.7) if data.size <= MANY_DOTS else (5, 0.35)
        axes.scatter(
            dots,
            data,
            s=size,
            marker=series_marker(index),
            color=color,
            alpha=alpha,
            linewidths=0,
            zorder=3,
        )
        highest = max(highest, float(data.max()))
    return highest


def _write_marks(
    axes: Any,
    position: int,
    pairs: Sequence[tuple[str, str, str]],
    where: tuple[Sequence[str], Mapping[str, Sequence[float]]],
) -> None:
    """Write each mark over the box of the second series of its pair."""
    series, groups = where
    for _, name, text in pairs:
        x, y = position + _offset(series, name), float(np.nanmax(groups[name]))
        axes.annotate(text, (x, y), (0, 3), textcoords="offset points", ha="center", fontsize=7)


def _draw_marks(
    axes: Any,
    position: int,
    pairs: Sequence[tuple[str, str, str]],
    where: tuple[Sequence[str], float],
) -> None:
    series, top = where
    low, high = axes.get_ylim()
    step = 0.06 * (high - low)
    for level, (first, second, text) in enumerate(pair for pair in pairs if pair[2]):
        y = top + step * (level + 0.6)
        left, right = (position + _offset(series, name) for name in (first, second))
        axes.plot(
            [left, left, right, right], [y - step / 4, y, y, y - step / 4], color="#3e4c59", lw=1
        )
        axes.text((left + right) / 2, y, text, ha="center", va="bottom", fontsize=8)
        axes.set_ylim(low, max(axes.get_ylim()[1], y + step))
