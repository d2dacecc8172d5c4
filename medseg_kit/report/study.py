"""The report of a study from its records alone: tables, figures, overlap pictures and a page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg_kit.data.datalist import DATALIST_NAME, organ_names, read_datalist
from medseg_kit.files import write_bytes, write_json, write_text
from medseg_kit.metrics.table import to_csv
from medseg_kit.report.comparison import (
    budget_check,
    cases_by_model,
    comparison_table,
    configuration_name,
    paired_tests,
    read_records,
)
from medseg_kit.report.evaluation import AXIS_TITLES
from medseg_kit.report.figures import box_plot, curve_plot, save_figure, significance_mark
from medseg_kit.report.overlays import overlap_image
from medseg_kit.report.page import write_page
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
    overlays = overlap_pictures(source, records)
    for item in overlays:
        write_bytes(folder / "overlays" / f"{item['file']}.png", item["png"])
    write_page(
        folder / "report.html",
        title=settings["name"],
        dice_table=[row | {"highlight": row["model"] == settings["reference"]} for row in table],
        curves=curves,
        overlays=overlays,
        notes=page_notes(records, tests, budget),
    )
    return {"table": table, "tests": tests, "budget": budget}


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


def overlap_pictures(
    study_dir: Path, records: Sequence[Record], *, per_model: int = 2
) -> list[dict[str, Any]]:
    """Return overlap pictures of each run: the median and worst case by Dice of each structure.

    Args:
        study_dir: The study's folder, with the predictions.
        records: Records of the study.
        per_model: 1 for the median case only, 2 for the worst case beside it.
    """
    pictures = []
    for record in records:
        predictions = study_dir / "runs" / job_name(record) / "predictions"
        test = Path(record["test"]["data"])
        if not predictions.is_dir() or not (test / DATALIST_NAME).is_file():
            continue
        files = _test_files(test, record["test"]["section"])
        for label in dict.fromkeys(row["label"] for row in record["cases"]):
            rows = sorted(
                (r for r in record["cases"] if r["label"] == label), key=lambda r: r["dice"]
            )
            for which, row in (("median", rows[len(rows) // 2]), ("worst", rows[0]))[:per_model]:
                pictures += _picture(record, row, which, (predictions, files))
    return pictures


def job_name(record: Record) -> str:
    """Return the name of a record's run folder."""
    budget = "" if record["label_budget"] is None else f"_labels{record['label_budget']}"
    return f"{record['run']}{budget}_seed{record['seed']}"


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


def _test_files(test: Path, section: str) -> dict[str, tuple[Path, Path, dict[str, int]]]:
    """Return case name -> image, label and the values of the structures, for NIfTI images."""
    content = read_datalist(test)
    organs = organ_names(content["labels"], source=str(test))
    values = {organ: value for value, organ in enumerate(organs, 1)}
    files = {}
    for case in content[section]:
        name = re.sub(r"\.nii(\.gz)?$", "", case["image"].removeprefix("images/"))
        if "label" in case and name != case["image"].removeprefix("images/"):
            files[name] = (test / case["image"], test / case["label"], values)
    return files


def _picture(
    record: Record, row: Record, which: str, places: tuple[Path, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    predictions, files = places
    pred_path = predictions / f"{row['case']}.nii.gz"
    if row["case"] not in files or not pred_path.is_file():
        return []
    image_path, label_path, values = files[row["case"]]
    if not image_path.is_file():
        return []
    image = nib.nifti1.Nifti1Image.from_filename(image_path)
    arrays = [
        np.asanyarray(nib.nifti1.Nifti1Image.from_filename(p).dataobj)
        for p in (label_path, pred_path)
    ]
    png = overlap_image(
        np.asanyarray(image.dataobj), *arrays, label=values[row["label"]], affine=image.affine
    )
    model = configuration_name(record)
    return [
        {
            "title": f"{model}: {row['label']}",
            "caption": f"{which} case {row['case']}, Dice {row['dice']:.3f}, seed {record['seed']}",
            "png": png,
            "file": f"{job_name(record)}_{row['label']}_{which}".replace(" ", "_"),
        }
    ]
