"""Dice over a setting of a study: label-efficiency curves and sweeps, with the papers' numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from medseg_kit.report.comparison import (
    MEAN,
    comparison_by_site,
    comparison_table,
    configuration_name,
)
from medseg_kit.report.figures import Interval, interval_plot

Record = Mapping[str, Any]


def budget_name(budget: int | None) -> str:
    """Return the name of a label budget."""
    if budget is None:
        return "all labels"
    return f"{budget} labelled patient{'s' if budget > 1 else ''}"


def label_efficiency(records: Sequence[Record], *, printed: Sequence[Record] = ()) -> Figure | None:
    """Return Dice over the number of labelled patients, a line a method; None for one budget.

    Args:
        records: Records of a study.
        printed: Numbers of papers (`method`, `label_budget`, `label`, `dice`); drawn hollow where
            the study has the budget.
    """
    lines: dict[str, list[Interval]] = {}
    for row in _means(records):
        if row["label_budget"] is not None:
            lines.setdefault(row["method"], []).append(_point(row["label_budget"], row))
    if max((len(points) for points in lines.values()), default=0) < 2:
        return None
    ran = {point[0] for points in lines.values() for point in points}
    levels = {
        name: [
            (float(row["label_budget"]), float(row["dice"]))
            for row in printed
            if row["method"] == name
            and row["label"] == MEAN
            and row.get("label_budget") in ran
            and "site" not in row
        ]
        for name in lines
    }
    return interval_plot(lines, xlabel="labelled patients", ylabel="mean Dice", hollow=levels)


def sweep_curve(records: Sequence[Record], sweep: Mapping[str, Any]) -> Figure | None:
    """Return Dice over the setting that a study sweeps; None without a sweep.

    A line is a structure; with several label budgets, the mean of all structures at one of them.

    Args:
        records: Records of a study.
        sweep: `name` of the setting and `values`, its value in each method.
    """
    if not sweep:
        return None
    table = [row for row in comparison_table(records) if row["method"] in sweep["values"]]
    budgets = {row["label_budget"] for row in table}
    if len(budgets) > 1:
        table = [row for row in table if row["label"] == MEAN] or table
    lines: dict[str, list[Interval]] = {}
    for row in table:
        name = row["label"] if len(budgets) == 1 else budget_name(row["label_budget"])
        lines.setdefault(name, []).append(_point(float(sweep["values"][row["method"]]), row))
    return interval_plot(lines, xlabel=sweep["name"], ylabel="Dice") if lines else None


def random_starts(records: Sequence[Record]) -> list[str]:
    """Return the methods of which a network takes pre-trained weights and was not given any."""
    return list(
        dict.fromkeys(record["method"] for record in records if _is_random(record.get("options")))
    )


def _is_random(options: Any) -> bool:
    if isinstance(options, dict):
        missing = "pretrained_path" in options and options["pretrained_path"] is None
        return missing or any(map(_is_random, options.values()))
    return isinstance(options, list) and any(map(_is_random, options))


def printed_beside(records: Sequence[Record], printed: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the papers' numbers with ours of the same method, budget and structure beside them.

    Rows that nobody re-ran keep `dice_mean` None: they are printed, not measured.

    Args:
        records: Records of a study.
        printed: See `label_efficiency`; each row also names its `source`, and perhaps a `site`: it
            stands beside ours of that site's test cases alone.
    """
    table = comparison_table(records)
    sites = {row["site"] for record in records for row in record["cases"]}
    by_site = comparison_by_site(records) or [{**row, "site": min(sites)} for row in table if sites]
    table = [*table, *by_site]
    ours = {(r["method"], r["label_budget"], r.get("site"), r["label"]): r for r in table}
    rows = []
    for row in printed:
        budget, site = row.get("label_budget"), row.get("site")
        found = ours.get((row["method"], budget, site, row["label"]), {})
        rows.append(
            {"model": configuration_name({"method": row["method"], "label_budget": budget})}
            | {
                "site": site,
                "label_budget": budget,
                "label": row["label"],
                "source": row["source"],
                "printed_dice": row["dice"],
            }
            | {name: found.get(name) for name in ("dice_mean", "dice_low", "dice_high")}
            | {"printed_hd95": row.get("hd95")}
            | {name: found.get(name) for name in ("hd95_vox_mean", "hd_vox_mean")}
        )
    return rows


def _means(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the rows of the mean of all structures, or those of the only structure."""
    table = comparison_table(records)
    labels = {row["label"] for row in table}
    means = [row for row in table if row["label"] == MEAN or len(labels) == 1]
    return [row for row in means if row["dice_mean"] is not None]


def _point(x: float, row: Mapping[str, Any]) -> Interval:
    low, high = row["dice_low"], row["dice_high"]
    mean = float(row["dice_mean"])
    return float(x), mean, mean if low is None else low, mean if high is None else high
