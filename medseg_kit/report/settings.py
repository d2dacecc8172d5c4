"""Dice over a setting of a study: label-efficiency curves and sweeps, with the papers' numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from medseg_kit.report.comparison import MEAN, comparison_table
from medseg_kit.report.figures import Interval, interval_plot

Record = Mapping[str, Any]


def label_efficiency(records: Sequence[Record], *, printed: Sequence[Record] = ()) -> Figure | None:
    """Return Dice over the number of labelled patients, a line a method; None for one budget.

    Args:
        records: Records of a study.
        printed: Numbers of papers (`method`, `label_budget`, `label`, `dice`); drawn hollow.
    """
    budgets = {record["method"] + str(record["label_budget"]): record for record in records}
    named = {f"{r['method']}, {r['label_budget']} labels": r for r in budgets.values()}
    lines: dict[str, list[Interval]] = {}
    for row in _means(records):
        record = named.get(row["model"])
        if record is not None and record["label_budget"] is not None:
            lines.setdefault(record["method"], []).append(_point(record["label_budget"], row))
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    levels = {
        name: [
            (float(row["label_budget"]), float(row["dice"]))
            for row in printed
            if row["method"] == name and row["label"] == MEAN and row.get("label_budget")
        ]
        for name in lines
    }
    return interval_plot(lines, xlabel="labelled patients", ylabel="mean Dice", hollow=levels)


def sweep_curve(records: Sequence[Record], sweep: Mapping[str, Any]) -> Figure | None:
    """Return Dice over the setting that a study sweeps, a line a structure; None without a sweep.

    Args:
        records: Records of a study.
        sweep: `name` of the setting and `values`, its value in each method.
    """
    if not sweep:
        return None
    lines: dict[str, list[Interval]] = {}
    for row in comparison_table(records):
        method = row["model"].partition(", ")[0]
        if method in sweep["values"]:
            point = _point(float(sweep["values"][method]), row)
            lines.setdefault(row["label"], []).append(point)
    return interval_plot(lines, xlabel=sweep["name"], ylabel="Dice") if lines else None


def printed_beside(records: Sequence[Record], printed: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the papers' numbers with ours of the same method, budget and structure beside them.

    Rows that nobody re-ran keep `dice_mean` None: they are printed, not measured.

    Args:
        records: Records of a study.
        printed: See `label_efficiency`; each row also names its `source`.
    """
    ours = {(row["model"], row["label"]): row for row in comparison_table(records)}
    rows = []
    for row in printed:
        budget = row.get("label_budget")
        model = row["method"] if budget is None else f"{row['method']}, {budget} labels"
        found = ours.get((model, row["label"]), {})
        rows.append(
            {
                "model": model,
                "label": row["label"],
                "printed_dice": row["dice"],
                "source": row["source"],
                "dice_mean": found.get("dice_mean"),
                "dice_low": found.get("dice_low"),
                "dice_high": found.get("dice_high"),
            }
        )
    return rows


def _means(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the rows of the mean of all structures, or those of the only structure."""
    table = comparison_table(records)
    labels = {row["label"] for row in table}
    return [row for row in table if row["label"] == MEAN or len(labels) == 1]


def _point(x: float, row: Mapping[str, Any]) -> Interval:
    low, high = row["dice_low"], row["dice_high"]
    mean = float(row["dice_mean"])
    return float(x), mean, mean if low is None else low, mean if high is None else high
