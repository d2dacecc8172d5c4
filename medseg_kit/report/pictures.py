"""Pictures of a study's test cases: overlaps of each run, and grids of all methods."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg_kit.data.datalist import DATALIST_NAME, organ_names, read_datalist
from medseg_kit.report.comparison import configuration_name
from medseg_kit.report.grids import qualitative_grid
from medseg_kit.report.overlays import overlap_image

Record = Mapping[str, Any]
MOST_OVERLAPS = 48


def shown_records(records: Sequence[Record]) -> list[Record]:
    """Return the runs that pictures show: those of the first seed and the largest label budget.

    Args:
        records: Records of a study.
    """
    budget = max((_budget(record) for record in records), default=0)
    wanted = [record for record in records if _budget(record) == budget]
    return [record for record in wanted if record["seed"] == wanted[0]["seed"]]


def _budget(record: Record) -> float:
    """Return the number of labelled patients; without a budget all are."""
    budget = record["label_budget"]
    return math.inf if budget is None else budget


def shown_name(record: Record, records: Sequence[Record]) -> str:
    """Return a run's name in a picture: its method, or its own where others complement it.

    Args:
        record: The run.
        records: All that are shown.
    """
    is_alone = sum(other["method"] == record["method"] for other in records) == 1
    return str(record["method"] if is_alone else record["run"])


def overlap_pictures(
    study_dir: Path,
    records: Sequence[Record],
    test: Mapping[str, str],
    *,
    most: int = MOST_OVERLAPS,
) -> list[dict[str, Any]]:
    """Return overlap pictures of the shown runs: median and worst case by Dice of each structure.

    The worst cases are left out where there would be too many pictures for a page.

    Args:
        study_dir: The study's folder, with the predictions.
        records: Records of the study.
        test: `data` (prepared data set) and `section` of the test cases.
        most: Most pictures with worst cases.
    """
    files, shown = case_files(test), shown_records(records)
    num_structures = sum(len({row["label"] for row in record["cases"]}) for record in shown)
    per_model = 2 if 2 * num_structures <= most else 1
    pictures = []
    for record in shown:
        predictions = run_folder(study_dir, record) / "predictions"
        for label in dict.fromkeys(row["label"] for row in record["cases"]):
            rows = sorted(
                (r for r in record["cases"] if r["label"] == label), key=lambda r: r["dice"]
            )
            for which, row in (("median", rows[len(rows) // 2]), ("worst", rows[0]))[:per_model]:
                pictures += _picture(record, row, which, (predictions, files))
    return pictures


def case_grid(
    study_dir: Path, records: Sequence[Record], test: Mapping[str, str], *, num_cases: int = 2
) -> bytes | None:
    """Return the qualitative grid of the shown runs; None without predictions.

    Args:
        study_dir: The study's folder, with the predictions.
        records: Records of the study.
        test: `data` (prepared data set) and `section` of the test cases.
        num_cases: 1 for the median case of the first method, 2 for its worst case beside it.
    """
    shown, files = shown_records(records), case_files(test)
    chosen = dict(zip(median_and_worst(shown[0])[:num_cases], ("median", "worst"), strict=False))
    rows = [
        _grid_row(f"{case}\n({which})", files[case], predicted)
        for case, which in chosen.items()
        if case in files and (predicted := _predictions(study_dir, shown, case))
    ]
    organs = list(next(iter(files.values()))[2]) if rows else []
    return qualitative_grid(rows, organs=organs) if rows else None


def median_and_worst(record: Record) -> list[str]:
    """Return the median and the worst case of a run by mean Dice; one if it has no more."""
    scores: dict[str, list[float]] = {}
    for row in record["cases"]:
        scores.setdefault(row["case"], []).append(row["dice"])
    ordered = sorted(scores, key=lambda case: float(np.mean(scores[case])))
    return list(dict.fromkeys([ordered[len(ordered) // 2], ordered[0]])) if ordered else []


def _predictions(study_dir: Path, records: Sequence[Record], case: str) -> dict[str, Path]:
    """Return method -> label map of a case; empty unless every method has one."""
    found = {
        shown_name(record, records): run_folder(study_dir, record)
        / "predictions"
        / f"{case}.nii.gz"
        for record in records
    }
    return found if all(path.is_file() for path in found.values()) else {}


def _grid_row(
    title: str, truth: tuple[Path, Path, Mapping[str, int]], predicted: Mapping[str, Path]
) -> dict[str, Any]:
    image = nib.nifti1.Nifti1Image.from_filename(truth[0])
    maps = {"ground truth": truth[1], **predicted}
    return {
        "title": title,
        "image": np.asanyarray(image.dataobj),
        "affine": image.affine,
        "maps": {name: _read(path) for name, path in maps.items()},
    }


def _read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.nifti1.Nifti1Image.from_filename(path).dataobj)


def job_name(record: Record) -> str:
    """Return the name of a record's run folder."""
    budget = "" if record["label_budget"] is None else f"_labels{record['label_budget']}"
    return f"{record['run']}{budget}_seed{record['seed']}"


def run_folder(study_dir: Path, record: Record) -> Path:
    """Return the folder of a record's run."""
    return study_dir / "runs" / job_name(record)


def weights_file(study_dir: Path, record: Record) -> Path | None:
    """Return the weights that a run deployed, if they are still in the study's folder.

    Args:
        study_dir: The study's folder.
        record: Record of the run.
    """
    name = "last.pt" if record["checkpoint_rule"]["applied"] == "last" else "model.pt"
    folders = {"train": f"training/{name}", "federate": "federation/global/model.pt"}
    if record["mode"] not in folders:
        return None
    path = run_folder(study_dir, record) / folders[record["mode"]]
    return path if path.is_file() else None


def case_files(test: Mapping[str, str]) -> dict[str, tuple[Path, Path, dict[str, int]]]:
    """Return case name -> image, label and the values of the structures, for NIfTI images.

    Args:
        test: `data` (prepared data set, which may be gone) and `section` of the test cases.
    """
    folder = Path(test["data"])
    if not (folder / DATALIST_NAME).is_file():
        return {}
    content = read_datalist(folder)
    organs = organ_names(content["labels"], source=str(folder))
    values = {organ: value for value, organ in enumerate(organs, 1)}
    files = {}
    for case in content[test["section"]]:
        image, label = folder / case["image"], case.get("label")
        name = re.sub(r"\.nii(\.gz)?$", "", case["image"].removeprefix("images/"))
        is_nifti = name != case["image"].removeprefix("images/")
        if label and is_nifti and image.is_file():
            files[name] = (image, folder / label, values)
    return files


def _picture(
    record: Record, row: Record, which: str, places: tuple[Path, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    predictions, files = places
    pred_path = predictions / f"{row['case']}.nii.gz"
    if row["case"] not in files or not pred_path.is_file():
        return []
    image_path, label_path, values = files[row["case"]]
    image = nib.nifti1.Nifti1Image.from_filename(image_path)
    arrays = [_read(path) for path in (label_path, pred_path)]
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
