"""Per-case score tables: one row per case and structure, and the summaries made from them."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg_kit.metrics.policy import score_masks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

MEASURES = ("dice", "hd_vox", "hd_mm", "hd95_vox", "hd95_mm")


@dataclass(frozen=True)
class CaseRecord:
    """Scores of one structure in one case.

    Attributes:
        case: Name of the case (the prediction's file name without its ending).
        subject: Patient; statistics resample patients, not files.
        site: Where the case comes from, or "".
        label: Structure, for example "liver".
        dice: Dice in [0, 1].
        hd_vox: Hausdorff distance in voxels, NaN when undefined.
        hd_mm: Hausdorff distance in mm, NaN when undefined or when the voxel size is lost.
        hd95_vox: HD95 in voxels, NaN when undefined.
        hd95_mm: HD95 in mm, NaN when undefined or when the voxel size is lost.
        missed: The reference has the structure, the prediction has no voxel of it.
        spurious: The prediction has the structure, the reference has none.
        voxels_pred: Voxels of the structure in the prediction.
        voxels_reference: Voxels of the structure in the reference.
    """

    case: str
    subject: str
    site: str
    label: str
    dice: float
    hd_vox: float
    hd_mm: float
    hd95_vox: float
    hd95_mm: float
    missed: bool
    spurious: bool
    voxels_pred: int
    voxels_reference: int

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> CaseRecord:
        """Return the record that `to_dict` wrote (null distances become NaN).

        Raises:
            KeyError: If a column is missing.
        """
        columns = {field.name: row[field.name] for field in fields(cls)}
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in columns.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; undefined numbers become None, never NaN."""
        return {key: none_if_nan(value) for key, value in asdict(self).items()}


def none_if_nan(value: Any) -> Any:
    """Return None for NaN (JSON has no NaN), anything else unchanged."""
    return None if isinstance(value, float) and math.isnan(value) else value


def score_label_maps(
    pred: npt.NDArray[np.integer[Any]],
    reference: npt.NDArray[np.integer[Any]],
    *,
    labels: Mapping[str, tuple[int, int]],
    case: Mapping[str, str],
    spacing: Sequence[float] | None = None,
    policy: str = "strict",
) -> list[CaseRecord]:
    """Return one record per structure of one case.

    Args:
        pred: Label map, shape (H, W[, D]).
        reference: Label map of the same shape.
        labels: Structure name -> (value in `pred`, value in `reference`); leave out what the
            reference never annotated.
        case: The keys `case`, `subject` and `site`.
        spacing: Voxel size in mm, ordered as the array axes; None when it is not known.
        policy: "strict" or "reference", see `medseg_kit.metrics.policy`.

    Raises:
        ValueError: If the shapes differ or the policy is unknown.
    """
    records = []
    for name, (pred_value, reference_value) in labels.items():
        pred_mask, reference_mask = pred == pred_value, reference == reference_value
        score = score_masks(pred_mask, reference_mask, spacing=spacing, policy=policy)
        records.append(
            CaseRecord(
                case=case["case"],
                subject=case["subject"],
                site=case["site"],
                label=name,
                voxels_pred=int(np.count_nonzero(pred_mask)),
                voxels_reference=int(np.count_nonzero(reference_mask)),
                **asdict(score),
            )
        )
    return records


def summarise(
    records: Iterable[CaseRecord], *, by: Sequence[str] = ("label",)
) -> list[dict[str, Any]]:
    """Return one row per group: number of cases, mean and SD of each measure, and omissions.

    Undefined distances are left out of the distance means and counted in `n_hd_undefined`; missed
    structures are counted beside every mean. The SD is the sample SD (None below two values).

    Args:
        records: Rows of one or many cases.
        by: Columns that form a group, such as ("label", "site").
    """
    groups: dict[tuple[Any, ...], list[CaseRecord]] = defaultdict(list)
    for record in records:
        groups[tuple(getattr(record, name) for name in by)].append(record)
    return [dict(zip(by, key, strict=True)) | summary_row(rows) for key, rows in groups.items()]


def summary_row(records: Sequence[CaseRecord]) -> dict[str, Any]:
    """Return counts, means and SDs of one group of records."""
    row: dict[str, Any] = {
        "n": len(records),
        "n_missed": sum(record.missed for record in records),
        "n_spurious": sum(record.spurious for record in records),
        "n_hd_undefined": sum(math.isnan(record.hd95_vox) for record in records),
    }
    for measure in MEASURES:
        values = np.array([getattr(record, measure) for record in records], dtype=float)
        values = values[~np.isnan(values)]
        row[f"{measure}_mean"] = float(values.mean()) if values.size else None
        row[f"{measure}_sd"] = float(values.std(ddof=1)) if values.size > 1 else None
    return row


def mean_record(records: Sequence[CaseRecord], *, label: str) -> CaseRecord:
    """Return the mean over the structures of one case as a record of its own.

    Undefined distances are left out; it counts as missed (spurious) if a structure is.

    Args:
        records: One record a structure of the same case.
        label: Name of the new record's structure.
    """
    first = records[0]
    means = {}
    for measure in MEASURES:
        values = [getattr(record, measure) for record in records]
        values = [value for value in values if not math.isnan(value)]
        means[measure] = float(np.mean(values)) if values else math.nan
    return CaseRecord(
        case=first.case,
        subject=first.subject,
        site=first.site,
        label=label,
        **means,
        missed=any(record.missed for record in records),
        spurious=any(record.spurious for record in records),
        voxels_pred=sum(record.voxels_pred for record in records),
        voxels_reference=sum(record.voxels_reference for record in records),
    )


def mean_over_labels(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over structures of their case means, with the counts summed.

    Args:
        rows: Rows of `summarise` by label.
    """
    total: dict[str, Any] = {"label": "mean"}
    for count in ("n", "n_missed", "n_spurious", "n_hd_undefined"):
        total[count] = sum(row[count] for row in rows)
    for measure in MEASURES:
        means = [row[f"{measure}_mean"] for row in rows if row[f"{measure}_mean"] is not None]
        total[f"{measure}_mean"] = float(np.mean(means)) if means else None
        total[f"{measure}_sd"] = None
    return total


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text; undefined values are empty fields.

    Args:
        rows: Dictionaries with the same keys; the first one gives the columns.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: none_if_nan(value) for key, value in row.items()} for row in rows)
    return text.getvalue()
