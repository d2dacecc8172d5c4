"""The report of a study from its records alone: tables, figures, overlap pictures and a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medseg_kit.files import write_bytes, write_json, write_text
from medseg_kit.metrics.table import to_csv
from medseg_kit.report.comparison import (
    MEAN,
    budget_check,
    cases_by_model,
    comparison_table,
    configuration_name,
    paired_tests,
    read_records,
)
from medseg_kit.report.cost import cost_table
from medseg_kit.report.evaluation import AXIS_TITLES
from medseg_kit.report.figures import (
    box_plot,
    curve_plot,
    save_figure,
    significance_mark,
    svg_text,
)
from medseg_kit.report.page import write_page
from medseg_kit.report.pictures import case_grid, overlap_pictures
from medseg_kit.report.settings import label_efficiency, printed_beside, sweep_curve
from medseg_kit.typing import PathLike

Record = Mapping[str, Any]


def write_study_report(study_dir: PathLike, out: PathLike) -> dict[str, Any]:
    """Write a study's tables, figures, overlap pictures and report.html; return tables and budget.

    The overlap pictures need the images of the test set and the predictions in the study's folder;
    where they are gone, the rest is written without them.

    Args:
        study_dir: The `--out` folder of `medseg study`.
        out: Folder for the report.

    Raises:
        UserError: If the study has no records.
    """
    source, folder = Path(study_dir), Path(out)
    records = read_records(source)
    settings = json.loads((source / "study.json").read_text(encoding="utf-8"))
    table = comparison_table(records)
    tests = paired_tests(records, reference=settings["reference"])
    budget = budget_check(records, local_steps=settings["budget"].get("local_steps"))
    write_text(folder / "table.csv", to_csv(table))
    write_text(folder / "tests.csv", to_csv(tests))
    write_json(folder / "comparison.json", {"table": table, "tests": tests, "budget": budget})
    write_box_plots(folder, records, tests)
    curves = study_curves(records)
    if curves:
        panels: dict[str, dict[str, Any]] = {}
        for curve in curves:
            panels.setdefault(curve["panel"], {})[curve["series"]] = curve["points"]
        save_figure(
            curve_plot(panels, xlabel="epoch or round", ylabel="validation Dice"), folder / "curves"
        )
    sections = setting_figures(folder, records, settings)
    grid = case_grid(source, records, settings["test"])
    if grid is not None:
        write_bytes(folder / "grid.png", grid)
        lead = "Median and worst case of the first method; the axial slice with most ground truth."
        sections.append({"title": "Image, ground truth and methods", "lead": lead, "png": grid})
    sections += extra_tables(folder, records, settings)
    overlays = overlap_pictures(source, records, settings["test"])
    for item in overlays:
        write_bytes(folder / "overlays" / f"{item['file']}.png", item["png"])
    write_page(
        folder / "report.html",
        title=settings["name"],
        dice_table=[
            row | {"highlight": row["model"] == settings["reference"]}
            for row in table
            if row["label"] != MEAN  # the page averages the structures itself
        ],
        curves=curves,
        overlays=overlays,
        sections=sections,
        notes=page_notes(records, tests, budget),
    )
    return {"table": table, "tests": tests, "budget": budget}


def setting_figures(
    folder: Path, records: Sequence[Record], settings: Record
) -> list[dict[str, Any]]:
    """Write the curves over label budgets, over a sweep and of pseudo-labels; return them."""
    found = {
        "label_efficiency": (
            label_efficiency(records, printed=settings["printed"]),
            "Dice by number of labelled patients",
            "Mean over structures, with 95 % bootstrap intervals by patient; hollow marks are the "
            "papers' numbers.",
        ),
        "sweep": (
            sweep_curve(records, settings["sweep"]),
            f"Dice over {settings['sweep'].get('name')}",
            "With 95 % bootstrap intervals by patient.",
        ),
        "pseudo_labels": (
            pseudo_label_curves(records),
            "Quality of the pseudo-labels while training",
            "Dice of each branch's pseudo-labels of the unlabelled training cases; their hidden "
            "labels serve this picture only.",
        ),
    }
    figures = []
    for name, (figure, title, lead) in found.items():
        if figure is not None:
            save_figure(figure, folder / name)
            figures.append({"title": title, "lead": lead, "svg": svg_text(figure)})
    return figures


def pseudo_label_curves(records: Sequence[Record]) -> Figure | None:
    """Return the Dice of the pseudo-labels by epoch: a panel a run, a line a branch."""
    panels: dict[str, dict[str, Any]] = {}
    for record in records:
        for curve in record.get("pseudo_labels") or ():
            title = f"{configuration_name(record)}, seed {record['seed']}"
            panels.setdefault(title, {})[curve["branch"]] = curve["points"]
    return curve_plot(panels, xlabel="epoch", ylabel="Dice") if panels else None


def extra_tables(folder: Path, records: Sequence[Record], settings: Record) -> list[dict[str, Any]]:
    """Write cost.csv and, where papers' numbers are named, printed.csv; return them as tables."""
    rows = cost_table(records)
    write_text(folder / "cost.csv", to_csv(rows))
    lead = "Medians over runs; operations are those of one window or slice in the deployed network."
    tables = [{"title": "Cost", "lead": lead, "rows": rows}]
    if settings["printed"]:
        rows = printed_beside(records, settings["printed"])
        write_text(folder / "printed.csv", to_csv(rows))
        lead = "Other data, hardware and initial weights: to be read beside each other, not ranked."
        tables.append({"title": "Printed in the papers, and ours", "lead": lead, "rows": rows})
    return tables


