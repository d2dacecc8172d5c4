"""The lean route gives what the transforms give: inputs bit for bit, label maps exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from medseg_kit.inference.cases import Case
from medseg_kit.inference.grid import _affine_grid, make_grid
from medseg_kit.inference.inversion import label_map, probabilities, winners
from medseg_kit.inference.lean import prepare
from medseg_kit.inference.reading import digest_of, read_volume
from medseg_kit.inference.routes import Answer, LeanRoute
from medseg_kit.transforms.pipelines import (
    VolumePostprocessing,
    volume_postprocessing,
    volume_preprocessing,
)

SHAPE = (22, 19, 13)
SETTINGS = [
    {"spacing": (1.5, 1.5, 2.0), "window": (-175, 250)},
    {"spacing": (1, 1, 1), "window": None},
    {"spacing": (3, 3, 3), "window": (-100, 100), "orientation": "LPS"},
    {"spacing": (2, 2, 2), "orientation": None},
    {"spacing": None},
    {"spacing": None, "orientation": None, "intensity": "minmax"},
    {"spacing": (2, 2, 2), "intensity": "minmax"},
    {"spacing": None, "orientation": None, "intensity": "percentile"},
    {"spacing": (1, 1, 1), "intensity": "percentile"},
]


def _both(path, settings):
    """Return the volume of a file through the transforms and through the lean route."""
    preprocessing = volume_preprocessing(**settings)
    reference = preprocessing({"image": str(path)})
    case = Case("a", path, (path,))
    image, grid = prepare(read_volume(case, digest_of(case.files)), preprocessing)
    return preprocessing, reference, image, grid


def _logits(kit, shape, classes=4):
    return torch.from_numpy(
        np.stack([kit.smooth(shape, seed, np.float32) / 20 for seed in range(classes)])
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_prepare__equals_the_transforms(kit, tmp_path, geometry, settings):
    path = kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth(SHAPE), geometry)

    _, reference, image, _ = _both(path, settings)

    assert torch.equal(image.as_tensor(), reference["image"].as_tensor())
    assert torch.allclose(image.affine, reference["image"].affine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
def test_label_map__equals_the_transforms(kit, tmp_path, geometry, settings):
    path = kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth(SHAPE), geometry)
    preprocessing, reference, _, grid = _both(path, settings)
    logits = _logits(kit, grid.shape)
    expected = volume_postprocessing(preprocessing)({**reference, "pred": logits.clone()})["pred"]

    result = label_map(logits, *winners(logits), grid)

    assert result.dtype == np.uint8
    assert len(np.unique(result)) > 2
    np.testing.assert_array_equal(result, expected[0].numpy())


def test_lean_route__keeps_the_same_regions(kit, tmp_path):
    path = kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth(SHAPE), "lps")
    preprocessing, reference, _, grid = _both(path, {"spacing": (2, 2, 2)})
    postprocessing = volume_postprocessing(preprocessing, num_regions=[1, None, 2])
    logits = _logits(kit, grid.shape)
    expected = postprocessing({**reference, "pred": logits.clone()})["pred"][0].numpy()

    result = LeanRoute(preprocessing, postprocessing).finish(Answer.of(logits), grid)

    np.testing.assert_array_equal(result, expected)
    uncleaned = label_map(logits, *winners(logits), grid)
    assert (uncleaned != result).any()
    assert np.isin(uncleaned[uncleaned != result], [1, 3]).all()


@pytest.mark.parametrize("filled", [(slice(0, 3), slice(2, 6), slice(1, 4)), None])
def test_label_map__where_most_or_all_is_background(kit, tmp_path, geometry, filled):
    path = kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth(SHAPE), geometry)
    preprocessing, reference, _, grid = _both(path, {"spacing": (1.5, 1.5, 2.0)})
    logits = _logits(kit, grid.shape)
    background = torch.full(grid.shape, 1000.0)
    if filled is not None:
        background[filled] = 0
    logits[0] += background
    expected = volume_postprocessing(preprocessing)({**reference, "pred": logits.clone()})["pred"]

    result = label_map(logits, *winners(logits), grid)

    assert result.any() == (filled is not None)
    np.testing.assert_array_equal(result, expected[0].numpy())


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64, np.dtype(">i2")])
def test_prepare__types_of_voxels(kit, tmp_path, dtype):
    array = (kit.smooth(SHAPE) % 100).astype(dtype)
    path = kit.write_nifti(tmp_path / "a.nii", array)
    _, reference, image, _ = _both(path, {"spacing": (2, 2, 2)})
    assert torch.equal(image.as_tensor(), reference["image"].as_tensor())


def test_label_map__ties_go_to_the_first_class():
    grid = make_grid((4, 4, 4), np.eye(4), orientation="RAS", spacing=(0.5, 0.5, 0.5))
    logits = torch.zeros(3, *grid.shape)
    assert not label_map(logits, *winners(logits), grid).any()


def test_label_map__a_class_that_wins_only_between_voxels():
    # along one axis: class 1 wins at 0, class 2 at 2 mm, class 3 is second in both
    grid = make_grid((5, 1, 1), np.eye(4), orientation="RAS", spacing=(4, 1, 1))
    probability = torch.tensor([[0.02, 0.02], [0.5, 0.0], [0.0, 0.5], [0.48, 0.48]])
    logits = torch.log(probability + 1e-9)[:, :, None, None]
    result = label_map(logits, *winners(logits), grid)
    np.testing.assert_array_equal(result[:, 0, 0], [1, 3, 3, 3, 2])


def test_probabilities__equal_the_transforms(kit, tmp_path):
    path = kit.write_nifti(tmp_path / "a.nii.gz", kit.smooth(SHAPE), "lps")
    preprocessing, reference, _, grid = _both(path, {"spacing": (2, 2, 2)})
    logits = _logits(kit, grid.shape)
    steps = VolumePostprocessing(preprocessing).transforms[:2]
    data = {**reference, "pred": logits.clone()}
    for step in steps:
        data = step(data)

    result = np.stack(list(probabilities(logits, grid)))

    np.testing.assert_allclose(result, data["pred"].numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(7, 5, 9), (1, 6, 1)])
def test_affine_grid__slabs_equal_torch(size):
    theta = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = functional.affine_grid(theta[None], [1, 1, *size], align_corners=False)
    parts = [_affine_grid(theta, size, first, first + 1) for first in range(size[0])]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_winners__equal_top_two():
    logits = torch.randn(5, 6, 7, 8)
    labels, leads = winners(logits)
    top = logits.topk(2, dim=0)
    assert torch.equal(labels.long(), top.indices[0])
    assert torch.equal(leads, top.values[0] - top.values[1])
