"""The training pipeline: crops of one size around the organ, no mirroring, the same by seed."""

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_kit.transforms.pipelines import volume_preprocessing, volume_training

ROI = (12, 12, 8)


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 16, 10)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:5, 3:6, 2:5] = 1
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}


def pipeline(**options):
    preprocessing = volume_preprocessing(("image", "label"))
    return volume_training(preprocessing, roi_size=ROI, **options)


def test_training__crops_have_the_size_and_integer_labels(case):
    (crop,) = pipeline(rotation_deg=15, scaling=0.1, intensity=0.2)(case)
    assert crop["image"].shape == crop["label"].shape == (1, *ROI)
    assert set(torch.unique(crop["label"]).tolist()) <= {0, 1}


def test_training__foreground_share_one_always_holds_the_organ(case):
    transform = pipeline(foreground_share=1.0, num_samples=8)
    assert all(crop["label"].any() for crop in transform(case))


def test_training__same_seed_same_crop(case):
    transform = pipeline(rotation_deg=15, scaling=0.1, intensity=0.2)
    crops = [transform.set_random_state(3)(case)[0]["image"] for _ in range(2)]
    assert torch.equal(crops[0], crops[1])


def test_training__small_volume_is_padded(case):
    preprocessing = volume_preprocessing(("image", "label"))
    (crop,) = volume_training(preprocessing, roi_size=(24, 24, 16))(case)
    assert crop["image"].shape == (1, 24, 24, 16)


def test_training__small_rotation_keeps_left_and_right(case):
    # the organ lies in the low half of the first axis
    transform = volume_training(
        volume_preprocessing(("image", "label")), roi_size=(20, 16, 10), rotation_deg=15
    )
    for seed in range(5):
        label = transform.set_random_state(seed)(case)[0]["label"][0]
        assert label[:10].sum() > label[10:].sum()
