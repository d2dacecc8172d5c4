"""Curves and intervals, drawn without a display, and what all figures share."""

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
from matplotlib.lines import Line2D

from medseg_kit.files import write_bytes, write_text

# Okabe and Ito's palette, distinguishable with colour-blindness.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
MARKERS, HATCHES = ("o", "s", "^", "D"), ("", "///", "...", "xxx")  # once the colours are used up
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
MAX_WIDE_PANELS = 6
SVG_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def curve_plot(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], *, xlabel: str, ylabel: str
) -> Figure:
    """Return small multiples of curves that share their axes.

    Args:
        panels: Panel title -> series -> (x, y) points; a single point is drawn as a dashed level.
        xlabel: What x is, for example "round".
        ylabel: What y is.
    """
    columns = min(3 if len(panels) <= MAX_WIDE_PANELS else 4, max(1, len(panels)))
    rows = -(-len(panels) // columns) or 1
    series = list(dict.fromkeys(itertools.chain.from_iterable(panels.values())))
    with mpl.rc_context(STYLE):
        size = (3.6, 2.6) if columns <= 3 else (2.8, 2.0)
        figure = Figure(figsize=(size[0] * columns + 0.4, size[1] * rows + 0.7))
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
            for name, points in lines.items():
                _draw_curve(axes, name, points, index=series.index(name))
            axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel)
        for axes in list(grid.flat)[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel(xlabel)
            axes.tick_params(labelbottom=True)
        if len(series) > 1:
            handles = [
                Line2D(
                    [],
                    [],
                    color=series_color(i),
                    ls=_line_style(i),
                    marker=series_marker(i),
                    ms=3,
                    label=name,
                )
                for i, name in enumerate(series)
            ]
            legend_below(figure, handles)
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
        figure = Figure(figsize=(8.0, 4.4))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for index, (name, found) in enumerate(lines.items()):
            ordered, color = sorted(found), series_color(index)
            shift = 0.06 * (index - (len(lines) - 1) / 2)
            x = [settings.index(point[0]) + shift for point in ordered]
            mean = np.array([point[1] for point in ordered])
            spread = [mean - [p[2] for p in ordered], [p[3] for p in ordered] - mean]
            axes.errorbar(
                x,
                mean,
                yerr=spread,
                color=color,
                ls=_line_style(index),
                marker=series_marker(index),
                ms=4,
                capsize=2,
                label=name,
            )
            for setting, value in (hollow or {}).get(name, ()):
                place = settings.index(setting) + shift
                axes.scatter(
                    [place],
                    [value],
                    s=36,
                    marker=series_marker(index),
                    facecolors="none",
                    edgecolors=color,
                )
        axes.set_xticks(range(len(settings)), [f"{setting:g}" for setting in settings])
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        figure.tight_layout()
    return figure


def legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    """Add a legend under a figure of constrained layout, in as many columns as fit its width.

    Args:
        figure: The figure.
        handles: Labelled lines or patches.
    """
    widest = max(len(handle.get_label()) for handle in handles)
    fitting = int(figure.get_figwidth() / (0.085 * widest + 0.6))  # inches at the style's font size
    columns = max(1, min(5, fitting))
    figure.legend(handles=handles, frameon=False, loc="outside lower center", ncols=columns)


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
    write_bytes(png, png_bytes(figure))
    return [svg, png]


def png_bytes(figure: Figure, *, dpi: int = 150) -> bytes:
    """Return the figure as a PNG.

    Args:
        figure: Figure to draw.
        dpi: Pixels an inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def series_color(index: int) -> str:
    """Return the colour of the series at an index, the same in all figures."""
    return PALETTE[index % len(PALETTE)]


def series_marker(index: int) -> str:
    """Return the mark of the series at an index; with the colour it is that series' alone."""
    return MARKERS[index // len(PALETTE) % len(MARKERS)]


def series_hatch(index: int) -> str:
    """Return the hatch of the box at an index; with the colour it is that series' alone."""
    return HATCHES[index // len(PALETTE) % len(HATCHES)]


def _line_style(index: int) -> str:
    """Return a style that keeps lines apart once the colours are used up."""
    return ("-", "--", ":")[index // len(PALETTE) % 3]


def _draw_curve(axes: Any, name: str, points: Sequence[tuple[float, float]], *, index: int) -> None:
    """Draw a line through the points; a single point is a level to compare with."""
    color = series_color(index)
    if len(points) == 1:
        axes.axhline(points[0][1], color=color, ls="--", lw=1.4, label=name)
        return
    x, y = np.array(sorted(points), dtype=float).reshape(-1, 2).T
    marker, style = series_marker(index) if len(points) < 25 else "", _line_style(index)
    axes.plot(x, y, color=color, ls=style, marker=marker, ms=3, lw=1.6, label=name)
