"""A volume that validates or tests is refused for the same faults as one that trains."""

import re

import nibabel as nib
import numpy as np
import pytest
from monai.data import CacheDataset
from monai.utils.enums import CommonKeys

from medseg_kit.bundle.errors import user_message
from medseg_kit.transforms.pipelines import volume_preprocessing

AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])
SHIFTED = np.diag([-1.5, 1.5, 8.0, 1.0])
IMAGE = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
LABEL = np.zeros((6, 5, 4), np.uint8)


def changed(array, value):
    array = array.astype(np.float32)
    array[2, 2, 2] = value
    return array


def load(folder, image=IMAGE, label=LABEL, affine=AFFINE):
    paths = {"image": str(folder / "scan.nii.gz"), "label": str(folder / "truth.nii.gz")}
    nib.save(nib.Nifti1Image(image, AFFINE), paths["image"])
    nib.save(nib.Nifti1Image(label, affine), paths["label"])
    preprocessing = volume_preprocessing((CommonKeys.IMAGE, CommonKeys.LABEL), orientation=None)
    case = {**paths, "annotated": [True, True, False]}
    return CacheDataset([case], preprocessing, progress=False)[0]


def test_pair__is_passed_on(tmp_path):
    assert load(tmp_path, label=changed(LABEL, 2))["label"].max() == 2


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"affine": SHIFTED}, r"truth.nii.gz lies up to 10.0 voxels beside its image"),
        ({"label": LABEL[:5]}, r"truth.nii.gz has size \(5, 5, 4\), its image \(6, 5, 4\)"),
        ({"label": changed(LABEL, 7)}, r"truth.nii.gz holds the value 7; .* classes 0 to 2"),
        ({"label": changed(LABEL, 0.5)}, "truth.nii.gz holds values that are no whole numbers"),
        ({"image": changed(IMAGE, np.nan)}, "scan.nii.gz holds NaN"),
        ({"image": np.stack([IMAGE] * 3, -1)}, r"scan.nii.gz has shape .*a single 3-D volume"),
    ],
)
def test_pair__a_fault_is_named_before_anything_runs(tmp_path, faults, message):
    with pytest.raises(RuntimeError) as caught:  # MONAI's, from the user's error
        load(tmp_path, **faults)
    assert re.search(message, user_message(caught.value))
