"""The files of one evaluation: tables of cases and summaries, box plots per label and site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_kit.files import write_json, write_text
from medseg_kit.metrics.table import CaseRecord, mean_over_labels, summarise, to_csv
from medseg_kit.report.box_plots import box_plot
from medseg_kit.report.figures import save_figure
from medseg_kit.typing import PathLike

AXIS_TITLES = {"dice": "Dice", "hd95_vox": "HD95 (voxels)", "hd95_mm": "HD95 (mm)"}


def write_evaluation(
    out: PathLike,
    records: Sequence[CaseRecord],
    *,
    policy: str,
    not_predicted: Sequence[str] = (),
    not_scored: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write the tables and box plots of an evaluation; return the content of summary.json.

    The files are cases.csv, summary.csv, summary.json and `<measure>.svg/.png`.

    Args:
        out: Folder, made when missing.
        records: One row per case and structure, at least one.
        policy: Empty-mask policy that made the scores; recorded.
        not_predicted: Cases without a prediction; recorded, and in no mean.
        not_scored: Cases whose prediction could not be compared, and why; recorded, in no mean.

    Raises:
        ValueError: If there is no record.
    """
    if not records:
        raise ValueError("there is nothing to write: no case was scored")
    folder = Path(out)
    summary = {
        **evaluation_summary(records, policy=policy),
        "not_predicted": list(not_predicted),
        "not_scored": dict(not_scored or {}),
    }
    write_text(folder / "cases.csv", to_csv([record.to_dict() for record in records]))
    rows = [{"site": "all", **row} for row in [*summary["by_label"], summary["mean"]]]
    by_site = [{"site": row["site"], **row} for row in summary["by_label_and_site"] if row["site"]]
    write_text(folder / "summary.csv", to_csv(rows + by_site))
    write_json(folder / "summary.json", summary)
    for measure in ("dice", "hd95_vox", "hd95_mm"):
        if summary["mean"][f"{measure}_mean"] is not None:
            write_box_plots(folder, records, measure)
    return summary


def evaluation_summary(records: Sequence[CaseRecord], *, policy: str) -> dict[str, Any]:
    """Return counts, means and SDs per label, per label and site, and over the labels.

    Args:
        records: One row per case and structure.
        policy: Empty-mask policy that made the scores.
    """
    by_label = summarise(records, by=("label",))
    return {
        "schema": 1,
        "policy": policy,
        "num_cases": len({record.case for record in records}),
        "num_subjects": len({record.subject for record in records}),
        "mean": mean_over_labels(by_label),
        "by_label": by_label,
        "by_label_and_site": summarise(records, by=("label", "site")),
    }


def write_box_plots(folder: Path, records: Sequence[CaseRecord], measure: str) -> list[Path]:
    """Write `<measure>.svg` and `.png`: one cluster a label, one box a site.

    Args:
        folder: Where the figures go.
        records: One row per case and structure.
        measure: Column to draw, a key of `AXIS_TITLES`.
    """
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        values[record.label][record.site or "all cases"].append(getattr(record, measure))
    limits = (-0.02, 1.02) if measure == "dice" else None
    figure = box_plot(values, ylabel=AXIS_TITLES[measure], ylim=limits)
    return save_figure(figure, folder / measure)


def format_summary(summary: Mapping[str, Any]) -> str:
    """Return the summary as an aligned text table.

    Args:
        summary: Content of summary.json.
    """
    titles = "".join(f"{title:>16}" for title in AXIS_TITLES.values())
    lines = [f"{'label':<16}{'cases':>6}{titles}{'missed':>8}{'spurious':>10}"]
    for row in [*summary["by_label"], summary["mean"]]:
        cells = [mean_sd(row, measure) for measure in AXIS_TITLES]
        counts = f"{row['n_missed']:>8}{row['n_spurious']:>10}"
        lines.append(
            f"{row['label']:<16}{row['n']:>6}" + "".join(f"{c:>16}" for c in cells) + counts
        )
    lines.append(
        f"policy: {summary['policy']}; "
        f"undefined distances left out: {summary['mean']['n_hd_undefined']}"
    )
    return "\n".join(lines)


def mean_sd(row: Mapping[str, Any], measure: str) -> str:
    """Return "mean ± SD" of a summary row, "-" where there is none."""
    mean, spread = row[f"{measure}_mean"], row[f"{measure}_sd"]
    digits = 3 if measure == "dice" else 2
    if mean is None:
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
