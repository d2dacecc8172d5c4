"""A study's comparison, from its records alone: means with patient intervals, and paired tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_kit.metrics.statistics import bootstrap_interval, holm, paired_comparison, patient_means
from medseg_kit.metrics.table import CaseRecord, mean_record, summary_row
from medseg_kit.typing import PathLike, UserError

Record = Mapping[str, Any]
MEASURES = ("dice", "hd_mm", "hd_vox", "hd95_mm", "hd95_vox")
MEAN = "mean"
"""The structure that stands for the mean of all structures of a case."""


def read_records(study_dir: PathLike) -> list[dict[str, Any]]:
    """Return a study's records.

    Args:
        study_dir: The `--out` folder of `medseg study`.

    Raises:
        UserError: If there is no record.
    """
    path = Path(study_dir) / "records.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if not lines:
        raise UserError(f"{path} holds no records; run `medseg study` with --out {study_dir} first")
    return [json.loads(line) for line in lines]


def configuration_name(record: Record) -> str:
    """Return the row of the table that a record belongs to: its method and label budget."""
    budget = record["label_budget"]
    return str(record["method"]) if budget is None else f"{record['method']}, {budget} labelled"


def by_budget(records: Sequence[Record]) -> list[Record]:
    """Return records by growing label budget, those without one last, else in their order."""
    return sorted(records, key=lambda record: record["label_budget"] or float("inf"))


def cases_by_model(records: Sequence[Record]) -> dict[str, dict[str, list[CaseRecord]]]:
    """Return model -> structure -> score rows of all seeds, and of the mean of several structures.

    Models stand in the order of `by_budget`.

    Args:
        records: Records of a study. Runs of one method complement each other.

    Raises:
        UserError: If two runs of one method score the same structure with the same seed.
    """
    models: dict[str, dict[str, list[CaseRecord]]] = {}
    owners: dict[tuple[str, str, int], str] = {}
    for record in by_budget(records):
        model = configuration_name(record)
        for row in record["cases"]:
            owner = owners.setdefault((model, row["label"], record["seed"]), record["run"])
            if owner != record["run"]:
                raise UserError(
                    f"runs {owner} and {record['run']} of {model} both score {row['label']}; "
                    "give them different methods, or `organs` that do not overlap"
                )
            models.setdefault(model, {}).setdefault(row["label"], []).append(
                CaseRecord.from_dict(row)
            )
    everything = set().union(*models.values())
    for model, structures in models.items():
        # over the structures of the whole study, or means of different ones would be compared
        if len(everything) > 1 and structures.keys() == everything:
            structures[MEAN] = _case_means(records, model, num_structures=len(structures))
    return models


def _case_means(records: Sequence[Record], model: str, *, num_structures: int) -> list[CaseRecord]:
    """Return the mean over all structures of each case and seed that has them all."""
    rows: dict[tuple[int, str], list[CaseRecord]] = {}
    for record in records:
        if configuration_name(record) == model:
            for row in record["cases"]:
                key = (record["seed"], row["case"])
                rows.setdefault(key, []).append(CaseRecord.from_dict(row))
    whole = (found for found in rows.values() if len(found) == num_structures)
    return [mean_record(found, label=MEAN) for found in whole]


def comparison_table(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one row per model and structure: mean, SD, interval by patient, missed structures.

    The mean and its interval are over patients, whose cases and seeds are averaged first;
    `dice_seed_sd` is the SD of the seeds' means.

    Args:
        records: Records of a study.
    """
    rows = []
    setting = {configuration_name(record): record for record in records}
    for model, structures in cases_by_model(records).items():
        named = {key: setting[model][key] for key in ("method", "label_budget")}
        for label, cases in structures.items():
            row = {"model": model, **named, "label": label, **summary_row(cases)}
            for measure in MEASURES:
                patients = per_patient(cases, measure)
                low, high = bootstrap_interval(patients)
                row[f"{measure}_mean"] = (
                    float(np.mean(list(patients.values()))) if patients else None
                )
                row |= {f"{measure}_low": _number(low), f"{measure}_high": _number(high)}
            row["num_patients"] = len({case.subject for case in cases})
            rows.append(row | seed_spread(records, model, label))
    return rows


