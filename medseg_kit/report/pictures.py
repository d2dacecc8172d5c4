"""Pictures of a study's test cases: overlaps of each run, and grids of all methods."""

from __future__ import annotations

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


def overlap_pictures(
    study_dir: Path, records: Sequence[Record], test: Mapping[str, str], *, per_model: int = 2
) -> list[dict[str, Any]]:
    """Return overlap pictures of each run: the median and worst case by Dice of each structure.

    Args:
        study_dir: The study's folder, with the predictions.
        records: Records of the study.
        test: `data` (prepared data set) and `section` of the test cases.
        per_model: 1 for the median case only, 2 for the worst case beside it.
    """
    pictures = []
    for record in records:
        predictions = study_dir / "runs" / job_name(record) / "predictions"
        if not predictions.is_dir() or not (Path(test["data"]) / DATALIST_NAME).is_file():
            continue
        files = _test_files(Path(test["data"]), test["section"])
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
    """Return the qualitative grid of the first seed and largest budget; None without predictions.

    Args:
        study_dir: The study's folder, with the predictions.
        records: Records of the study.
        test: `data` (prepared data set) and `section` of the test cases.
        num_cases: 1 for the median case of the first method, 2 for its worst case beside it.
    """
    first = records[0]
    budget = max((record["label_budget"] or 0 for record in records), default=0)
    shown = [
        record
        for record in records
        if record["seed"] == first["seed"] and (record["label_budget"] or 0) == budget
    ]
    if not shown or not (Path(test["data"]) / DATALIST_NAME).is_file():
        return None
    files = _test_files(Path(test["data"]), test["section"])
    chosen = _median_and_worst(shown[0])[:num_cases]
    rows = [
        _grid_row(case, files[case], predicted)
        for case in chosen
        if case in files and (predicted := _predictions(study_dir, shown, case))
    ]
    organs = list(files[chosen[0]][2]) if rows else []
    return qualitative_grid(rows, organs=organs) if rows else None


def _median_and_worst(record: Record) -> list[str]:
    scores: dict[str, list[float]] = {}
    for row in record["cases"]:
        scores.setdefault(row["case"], []).append(row["dice"])
    ordered = sorted(scores, key=lambda case: float(np.mean(scores[case])))
    return list(dict.fromkeys([ordered[len(ordered) // 2], ordered[0]])) if ordered else []


def _predictions(study_dir: Path, records: Sequence[Record], case: str) -> dict[str, Path]:
    """Return method -> label map of a case; empty unless every method has one."""
    found = {
        configuration_name(r): study_dir / "runs" / job_name(r) / "predictions" / f"{case}.nii.gz"
        for r in records
    }
    return found if all(path.is_file() for path in found.values()) else {}


def _grid_row(
    case: str, truth: tuple[Path, Path, Mapping[str, int]], predicted: Mapping[str, Path]
) -> dict[str, Any]:
    image = nib.nifti1.Nifti1Image.from_filename(truth[0])
    maps = {"ground truth": truth[1], **predicted}
    return {
        "title": case,
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
