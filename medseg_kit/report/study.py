"""The report of a study from its records: tables, figures, pictures and one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_kit.files import write_bytes, write_json, write_text
from medseg_kit.metrics.table import to_csv
from medseg_kit.report.comparison import (
    MEAN,
    budget_check,
    comparison_by_site,
    comparison_table,
    paired_tests,
    read_records,
)
from medseg_kit.report.cost import cost_table
from medseg_kit.report.page import write_page
from medseg_kit.report.pictures import overlap_pictures
from medseg_kit.report.sections import (
    cost_rows,
    difference_rows,
    distance_rows,
    printed_rows,
    site_rows,
)
from medseg_kit.report.settings import printed_beside, random_starts
from medseg_kit.report.study_figures import (
    Section,
    setting_figures,
    study_pictures,
    training_curves,
    write_box_plots,
)
from medseg_kit.typing import PathLike, UserError

Record = Mapping[str, Any]


def write_study_report(
    study_dir: PathLike, out: PathLike, *, settings: Record | None = None
) -> dict[str, Any]:
    """Write a study's tables, figures, pictures and report.html; return tables and budget.

    Pictures need the images of the test set and the predictions, feature maps also the weights, in
    the study's folder; where they are gone, the rest is written without them.

    Args:
        study_dir: The `--out` folder of `medseg study`.
        out: Folder for the report.
        settings: Entries of the study's file; those that `medseg study` has left in the folder if
            None.

    Raises:
        UserError: If the study has no records, or nothing says what it compares.
    """
    source, folder = Path(study_dir), Path(out)
    records = read_records(source)
    settings = study_settings(source) if settings is None else settings
    reference = settings["reference"]
    started = reference is None or any(record["method"] == reference for record in records)
    table = comparison_table(records)
    tests = paired_tests(records, reference=reference) if started else []
    budget = budget_check(records, local_steps=settings["budget"].get("local_steps"))
    write_text(folder / "table.csv", to_csv(table))
    write_text(folder / "tests.csv", to_csv(tests))
    write_json(folder / "comparison.json", {"table": table, "tests": tests, "budget": budget})
    sections = [
        *comparison_tables(table, tests),
        *write_box_plots(folder, records, tests),
        *setting_figures(folder, records, settings),
        *extra_tables(folder, records, settings),
        *study_pictures(folder, source, records, settings["test"]),
        *training_curves(folder, records),
    ]
    overlays = overlap_pictures(source, records, settings["test"])
    for item in overlays:
        write_bytes(folder / "overlays" / f"{item['file']}.png", item["png"])
    notes = page_notes(records, budget)
    if not started:
        notes.append(f"No run of the reference {reference} is finished: nothing is compared yet.")
    write_page(
        folder / "report.html",
        title=settings["name"],
        dice_table=[
            row | {"highlight": row["method"] == reference}
            for row in table
            if row["label"] != MEAN  # the page averages the structures itself
        ],
        overlays=overlays,
        sections=sections,
        notes=notes,
    )
    return {"table": table, "tests": tests, "budget": budget}


def study_settings(folder: Path) -> dict[str, Any]:
    """Return a study's entries as `medseg study` has left them in its folder.

    Raises:
        UserError: If it has not.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: {folder} holds records alone; name the study that they are of"
            " with --study_file FILE"
        )
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return settings


