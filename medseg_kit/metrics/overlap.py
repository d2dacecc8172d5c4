"""Dice overlap of two binary masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


def check_same_shape(pred: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> None:
    """Refuse two masks that are not on one grid.

    Raises:
        ValueError: If the shapes differ.
    """
    if pred.shape != reference.shape:
        raise ValueError(
            f"prediction has shape {pred.shape}, reference {reference.shape}; "
            "resample one of them to the other's grid first"
        )


def dice_score(pred: npt.NDArray[np.bool_], reference: npt.NDArray[np.bool_]) -> float:
    """Return the Dice coefficient 2|A and B| / (|A| + |B|), NaN when both masks are empty.

    Args:
        pred: Boolean mask, shape (H, W[, D]).
        reference: Boolean mask of the same shape.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import numpy as np
        >>> dice_score(np.array([True, True, False]), np.array([True, False, False]))
        0.6666666666666666
    """
    check_same_shape(pred, reference)
    total = int(np.count_nonzero(pred)) + int(np.count_nonzero(reference))
    if total == 0:
        return float("nan")
    return 2.0 * int(np.count_nonzero(pred & reference)) / total