def comparison_by_site(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return `comparison_table` of each site's test cases alone, with a column `site`.

    Args:
        records: Records of a study.

    Returns:
        Nothing if all test cases come from one site.
    """
    sites = sorted({row["site"] for record in records for row in record["cases"]})
    if len(sites) < 2:
        return []
    rows = []
    for site in sites:
        own = [
            {**record, "cases": [row for row in record["cases"] if row["site"] == site]}
            for record in records
        ]
        table = comparison_table([record for record in own if record["cases"]])
        rows += [{"site": site, **row} for row in table]
    return rows


def per_patient(cases: Sequence[CaseRecord], measure: str) -> dict[str, float]:
    """Return patient -> mean of a measure over its cases and seeds."""
    return patient_means((case.subject, getattr(case, measure)) for case in cases)


def seed_spread(records: Sequence[Record], model: str, label: str) -> dict[str, Any]:
    """Return how many seeds a model was trained with, and the SD of their mean Dice."""
    means: dict[int, list[float]] = {}
    for record in records:
        if configuration_name(record) == model:
            rows = record["cases"]
            dice = [row["dice"] for row in rows if label in {row["label"], MEAN}]
            means.setdefault(record["seed"], []).extend(dice)
    values = [float(np.mean(dice)) for dice in means.values() if dice]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"num_seeds": len(values), "dice_seed_sd": spread}


def paired_tests(
    records: Sequence[Record], *, reference: str | None = None, measure: str = "dice"
) -> list[dict[str, Any]]:
    """Return each model against the reference of its label budget, on the patients of both.

    `wilcoxon_p_holm` is corrected for all comparisons of the table.

    Args:
        records: Records of a study.
        reference: Method to compare with; the first one if None.
        measure: "dice", or a distance: "hd_mm", "hd_vox", "hd95_mm" or "hd95_vox".

    Raises:
        UserError: If the reference is no method of the study.
    """
    models = cases_by_model(records)
    methods = list(dict.fromkeys(str(record["method"]) for record in records))
    reference = methods[0] if reference is None else reference
    if reference not in methods:
        raise UserError(f"reference {reference!r} is no method of the study; methods: {methods}")
    rows = []
    for record in {configuration_name(record): record for record in by_budget(records)}.values():
        model = configuration_name(record)
        base = configuration_name({**record, "method": reference})
        for label in models[model]:
            if model == base or label not in models.get(base, {}):
                continue
            pair = (per_patient(models[name][label], measure) for name in (model, base))
            rows.append(
                {"model": model, "reference": base, "label": label, "measure": measure}
                | paired_comparison(*pair)
            )
    tested = [row for row in rows if row["wilcoxon_p"] is not None]
    corrected = holm([row["wilcoxon_p"] for row in tested])
    for row in rows:
        row["wilcoxon_p_holm"] = None
    for row, value in zip(tested, corrected, strict=True):
        row["wilcoxon_p_holm"] = value
    return rows


def budget_check(records: Sequence[Record], *, local_steps: int | None = None) -> dict[str, Any]:
    """Return the stated and the spent optimisation steps (of one site), and whether all agree.

    Args:
        records: Records of a study; runs that train nothing here have no budget.
        local_steps: Budget that the study states; None to compare the runs with each other.
    """
    spent = {
        f"{configuration_name({**r, 'method': r['run']})} (seed {r['seed']})": r["local_steps"]
        for r in records
        if r["local_steps"] is not None
    }
    expected = {local_steps} if local_steps is not None else set(spent.values())
    equal = len(expected) <= 1 and set(spent.values()) <= expected
    return {"stated_local_steps": local_steps, "local_steps": spent, "equal": equal}


def format_comparison(rows: Sequence[Record], tests: Sequence[Record], budget: Record) -> str:
    """Return table, tests and budget as text.

    Args:
        rows: From `comparison_table`.
        tests: From `paired_tests`.
        budget: From `budget_check`.
    """
    titles = (
        f"{'Dice (95 % by patient)':<26}{'HD95 vox':>9}{'missed':>8}{'patients':>10}{'seeds':>7}"
    )
    wide, narrow = (max(12, *(len(row[key]) + 2 for row in rows)) for key in ("model", "label"))
    lines = [f"{'model':<{wide}}{'structure':<{narrow}}{titles}"]
    for row in rows:
        interval = with_interval(*(row[f"dice_{part}"] for part in ("mean", "low", "high")))
        counts = f"{row['n_missed']:>8}{row['num_patients']:>10}{row['num_seeds']:>7}"
        lines.append(
            f"{row['model']:<{wide}}{row['label']:<{narrow}}{interval:<26}"
            f"{text(row['hd95_vox_mean'], 2):>9}{counts}"
        )
    lines += [
        f"{test['model']} minus {test['reference']}, {test['label']}: "
        + with_interval(*(test[f"difference{part}"] for part in ("", "_low", "_high")))
        + ", "
        f"Wilcoxon p {text(test['wilcoxon_p'])}, corrected "
        f"{text(test['wilcoxon_p_holm'])}, {test['n']} patients"
        for test in tests
    ]
    state = "equal" if budget["equal"] else "NOT EQUAL"
    spent = ", ".join(f"{name} {steps}" for name, steps in budget["local_steps"].items())
    lines.append(f"local steps ({state}): {spent or 'no run trained here'}")
    return "\n".join(lines)


def text(value: float | None, digits: int = 3) -> str:
    """Return a number with fixed digits, "-" for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def with_interval(
    mean: float | None, low: float | None, high: float | None, *, digits: int = 3, gap: str = " "
) -> str:
    """Return a mean with its interval, alone where it has none (a single patient).

    Args:
        mean: The mean.
        low: Lower end of its interval.
        high: Upper end.
        digits: After the point.
        gap: Between both: a space puts the interval in brackets, a line break puts it below.
    """
    if low is None or high is None:
        return text(mean, digits)
    interval = f"{text(low, digits)} to {text(high, digits)}"
    return f"{text(mean, digits)}{gap}" + (interval if gap == "\n" else f"({interval})")


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
