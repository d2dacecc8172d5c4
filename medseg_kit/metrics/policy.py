"""What a score is when a mask is empty: strict (default), or as the published code (`reference`).

| prediction | reference | strict (Dice, HD and HD95) | reference (Dice, HD and HD95) |
|------------|-----------|----------------------------|-------------------------------|
| voxels     | voxels    | measured                   | measured                      |
| voxels     | empty     | 0, undefined               | 1, 0                          |
| empty      | voxels    | 0, undefined               | 0, 0                          |
| empty      | empty     | 1, 0                       | 0, 0                          |

The reference policy exists for parity with the tables of TransUNet, Swin-Unet and CS-Unet only: it
rewards a missed structure with a perfect distance. An undefined distance is NaN, left out of the
mean, and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from medseg_kit.metrics.overlap import check_same_shape, dice_score
from medseg_kit.metrics.surface import hausdorff, union_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

Policy = Literal["strict", "reference"]
NAN = float("nan")

# (prediction has voxels, reference has voxels) -> (Dice, HD and HD95)
EMPTY_MASK_SCORES: dict[str, dict[tuple[bool, bool], tuple[float, float]]] = {
    "strict": {(True, False): (0.0, NAN), (False, True): (0.0, NAN), (False, False): (1.0, 0.0)},
    "reference": {(True, False): (1.0, 0.0), (False, True): (0.0, 0.0), (False, False): (0.0, 0.0)},
}


@dataclass(frozen=True)
class MaskScore:
    """Scores of one structure in one case.

    Attributes:
        dice: Dice in [0, 1].
        hd_vox: Hausdorff distance in voxels, NaN when undefined.
        hd_mm: Hausdorff distance in mm, NaN when undefined or when the voxel size is unknown.
        hd95_vox: HD95 in voxels, NaN when undefined.
        hd95_mm: HD95 in mm, NaN when undefined or when the voxel size is unknown.
        missed: The reference has the structure, the prediction has no voxel of it.
        spurious: The prediction has the structure, the reference has none.
    """

    dice: float
    hd_vox: float
    hd_mm: float
    hd95_vox: float
    hd95_mm: float
    missed: bool
    spurious: bool


def check_policy(policy: str) -> None:
    """Refuse a policy that does not exist.

    Raises:
        ValueError: If `policy` is neither "strict" nor "reference".
    """
    if policy not in EMPTY_MASK_SCORES:
        raise ValueError(
            f"unknown metric policy {policy!r}; choose one of {list(get_args(Policy))}"
        )


def score_masks(
    pred: npt.NDArray[np.bool_],
    reference: npt.NDArray[np.bool_],
    *,
    spacing: Sequence[float] | None = None,
    policy: str = "strict",
) -> MaskScore:
    """Return Dice, HD and HD95 of one structure, with the policy's answer for empty masks.

    Args:
        pred: Boolean mask, shape (H, W[, D]).
        reference: Boolean mask of the same shape.
        spacing: Voxel size in mm, ordered as the array axes; None when it is not known (then
            `hd_mm` and `hd95_mm` are NaN).
        policy: "strict" or "reference" (see the table above).

    Raises:
        ValueError: If the shapes differ or the policy is unknown.
    """
    check_policy(policy)
    check_same_shape(pred, reference)
    has_pred, has_reference = bool(pred.any()), bool(reference.any())
    missed, spurious = has_reference and not has_pred, has_pred and not has_reference
    if not (has_pred and has_reference):
        dice, distance = EMPTY_MASK_SCORES[policy][has_pred, has_reference]
        millimetres = NAN if spacing is None else distance
        return MaskScore(
            dice, distance, millimetres, distance, millimetres, missed=missed, spurious=spurious
        )
    box = union_box(pred, reference)
    pred, reference = pred[box], reference[box]
    hd_vox, hd95_vox = hausdorff(pred, reference)
    if spacing is None:
        hd_mm = hd95_mm = NAN
    elif np.ptp(spacing) == 0:
        hd_mm, hd95_mm = hd_vox * float(spacing[0]), hd95_vox * float(spacing[0])
    else:
        hd_mm, hd95_mm = hausdorff(pred, reference, spacing=spacing)
    return MaskScore(
        dice=dice_score(pred, reference),
        hd_vox=hd_vox,
        hd_mm=hd_mm,
        hd95_vox=hd95_vox,
        hd95_mm=hd95_mm,
        missed=missed,
        spurious=spurious,
    )
