"""What a demonstration leaves behind: segmentations, the Dice table, the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg_kit.bundle.config import load_config
from medseg_kit.files import write_text
from medseg_kit.inference.cases import find_cases
from medseg_kit.metrics.table import CaseRecord, summarise, to_csv
from medseg_kit.report.overlays import overlap_image
from medseg_kit.study.demo.models import FEDERATION, Model
from medseg_kit.study.demo.settings import Settings
from medseg_kit.study.evaluation import evaluate_predictions, load_label_map
from medseg_kit.study.references import Reference, find_references

COLUMNS = ("n", "dice_mean", "dice_sd", "n_missed", "hd95_mm_mean", "hd95_mm_sd")
NUM_PICTURED_PATIENTS = 2


def predict(
    model: Model, outside_dir: Path, out: Path, settings: Settings, *, progress: bool
) -> None:
    """Segment the outside patients by the bundle's own inference.yaml, as `medseg predict` does.

    Args:
        model: The model.
        outside_dir: Prepared data set; its section "test" is segmented.
        out: Folder for the label maps.
        settings: The demonstration.
        progress: Show a progress bar.
    """
    files = ["inference.yaml", *([model.overlay] if model.overlay else [])]
    overrides = {
        **settings.inference_overrides(),
        **model.overrides,
        "dataset_dir": str(outside_dir),
        "output_dir": str(out),
        "checkpoint": str(model.weights),
        "predictor#options#section": "test",
        "predictor#options#progress": progress,
    }
    parser = load_config(settings.bundle, files, overrides=overrides)
    parser.get_parsed_content("predictor").predict()


def score(model: Model, outside_dir: Path, predictions: Path) -> list[CaseRecord]:
    """Return Dice and HD95 of every outside patient and organ of a model, on the native grid."""
    references = find_references(outside_dir, section="test", organs=model.organs)
    return evaluate_predictions(predictions, references)


def dice_rows(scores: Mapping[str, Sequence[CaseRecord]]) -> list[dict[str, Any]]:
    """Return one row per model and organ, as CSV and page show them.

    Args:
        scores: Model name to its records.
    """
    rows = []
    for name, records in scores.items():
        for row in summarise(records):
            chosen = {key: row[key] for key in COLUMNS}
            rows.append({"model": name, "label": row["label"], **chosen})
    return rows


def write_tables(rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write dice.csv and dice.md; return the Markdown table.

    Args:
        rows: From `dice_rows`.
        folder: Where the files go.
    """
    table = markdown_table(rows)
    write_text(folder / "dice.csv", to_csv(rows))
    write_text(folder / "dice.md", table + "\n")
    return table


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return models x organs as an aligned Markdown table of mean Dice ± SD.

    Args:
        rows: From `dice_rows`.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    cells = {(row["model"], row["label"]): row for row in rows}
    lines = [["Dice, outside patients", *labels, "mean"]]
    for model in models:
        own = [cells[model, label] for label in labels]
        mean = float(np.mean([row["dice_mean"] for row in own]))
        lines.append([model, *map(_cell, own), f"{mean:.3f}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [_markdown_line(line, widths) for line in lines]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([texts[0], _markdown_line(rule, widths), *texts[1:]])


def pictures(
    predictions: Mapping[str, Path], outside_dir: Path, organs: Sequence[str], settings: Settings
) -> list[dict[str, Any]]:
    """Return overlap pictures: each model that segments all organs, then SegViz organ by organ.

    Args:
        predictions: Model name to its folder of label maps.
        outside_dir: Prepared data set with the references.
        organs: All organs, in label order.
        settings: The demonstration.
    """
    images = {case.name: case.image for case in find_cases(outside_dir, section="test")}
    references = find_references(outside_dir, section="test")[:NUM_PICTURED_PATIENTS]
    wanted: list[tuple[str, Reference, int | None]] = [
        (name, reference, None) for reference in references for name in predictions
    ]
    wanted += [(FEDERATION, references[0], value) for value in range(1, len(organs) + 1)]
    return [
        {
            "title": name if value is None else f"{name}: {organs[value - 1]}",
            "caption": _caption(settings, references.index(reference), value),
            "png": _picture(
                images[reference.case],
                reference,
                predictions[name] / f"{reference.case}.nii.gz",
                value,
                settings.window,
            ),
        }
        for name, reference, value in wanted
    ]


def _picture(
    image_path: Path,
    reference: Reference,
    prediction: Path,
    value: int | None,
    window: Sequence[float] | None,
) -> bytes:
    label, affine = load_label_map(reference.label_path)
    image = np.asarray(nib.nifti1.Nifti1Image.from_filename(image_path).dataobj)
    return overlap_image(
        image, label, load_label_map(prediction)[0], label=value, affine=affine, window=window
    )


def _caption(settings: Settings, index: int, value: int | None) -> str:
    who = settings.patients.removesuffix("s")
    what = "all organs" if value is None else "its largest slice"
    return f"outside {who} {index + 1}, {what}"


def _cell(row: Mapping[str, Any]) -> str:
    spread = "" if row["dice_sd"] is None else f" ± {row['dice_sd']:.3f}"
    missed = f" ({row['n_missed']} missed)" if row["n_missed"] else ""
    return f"{row['dice_mean']:.3f}{spread}{missed}"


def _markdown_line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = f"{cells[0]:<{widths[0]}}"
    rest = [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return f"| {' | '.join([first, *rest])} |"
