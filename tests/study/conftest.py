import json

import nibabel as nib
import numpy as np
import pytest

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def save_label(path, values, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(values, dtype=np.uint8), affine), path)


def two_organs():
    """Liver (1) and spleen (2) in 10 x 10 x 6 voxels."""
    label = np.zeros((10, 10, 6), dtype=np.uint8)
    label[1:5, 2:8, 1:5], label[6:9, 2:8, 1:5] = 1, 2
    return label


@pytest.fixture
def dataset(tmp_path):
    """A prepared data set with three test patients at two sites, and predictions for them."""
    folder, pred_dir = tmp_path / "data", tmp_path / "pred"
    cases = []
    for index, site in enumerate(("north", "north", "south")):
        save_label(folder / "labels" / f"p{index}.nii.gz", two_organs())
        save_label(folder / "images" / f"p{index}.nii.gz", two_organs() * 50)
        save_label(pred_dir / f"p{index}.nii.gz", np.roll(two_organs(), index, axis=0))
        names = {"image": f"images/p{index}.nii.gz", "label": f"labels/p{index}.nii.gz"}
        cases.append({**names, "subject": f"p{index}", "site": site})
    write_datalist(folder, test=cases)
    return folder, pred_dir


def write_datalist(folder, **changes):
    content = {
        "schema": 1,
        "name": "toy",
        "description": "toy",
        "licence": "CC0-1.0",
        "citation": "none",
        "modality": "CT",
        "intensity": "HU",
        "spacing": "valid",
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "annotated": ["liver", "spleen"],
        "site": None,
        "training": [],
        "validation": [],
        "test": [],
        "sha256": {},
    }
    path = folder / "datalist.json"
    if path.exists():
        content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))
