"""The tables of a study's page, as a reader wants them: with units, rounded, a row a method.

The second line of a cell is set small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medseg_kit.report.comparison import MEAN, text, with_interval
from medseg_kit.report.figures import significance_mark

Row = Mapping[str, Any]
NO_VALUE = "\u2013"
COST_TITLES: dict[str, tuple[str, float, int]] = {
    "parameters": ("parameters (M)", 1e6, 2),
    "gflops": ("GFLOPs", 1, 2),
    "seconds_per_step": ("seconds a step", 1, 3),
    "seconds_per_case": ("seconds a case", 1, 2),
    "peak_memory_gib": ("memory (GiB)", 1, 2),
    "peak_gpu_memory_gib": ("GPU memory (GiB)", 1, 2),
    "registration_seconds": ("registration (s)", 1, 0),
}
"""Column of the cost table -> title with unit, divisor, digits."""


def difference_rows(tests: Sequence[Row]) -> list[dict[str, str]]:
    """Return a row a configuration: its paired difference to the reference, for each structure.

    Args:
        tests: From `medseg_kit.report.comparison.paired_tests`, of Dice.
    """
    rows: dict[str, dict[str, str]] = {}
    labels = _labels(tests)
    for test in tests:
        row = rows.setdefault(
            test["model"], {"configuration": test["model"]} | dict.fromkeys(labels, NO_VALUE)
        )
        if test["difference"] is not None:
            row[test["label"]] = _difference(test)
    return list(rows.values())


def distance_rows(table: Sequence[Row]) -> tuple[str, list[dict[str, str]]]:
    """Return the unit and a row a configuration: its mean HD95 with interval, for each structure.

    Args:
        table: From `medseg_kit.report.comparison.comparison_table`.
    """
    in_mm = any(row["hd95_mm_mean"] is not None for row in table)
    measure = "hd95_mm" if in_mm else "hd95_vox"
    rows: dict[str, dict[str, str]] = {}
    labels = _labels(table)
    for row in table:
        cells = rows.setdefault(
            row["model"], {"configuration": row["model"]} | dict.fromkeys(labels, NO_VALUE)
        )
        mean, low, high = (row[f"{measure}_{part}"] for part in ("mean", "low", "high"))
        if mean is not None:
            cells[row["label"]] = with_interval(mean, low, high, digits=1, gap="\n")
    return "mm" if in_mm else "voxels", list(rows.values())


def site_rows(table: Sequence[Row]) -> list[dict[str, str]]:
    """Return a row a configuration and site: its Dice with interval, for each structure.

    Args:
        table: From `medseg_kit.report.comparison.comparison_by_site`.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    labels = _labels(table)
    for row in table:
        cells = rows.setdefault(
            (row["model"], row["site"]),
            {"configuration": row["model"], "site": row["site"]} | dict.fromkeys(labels, NO_VALUE),
        )
        if row["dice_mean"] is not None:
            interval = (row[f"dice_{part}"] for part in ("mean", "low", "high"))
            cells[row["label"]] = with_interval(*interval, gap="\n")
    order = list(dict.fromkeys(model for model, _ in rows))
    return [rows[key] for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1]))]


def cost_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the cost table with titles and units; columns that nobody has are left out.

    Args:
        rows: From `medseg_kit.report.cost.cost_table`.
    """
    shown = {
        name: title
        for name, title in COST_TITLES.items()
        if any(row[name] is not None for row in rows)
    }
    return [
        {"method": row["method"], "hardware": row["hardware"]}
        | {"runs": NO_VALUE if row["runs"] is None else str(row["runs"])}
        | {
            title: NO_VALUE if row[name] is None else f"{row[name] / divisor:,.{digits}f}"
            for name, (title, divisor, digits) in shown.items()
        }
        for row in rows
    ]


def printed_rows(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return the papers' numbers beside ours: mean of all structures, budgets that were run.

    Where papers have no mean, or no configuration was run, all rows come back.

    Args:
        rows: From `medseg_kit.report.settings.printed_beside`.
    """
    means = [row for row in rows if row["label"] == MEAN] or list(rows)
    budgets = {row["label_budget"] for row in means if row["dice_mean"] is not None}
    means = [row for row in means if row["label_budget"] in budgets] or means
    several = len({row["label"] for row in means}) > 1
    by_site = any(row["site"] is not None for row in means)
    with_distance = any(row["printed_hd95"] is not None for row in means)
    titled = []
    for row in sorted(means, key=_ours_first):
        cells = {"configuration": row["model"]}
        cells |= {"site": row["site"] or "all"} if by_site else {}
        cells |= {"structure": row["label"]} if several else {}
        cells |= {"Dice, printed": text(row["printed_dice"]), "Dice, ours": _our_dice(row)}
        if with_distance:
            cells |= {
                "HD95, printed": text(row["printed_hd95"], 1),
                "HD95, ours (voxels)": text(row["hd95_vox_mean"], 1),
                "HD, ours (voxels)": text(row["hd_vox_mean"], 1),
            }
        titled.append({**cells, "source": row["source"]})
    return titled


def _ours_first(row: Row) -> tuple[bool, float]:
    return row["dice_mean"] is None, row["label_budget"] or float("inf")


def _our_dice(row: Row) -> str:
    if row["dice_mean"] is None:
        return "not run"
    return with_interval(row["dice_mean"], row["dice_low"], row["dice_high"], gap="\n")


def _labels(rows: Sequence[Row]) -> list[str]:
    """Return the structures, their mean first: wide tables are cut at the right."""
    labels = dict.fromkeys(row["label"] for row in rows)
    return sorted(labels, key=lambda label: label != MEAN)


def _difference(test: Row) -> str:
    mark = significance_mark(test["wilcoxon_p_holm"])
    low, high = test["difference_low"], test["difference_high"]
    interval = "" if low is None else f"\n{low:+.3f} to {high:+.3f}"
    return f"{test['difference']:+.3f} {mark}{interval}".replace("-", "\u2212")
