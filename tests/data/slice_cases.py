"""Small volumes in files for the tests of slices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])


def write_case(
    folder: Path, name: str, *, shape: tuple[int, ...] = (12, 10, 4), seed: int = 0, **extra: Any
) -> dict[str, Any]:
    """Write an image and a label with the classes 0 to 2; return the datalist dictionary."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, shape).astype(np.uint8)
    image = (rng.normal(size=shape) * 50 + 200 * label).astype(np.float32)
    for kind, array in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), folder / kind / f"{name}.nii.gz")
    return {
        "image": str(folder / "images" / f"{name}.nii.gz"),
        "label": str(folder / "labels" / f"{name}.nii.gz"),
        "subject": name.split("_", maxsplit=1)[0],
        **extra,
    }