def write_box_plots(folder: Path, records: Sequence[Record], tests: Sequence[Record]) -> None:
    """Write box plots of Dice and HD95: a cluster a structure, a box a model; Dice with marks.

    Args:
        folder: Where the figures go.
        records: Records of the study.
        tests: From `medseg_kit.report.comparison.paired_tests`, of Dice.
    """
    models = cases_by_model(records)
    marks: dict[str, list[tuple[str, str, str]]] = {}
    for test in tests:
        mark = significance_mark(test["wilcoxon_p_holm"])
        marks.setdefault(test["label"], []).append((test["reference"], test["model"], mark))
    for measure, title in AXIS_TITLES.items():
        values: dict[str, dict[str, list[float]]] = {}
        for model, structures in models.items():
            for label, cases in structures.items():
                values.setdefault(label, {})[model] = [getattr(case, measure) for case in cases]
        if np.isnan(
            [v for groups in values.values() for box in groups.values() for v in box]
        ).all():
            continue
        is_dice = measure == "dice"
        figure = box_plot(
            values,
            ylabel=title,
            marks=marks if is_dice else None,
            ylim=(-0.02, 1.02) if is_dice else None,
        )
        save_figure(figure, folder / measure)


def study_curves(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the validation curves of all runs: a panel a run, a series a site and seed."""
    curves = []
    for record in records:
        for curve in record["curves"]:
            is_federated = record["mode"] == "federate"
            series = curve["panel"] if is_federated else curve["series"]
            if is_federated and curve["series"] != "federated":
                continue
            title = f"{configuration_name(record)}: {record['run']}"
            curves.append(
                {
                    "panel": title,
                    "series": f"{series}, seed {record['seed']}",
                    "points": curve["points"],
                }
            )
    if curves:
        curves[0] |= {"xlabel": "epoch or round", "ylabel": "validation Dice"}
    return curves


def page_notes(records: Sequence[Record], tests: Sequence[Record], budget: Record) -> list[str]:
    """Return the paragraphs that say how the study was done."""
    first = records[0]
    hardware, versions = first["hardware"], first["versions"]
    spent = "equal" if budget["equal"] else f"NOT equal: {budget['local_steps']}"
    notes = [
        f"{len(records)} runs; policy for empty masks: {first['policy']}; checkpoint rule: "
        f"{first['checkpoint_rule']['stated']}; {hardware['processor']}, {hardware['cores']} "
        f"cores, {hardware['gpu'] or 'no GPU'}; torch {versions['torch']}, monai "
        f"{versions['monai']}, medseg_kit {versions['medseg_kit']}.",
        "Intervals are bootstrap intervals over patients; tests are two-sided Wilcoxon signed "
        "rank tests of paired patients, corrected by Holm's method.",
        f"The optimisation budget of the trained runs is {spent}.",
    ]
    return notes + [_test_note(test) for test in tests if test["wilcoxon_p_holm"] is not None]


def _test_note(test: Record) -> str:
    return (
        f"{test['label']}: {test['model']} minus {test['reference']} {test['difference']:+.3f} "
        f"({test['difference_low']:+.3f} to {test['difference_high']:+.3f}), "
        f"corrected p {test['wilcoxon_p_holm']:.3g}, {test['n']} patients."
    )