def comparison_tables(table: Sequence[Record], tests: Sequence[Record]) -> list[Section]:
    """Return the paired differences and the surface distances as tables of the page."""
    sections: list[Section] = []
    if tests:
        reference = str(tests[0]["reference"]).partition(", ")[0]
        lead = (
            f"Dice minus that of {reference} with as many labels, on the same patients, with "
            "95\u00a0% bootstrap intervals by patient. Two-sided Wilcoxon signed rank tests of "
            "paired patients, corrected by Holm's method over all of them: *** p < 0.001, "
            "** p < 0.01, * p < 0.05, n.s. no significant difference."
        )
        rows = difference_rows(tests)
        unpaired = max(test["n_unpaired"] for test in tests)
        lead += f" Patients that only one of both has: up to {unpaired}." if unpaired else ""
        sections.append({"title": "Paired differences", "lead": lead, "rows": rows})
    unit, rows = distance_rows(table)
    lead = (
        f"95th percentile of the surface distance in {unit}, smaller is better: mean over "
        "patients with 95\u00a0% bootstrap intervals. Missed structures have no distance; the "
        "table above counts them."
    )
    return [*sections, {"title": f"Surface distance (HD95, {unit})", "lead": lead, "rows": rows}]


def extra_tables(folder: Path, records: Sequence[Record], settings: Record) -> list[Section]:
    """Write cost.csv, by_site.csv (several sites) and printed.csv (papers); return them."""
    tables: list[Section] = []
    if rows := comparison_by_site(records):
        write_text(folder / "by_site.csv", to_csv(rows))
        lead = (
            "Dice on the test cases of each site alone, with 95\u00a0% bootstrap intervals by "
            "patient. Distances and counts are in by_site.csv."
        )
        tables.append({"title": "By site", "lead": lead, "rows": site_rows(rows)})
    if settings["printed"]:
        rows = printed_beside(records, settings["printed"])
        write_text(folder / "printed.csv", to_csv(rows))
        lead = (
            "The papers used other data, hardware and initial weights: to be read beside each "
            "other, not ranked. All structures and label budgets are in printed.csv."
        )
        title = "Printed in the papers, and ours"
        if random := random_starts(records):
            lead += (
                f" Networks of {', '.join(random)} start from random weights here, where the papers"
                " start from pre-trained ones: not comparable with them."
            )
        tables.append({"title": title, "lead": lead, "rows": printed_rows(rows)})
    printed_costs = settings.get("printed_cost") or ()
    costs = cost_table(records, printed_costs)
    write_text(folder / "cost.csv", to_csv(costs))
    lead = (
        "Medians over runs. Parameters and operations (a multiply-add counts twice) are those of "
        "the deployed network and one slice or window; a step, of a federation one of any site, "
        "includes its share of validation; "
        "memory is that of the whole process; registration is done once for all runs, in seconds "
        "of one thread."
    )
    lead += (
        " Printed costs are the papers', of their hardware, image sizes and ways of counting."
        if printed_costs
        else ""
    )
    return [*tables, {"title": "Cost", "lead": lead, "rows": cost_rows(costs)}]


def page_notes(records: Sequence[Record], budget: Record) -> list[str]:
    """Return the paragraphs that say how the study was done."""
    first = records[0]
    versions = first["versions"]
    machines = dict.fromkeys(_machine(record["hardware"]) for record in records)
    spent = "equal" if budget["equal"] else f"NOT equal: {budget['local_steps']}"
    seeds = sorted({record["seed"] for record in records})
    rules = dict.fromkeys(_rule(record["checkpoint_rule"]) for record in records)
    return [
        f"{len(records)} runs, seeds {', '.join(map(str, seeds))}; policy for empty masks: "
        f"{first['policy']}; checkpoint rule: {', '.join(rules)}; "
        f"{' and '.join(machines)}; torch {versions['torch']}, monai {versions['monai']}, "
        f"medseg_kit {versions['medseg_kit']}.",
        "Intervals are bootstrap intervals over patients, whose cases and seeds are averaged "
        "first.",
        f"The optimisation budget of the trained runs is {spent}.",
    ]


def _rule(rule: Record) -> str:
    """Return how weights were chosen, and what the study states where that is something else."""
    stated, applied = rule["stated"], rule["applied"]
    return str(applied) if applied == stated else f"{applied} (stated: {stated})"


def _machine(hardware: Record) -> str:
    return f"{hardware['processor']}, {hardware['cores']} cores, {hardware['gpu'] or 'no GPU'}"
