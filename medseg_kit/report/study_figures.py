"""The figures of a study: each is written to the report's folder and returned for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medseg_kit.files import write_bytes, write_json
from medseg_kit.report.box_plots import box_plot
from medseg_kit.report.comparison import by_budget, cases_by_model, configuration_name
from medseg_kit.report.curves import pseudo_label_panels, validation_panels
from medseg_kit.report.evaluation import AXIS_TITLES
from medseg_kit.report.figures import (
    curve_plot,
    png_bytes,
    save_figure,
    significance_mark,
    svg_text,
)
from medseg_kit.report.pictures import case_grid, shown_records
from medseg_kit.report.settings import budget_name, label_efficiency, sweep_curve

Record = Mapping[str, Any]
Section = dict[str, Any]
PAGE_DPI = 110


def setting_figures(folder: Path, records: Sequence[Record], settings: Record) -> list[Section]:
    """Write the curves over label budgets and over a sweep; return them."""
    found = {
        "label_efficiency": (
            label_efficiency(records, printed=settings["printed"]),
            "Dice by number of labelled patients",
            "Mean over structures and seeds, with 95\u00a0% bootstrap intervals by patient; hollow "
            "marks are the papers' numbers.",
        ),
        "sweep": (
            sweep_curve(records, settings["sweep"]),
            f"Dice over {settings['sweep'].get('name')}",
            "Mean over seeds, with 95\u00a0% bootstrap intervals by patient.",
        ),
    }
    return [
        _figure(folder, name, figure, title, lead)
        for name, (figure, title, lead) in found.items()
        if figure is not None
    ]


def training_curves(folder: Path, records: Sequence[Record]) -> list[Section]:
    """Write the curves of validation and of pseudo-labels while training; return them."""
    found = {
        "curves": (
            validation_panels(records),
            ("epoch or round", "validation Dice"),
            "Learning",
            "Measured on validation patients while the models learn; mean over seeds. In a "
            "federation each site measures the new global model on its own patients.",
        ),
        "pseudo_labels": (
            pseudo_label_panels(records),
            ("epoch", "Dice"),
            "Quality of the pseudo-labels while training",
            "Dice of what each branch says about a fixed sample of slices of the unlabelled "
            "training cases, all slices together, mean over structures and seeds. Their hidden "
            "labels serve this picture only, no choice depends on it.",
        ),
    }
    sections = []
    for name, (panels, (xlabel, ylabel), title, lead) in found.items():
        if panels:
            write_json(folder / f"{name}.json", panels)
            figure = curve_plot(panels, xlabel=xlabel, ylabel=ylabel)
            sections.append(_figure(folder, name, figure, title, lead))
    return sections


def study_pictures(
    folder: Path, source: Path, records: Sequence[Record], test: Mapping[str, str]
) -> list[Section]:
    """Write the qualitative grid and the feature maps; return them."""
    from medseg_kit.report.feature_maps import feature_figures

    shown = shown_records(records)
    which = f"Seed {shown[0]['seed']}, {budget_name(shown[0]['label_budget'])}."
    sections = []
    grid = case_grid(source, records, test)
    if grid is not None:
        lead = (
            f"{which} Median and worst case of {shown[0]['method']} by Dice; the slice with "
            "most ground truth."
        )
        sections.append({"title": "Image, ground truth and methods", "lead": lead, "png": grid})
        write_bytes(folder / "grid.png", grid)
    leads = {
        "within": "100 pixels a class and slice, of up to 12 slices of the grid's median case.",
        "across": "100 pixels a class, of the slice with most ground truth of several cases.",
    }
    for name, png in feature_figures(source, records, test).items():
        lead = (
            f"{which} {leads[name]} Features before the head in their first two principal "
            "components, each method its own; in brackets their share of the variance."
        )
        write_bytes(folder / f"features_{name}.png", png)
        title = f"Features {name} {'one case' if name == 'within' else 'cases'}"
        sections.append({"title": title, "lead": lead, "png": png})
    return sections


def write_box_plots(
    folder: Path, records: Sequence[Record], tests: Sequence[Record]
) -> list[Section]:
    """Write box plots of Dice and HD95, one a label budget; return those of Dice.

    A cluster is a structure, a box a model, a dot a case of one seed; Dice has significance marks.

    Args:
        folder: Where the figures go.
        records: Records of the study.
        tests: From `medseg_kit.report.comparison.paired_tests`, of Dice.
    """
    sections = []
    for budget in dict.fromkeys(record["label_budget"] for record in by_budget(records)):
        chosen = [record for record in records if record["label_budget"] == budget]
        ending = "" if budget is None else f"_{budget}_labelled"
        for measure, title in AXIS_TITLES.items():
            figure = _box_plot(chosen, tests if measure == "dice" else (), measure, title)
            if figure is None:
                continue
            save_figure(figure, folder / f"{measure}{ending}")
            if measure == "dice":
                lead = "A dot is a case of one seed. Marks: corrected test against the reference."
                name = f"Dice of the cases, {budget_name(budget)}"
                sections.append(
                    {"title": name, "lead": lead, "png": png_bytes(figure, dpi=PAGE_DPI)}
                )
    return sections


def _box_plot(
    records: Sequence[Record], tests: Sequence[Record], measure: str, title: str
) -> Figure | None:
    names = {configuration_name(record): str(record["method"]) for record in records}
    values: dict[str, dict[str, list[float]]] = {}
    for model, structures in cases_by_model(records).items():
        for label, cases in structures.items():
            values.setdefault(label, {})[names[model]] = [getattr(case, measure) for case in cases]
    if np.isnan([v for groups in values.values() for box in groups.values() for v in box]).all():
        return None
    marks: dict[str, list[tuple[str, str, str]]] = {}
    for test in tests:
        if test["model"] in names:
            pair = (names[test["reference"]], names[test["model"]])
            mark = significance_mark(test["wilcoxon_p_holm"])
            marks.setdefault(test["label"], []).append((*pair, mark))
    limits = (-0.02, 1.02) if measure == "dice" else None
    return box_plot(values, ylabel=title, marks=marks, ylim=limits)


def _figure(folder: Path, name: str, figure: Figure, title: str, lead: str) -> Section:
    save_figure(figure, folder / name)
    return {"title": title, "lead": lead, "svg": svg_text(figure)}
