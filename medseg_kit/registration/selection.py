"""Best-registration selection, and the labels that it warps once for training.

CCT-R (thesis, equations 6.9 and 6.10): each unlabelled volume takes the label of the labelled
volume with which its round trip agrees best.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK

from medseg_kit.files import replacing, write_json
from medseg_kit.registration.cases import RegistrationCase, RegistrationData
from medseg_kit.registration.job import read_transform
from medseg_kit.registration.resampling import (
    MIN_COVERAGE,
    cycle,
    mutual_information,
    warp_label,
)
from medseg_kit.registration.volumes import case_file, read_label, read_volume
from medseg_kit.typing import UserError


@dataclass(frozen=True)
class Score:
    """How well the round trip from a volume over a labelled one agrees with the volume.

    Attributes:
        labelled: Key of the labelled volume.
        score: ``w_rmse * rmse + w_mi * mutual information``; the smallest wins (register A37).
        rmse: Over the voxels that stayed inside both grids, intensities in [0, 1].
        mutual_information: Normalised by the volume's entropy.
        coverage: Share of those voxels.
    """

    labelled: str
    score: float
    rmse: float
    mutual_information: float
    coverage: float


def score_pair(
    folder: Path,
    target: RegistrationCase,
    labelled: RegistrationCase,
    *,
    data: RegistrationData,
    rmse_weight: float = 1.0,
    mi_weight: float = -1.0,
) -> Score | None:
    """Return the score of a labelled volume for a target; None without both transforms.

    A coverage below 20 % is no registration: None, too.
    """
    there = read_transform(folder, labelled.key, target.key)
    back = read_transform(folder, target.key, labelled.key)
    if there is None or back is None:
        return None
    image, other = (
        read_volume(case.image, modality=data.modality, nominal_spacing=data.nominal_spacing)
        for case in (target, labelled)
    )
    returned, coverage = cycle(image, other, there, back)
    if coverage < MIN_COVERAGE:
        return None
    first, second = (SimpleITK.GetArrayFromImage(item) for item in (image, returned))
    inside = second > 0
    rmse = float(np.sqrt(np.square(first[inside] - second[inside]).mean())) if inside.any() else 1.0
    information = mutual_information(first, second)
    score = rmse_weight * rmse + mi_weight * information
    return Score(labelled.key, score, rmse, information, coverage)


def propagate_labels(
    folder: Path, out: Path, *, data: RegistrationData, targets: list[RegistrationCase]
) -> list[dict[str, Any]]:
    """Write the best registered label of each target; return which was chosen and why.

    With one labelled volume of a frame there is nothing to choose. A target without a usable
    registration gets no label and is named.

    Args:
        folder: Output folder of `register_pairs`.
        out: Folder for ``<case>.nii.gz`` and ``selection.json``.
        data: The volumes; labelled ones of the training section are the candidates.
        targets: Volumes to label.

    Raises:
        UserError: If no training volume is labelled, or no target could be labelled.
    """
    candidates = [case for case in data.training() if case.labelled and case.label is not None]
    if not candidates:
        raise UserError("no labelled training volume: give --labelled N, or labels in the data set")
    rows = []
    for target in targets:
        same = [c for c in candidates if c.frame == target.frame and c.key != target.key]
        scores = [score for c in same if (score := score_pair(folder, target, c, data=data))]
        scores.sort(key=lambda score: (score.score, score.rmse))
        row: dict[str, Any] = {"case": target.key, "chosen": None, "scores": []}
        if scores:
            row |= {"chosen": scores[0].labelled, "scores": [asdict(score) for score in scores]}
            chosen = next(case for case in same if case.key == scores[0].labelled)
            _write_label(folder, out, target, chosen, data)
        rows.append(row)
    if not any(row["chosen"] for row in rows):
        raise UserError(f"{folder} holds no usable registration of these volumes")
    write_json(out / "selection.json", rows)
    return rows


def _write_label(
    folder: Path,
    out: Path,
    target: RegistrationCase,
    chosen: RegistrationCase,
    data: RegistrationData,
) -> None:
    transform = read_transform(folder, target.key, chosen.key)
    if transform is None or chosen.label is None:
        raise UserError(f"{target.key}: the registration with {chosen.key} is gone; run it again")
    reference = read_volume(
        target.image, modality=data.modality, nominal_spacing=data.nominal_spacing
    )
    label = read_label(chosen.label, nominal_spacing=data.nominal_spacing)
    warped = warp_label(label, reference, transform)
    warped.CopyInformation(SimpleITK.ReadImage(str(target.image)))  # the header's own geometry
    with replacing(case_file(out, target.key)) as file:
        temporary = file.with_name(f"{file.name}.nii.gz")
        SimpleITK.WriteImage(warped, str(temporary), useCompression=True)
        temporary.replace(file)


def warped_label_dice(folder: Path, *, data: RegistrationData) -> list[dict[str, Any]]:
    """Return the Dice of labels warped between labelled training volumes, a row a pair.

    The quality that counts: agreement of intensities alone is best when nothing moves.
    """
    labelled = [case for case in data.training() if case.labelled and case.label is not None]
    rows = []
    for fixed in labelled:
        for moving in labelled:
            transform = None
            if fixed.key != moving.key and fixed.frame == moving.frame:
                transform = read_transform(folder, fixed.key, moving.key)
            if transform is None:
                continue
            truth, other = (
                read_label(case.label or "", nominal_spacing=data.nominal_spacing)
                for case in (fixed, moving)
            )
            warped = SimpleITK.GetArrayFromImage(warp_label(other, truth, transform))
            rows.append(
                {
                    "fixed": fixed.key,
                    "moving": moving.key,
                    "dice": _mean_dice(SimpleITK.GetArrayFromImage(truth), warped),
                }
            )
    return rows


def _mean_dice(truth: np.ndarray, pred: np.ndarray) -> float:
    values = [value for value in np.unique(truth) if value != 0]
    scores = []
    for value in values:
        one, other = truth == value, pred == value
        scores.append(2 * (one & other).sum() / (one.sum() + other.sum()))
    return float(np.mean(scores)) if scores else 0.0
