"""From a finished pair to the tensors of a training step: points land where ITK puts them."""

import numpy as np
import pytest
import SimpleITK
import torch

from medseg_kit.files import write_json
from medseg_kit.registration.cases import read_cases
from medseg_kit.registration.mapping import RegistrationMaps
from medseg_kit.registration.maps import write_maps
from medseg_kit.typing import UserError


def finish(folder, fixed, moving, transform):
    """Write a pair as `medseg register` leaves it."""
    stem = folder / "pairs" / f"{fixed}__{moving}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteTransform(transform, str(stem.with_suffix(".h5")))
    write_json(stem.with_suffix(".json"), {"success": True})


def affine():
    transform = SimpleITK.AffineTransform(3)
    transform.Rotate(0, 1, 0.1)
    transform.Translate((3.0, -4.5, 2.0))
    return transform


def spline(image):
    transform = SimpleITK.BSplineTransformInitializer(image, [2, 2, 1], order=3)
    count = len(transform.GetParameters())
    transform.SetParameters((2 * np.sin(np.arange(count))).tolist())
    return SimpleITK.CompositeTransform([affine(), transform])


@pytest.mark.parametrize("kind", ["affine", "bspline"])
def test_points__land_where_the_transform_puts_them(dataset, tmp_path, kind):
    data = read_cases(dataset, labelled=1)
    fixed, moving = (
        SimpleITK.ReadImage(str(dataset / "images" / f"{name}.nii.gz")) for name in "ab"
    )
    transform = affine() if kind == "affine" else spline(fixed)
    finish(tmp_path, "a", "b", transform)
    assert write_maps(tmp_path, [("a", "b"), ("b", "a")], data=data) is not None
    maps = RegistrationMaps(tmp_path, ["a", "b", "c"])
    assert maps.has.tolist() == [[False, True, False], [False] * 3, [False] * 3]
    points = torch.tensor([[24.0, 20.0, 6.0], [12.0, 15.0, 4.0], [30.0, 22.0, 8.0]])
    found, valid = maps.map_points(0, 1, points)
    assert bool(valid.all())
    for point, mapped in zip(points.tolist(), found.tolist(), strict=True):
        physical = transform.TransformPoint(fixed.TransformContinuousIndexToPhysicalPoint(point))
        expected = moving.TransformPhysicalPointToContinuousIndex(physical)
        tolerance = 1e-3 if kind == "affine" else 0.3
        np.testing.assert_allclose(mapped, expected, atol=tolerance)


def test_maps__without_a_finished_pair(dataset, tmp_path):
    data = read_cases(dataset, labelled=1)
    assert write_maps(tmp_path, [("a", "b")], data=data) is None
    with pytest.raises(UserError, match=r"maps\.pt does not exist"):
        RegistrationMaps(tmp_path, ["a", "b"])
