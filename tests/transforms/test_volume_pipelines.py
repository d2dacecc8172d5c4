from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_kit.transforms.pipelines import volume_postprocessing, volume_preprocessing


@pytest.fixture
def image(tmp_path):
    array = np.random.default_rng(0).integers(-300, 300, (9, 8, 7)).astype(np.int16)
    affine = np.diag([-1.0, 2.0, 1.5, 1.0])
    path = tmp_path / "case.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_volume_preprocessing__grid_and_intensities(image):
    preprocessing = volume_preprocessing(spacing=[1, 1, 1], window=[-200, 200])
    result = preprocessing({"image": str(image), "image_path": str(image)})
    assert result["image"].shape == (1, 9, 15, 10)
    assert float(result["image"].min()) == 0
    assert float(result["image"].max()) <= 1
    assert result["image"].dtype == torch.float32
    assert (preprocessing.spacing, preprocessing.window) == ((1, 1, 1), (-200, 200))


def test_volume_postprocessing__one_channel_on_the_grid_of_the_file(image):
    preprocessing = volume_preprocessing(spacing=[1, 1, 1])
    data = preprocessing({"image": str(image)})
    logits = torch.zeros(3, *data["image"].shape[1:])
    logits[2, :4] = 5  # the patient's left half: the file's first axis runs to the left

    result = volume_postprocessing(preprocessing)({**data, "pred": logits})["pred"]

    assert result.shape == (1, 9, 8, 7)
    assert result.dtype == torch.uint8
    assert result[0, 5:].eq(2).all()
    assert result[0, :5].eq(0).all()


def test_volume_postprocessing__saves_where_told(image, tmp_path):
    preprocessing = volume_preprocessing()
    postprocessing = volume_postprocessing(preprocessing, output_dir=str(tmp_path / "out"))
    data = preprocessing({"image": str(image)})
    postprocessing({**data, "pred": torch.randn(3, *data["image"].shape[1:])})
    saved = nib.load(tmp_path / "out" / "case" / "case.nii.gz")
    assert saved.shape == (9, 8, 7)
    np.testing.assert_array_equal(saved.affine, nib.load(image).affine)
