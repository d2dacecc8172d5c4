"""Box plots with significance marks, curves and intervals, drawn without a display."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medseg_kit.files import write_bytes, write_text

# Okabe and Ito's palette, distinguishable with colour-blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa5b1",
    "grid.color": "#e4e7eb",
    "svg.fonttype": "none",
    "svg.hashsalt": "medseg_kit",
}
Interval = tuple[float, float, float, float]
"""One point of a line with error bars: x, mean, low, high."""
SVG_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


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
        marks: Cluster -> (series, series, text) brackets, for example ("SegViz", "local", "**").
        ylim: Range of the axis before marks; automatic if None.
    """
    series = list(dict.fromkeys(itertools.chain.from_iterable(values.values())))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(4.0, 0.55 * len(values) * len(series) + 2.2), 3.6))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        top: dict[str, float] = {}
        for position, (cluster, groups) in enumerate(values.items()):
            top[cluster] = _draw_cluster(axes, position, groups, series)
        axes.set_xticks(range(len(values)), list(values))
        axes.set_ylabel(ylabel)
        if ylim is not None:
            axes.set_ylim(*ylim)
        for position, (cluster, pairs) in enumerate((c, (marks or {}).get(c, ())) for c in values):
            _draw_marks(axes, position, pairs, (series, top[cluster]))
        if len(series) > 1:
            handles = [Patch(color=_color(i), label=name) for i, name in enumerate(series)]
            axes.legend(handles=handles, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        figure.tight_layout()
    return figure


def curve_plot(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, xlabel: str, ylabel: str
) -> Figure:
    """Return small multiples of curves that share their axes.

    Args:
        panels: Panel title -> series -> (x, y) points; a single point is drawn as a dashed level.
        xlabel: What x is, for example "round".
        ylabel: What y is.
    """
    columns = min(3, max(1, len(panels)))
    rows = -(-len(panels) // columns) or 1
    series = list(dict.fromkeys(itertools.chain.from_iterable(panels.values())))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * columns + 0.4, 2.6 * rows + 0.5))
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
            for name, points in lines.items():
                _draw_curve(axes, name, points, color=_color(series.index(name)))
            axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
            axes.set_xlabel(xlabel)
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel)
        if len(series) > 1:
            handles = [Patch(color=_color(i), label=name) for i, name in enumerate(series)]
            figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=4)
        figure.set_layout_engine("constrained")
        figure.canvas.draw()
    return figure


def interval_plot(
    lines: Mapping[str, Sequence[Interval]],
    *,
    xlabel: str,
    ylabel: str,
    hollow: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Figure:
    """Return lines with error bars over a setting; its values are spaced evenly, in their order.

    Args:
        lines: Series -> points (x, mean, low, high).
        xlabel: The setting.
        ylabel: What the values are.
        hollow: Series -> (x, value) to draw as hollow marks, for example a paper's numbers.
    """
    points = [*itertools.chain.from_iterable(lines.values())]
    marks = [*itertools.chain.from_iterable((hollow or {}).values())]
    settings = sorted({point[0] for point in (*points, *marks)})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for index, (name, found) in enumerate(lines.items()):
            ordered = sorted(found)
            shift = 0.06 * (index - (len(lines) - 1) / 2)
            x = [settings.index(point[0]) + shift for point in ordered]
            mean = np.array([point[1] for point in ordered])
            spread = [mean - [p[2] for p in ordered], [p[3] for p in ordered] - mean]
            axes.errorbar(
                x, mean, yerr=spread, color=_color(index), marker="o", ms=4, capsize=2, label=name
            )
            for setting, value in (hollow or {}).get(name, ()):
                place = settings.index(setting) + shift
                axes.scatter([place], [value], s=36, facecolors="none", edgecolors=_color(index))
        axes.set_xticks(range(len(settings)), [f"{setting:g}" for setting in settings])
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        figure.tight_layout()
    return figure


def significance_mark(p_value: float | None) -> str:
    """Return "***" below 0.001, "**" below 0.01, "*" below 0.05, else "n.s." ("" without a test).

    Args:
        p_value: Corrected p value in [0, 1], None when there was no test.
    """
    if p_value is None:
        return ""
    return next(
        (mark for limit, mark in ((1e-3, "***"), (1e-2, "**"), (5e-2, "*")) if p_value < limit),
        "n.s.",
    )


def svg_text(figure: Figure) -> str:
    """Return the figure as an `<svg>` element for HTML, without prolog and metadata.

    Args:
        figure: Figure to draw.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata=SVG_METADATA)
    text = buffer.getvalue()
    return re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.svg and `stem`.png and return their paths.

    Args:
        figure: Figure to draw.
        stem: Path without ending.
    """
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    write_text(svg, svg_text(figure))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_bytes(png, buffer.getvalue())
    return [svg, png]


def _color(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _draw_curve(axes: Any, name: str, points: Sequence[tuple[float, float]], *, color: str) -> None:
    """Draw a line through the points; a single point is a level to compare with."""
    if len(points) == 1:
        axes.axhline(points[0][1], color=color, ls="--", lw=1.4, label=name)
        return
    x, y = np.array(sorted(points), dtype=float).reshape(-1, 2).T
    axes.plot(x, y, color=color, marker="o" if len(points) < 25 else "", ms=3, lw=1.6, label=name)


def _offset(series: Sequence[str], name: str) -> float:
    return (series.index(name) - (len(series) - 1) / 2) * 0.8 / len(series)


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
        x, width, color = (
            position + _offset(series, name),
            0.66 / len(series),
            _color(series.index(name)),
        )
        axes.boxplot(
            [data],
            positions=[x],
            widths=width,
            showfliers=False,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": color, "alpha": 0.35, "edgecolor": color},
            medianprops={"color": color, "linewidth": 2},
            whiskerprops={"color": color},
            capprops={"color": color},
        )
        dots = x + jitter.uniform(-0.18, 0.18, data.size) * width
        axes.scatter(dots, data, s=9, color=color, alpha=0.7, linewidths=0, zorder=3)
        highest = max(highest, float(data.max()))
    return highest


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
