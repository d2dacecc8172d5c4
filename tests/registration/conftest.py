"""Small synthetic volumes, and a prepared data set of them."""

import json

import numpy as np
import pytest
import SimpleITK

SPACING = (1.5, 1.5, 5.0)


def ellipsoid(shift=(0.0, 0.0, 0.0), scale=1.0, *, size=(48, 40, 12)):
    """Return an image in [0, 1] and a label with two structures; shift in voxels (x, y, z)."""
    x, y, z = np.meshgrid(*(np.arange(side, dtype=float) for side in size), indexing="ij")

    def inside(centre, radii):
        parts = zip((x, y, z), centre, shift, radii, strict=True)
        return sum(((p - c - s) / (r * scale)) ** 2 for p, c, s, r in parts) < 1

    outer, inner = inside((24, 20, 6), (12, 9, 4)), inside((27, 21, 6), (5, 4, 3))
    image = 0.2 + 0.5 * outer + 0.3 * inner + 0.002 * x
    label = outer.astype(np.uint8) + inner
    return to_image(np.clip(image, 0, 1).astype(np.float32)), to_image(label)


def to_image(array):
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0).copy())
    image.SetSpacing(SPACING)
    return image


@pytest.fixture
def dataset(tmp_path):
    """Return a data set of four patients with one frame, in MR."""
    folder = tmp_path / "data"
    shifts = {"a": (0, 0, 0), "b": (2, 1, 0), "c": (-2, 2, 0), "d": (3, -2, 0)}
    cases = []
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for name, shift in shifts.items():
        image, label = ellipsoid(shift)
        SimpleITK.WriteImage(image, str(folder / "images" / f"{name}.nii.gz"))
        SimpleITK.WriteImage(label, str(folder / "labels" / f"{name}.nii.gz"))
        case = {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}
        cases.append({**case, "subject": name})
    content = {
        "schema": 1,
        "name": "phantoms",
        "modality": "MR",
        "intensity": "arbitrary",
        "spacing": "valid",
        "labels": {"0": "background", "1": "outer", "2": "inner"},
        "annotated": ["outer", "inner"],
        "training": cases,
        "validation": [],
        "test": [],
        "sha256": {},
    }
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder
