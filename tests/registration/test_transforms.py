"""Directions, recovery of known movements, and warping."""

import numpy as np
import pytest
import SimpleITK

from medseg_kit.registration import elastix, plain
from medseg_kit.registration.elastix import Settings
from medseg_kit.registration.resampling import cycle, mutual_information, warp_label
from medseg_kit.registration.volumes import nominal, region_of_interest
from medseg_kit.typing import UserError
from tests.registration.conftest import SPACING, ellipsoid

QUICK = Settings(iterations=120)


def corner_error(transform, expected, size=(48, 40, 12)):
    """Return the mean distance in voxels of the corners from where they belong."""
    errors = []
    for corner in np.ndindex(2, 2, 2):
        point = np.array(corner) * (np.array(size) - 1) * SPACING
        moved = np.array(transform.TransformPoint(point.tolist()))
        errors.append(np.linalg.norm((moved - expected(point)) / SPACING))
    return float(np.mean(errors))


@pytest.mark.slow
def test_identity__stays_where_it_is():
    image, _ = ellipsoid()
    assert corner_error(elastix.register(image, image, QUICK), lambda point: point) < 1


@pytest.mark.slow
@pytest.mark.parametrize("rigid", [False, True])
def test_translation__is_recovered_from_fixed_to_moving(rigid):
    """A landmark of the fixed image maps to its place in the moving one."""
    fixed, _ = ellipsoid()
    moving, _ = ellipsoid((4, -3, 0))
    transform = elastix.register(fixed, moving, Settings(rigid=rigid, iterations=120))
    shift = np.array([4, -3, 0]) * SPACING
    landmark = np.array([24, 20, 6]) * SPACING
    found = np.array(transform.TransformPoint(landmark.tolist()))
    assert np.linalg.norm((found - landmark - shift) / SPACING) < 0.5
    assert corner_error(transform, lambda point: point + shift) < 1.5


@pytest.mark.slow
def test_bspline__is_a_composite_that_warps_better_than_nothing():
    fixed, truth = ellipsoid()
    moving, label = ellipsoid((3, 2, 0), 1.15)
    transform = elastix.register(fixed, moving, Settings(bspline=20.0, iterations=120))
    warped = warp_label(label, truth, transform)
    assert overlap(truth, warped) > 0.88
    assert overlap(truth, label) < 0.85


@pytest.mark.slow
def test_plain__recovers_a_translation_of_volumes_large_enough():
    fixed, truth = ellipsoid()
    moving, label = ellipsoid((3, -2, 0))
    large = [SimpleITK.Expand(image, [2, 2, 4]) for image in (fixed, moving)]
    assert overlap(truth, warp_label(label, truth, plain.register(*large))) > 0.95


def overlap(first, second):
    one, other = (SimpleITK.GetArrayFromImage(image) > 0 for image in (first, second))
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def test_warp_label__makes_no_new_value():
    _, label = ellipsoid()
    transform = SimpleITK.AffineTransform(3)
    transform.Rotate(0, 1, 0.3)
    warped = SimpleITK.GetArrayFromImage(warp_label(label, label, transform))
    assert set(np.unique(warped)) <= {0, 1, 2}


def test_cycle__identity_changes_nothing():
    image, _ = ellipsoid()
    stay = SimpleITK.Transform(3, SimpleITK.sitkIdentity)
    returned, coverage = cycle(image, image, stay, stay)
    assert coverage == 1
    np.testing.assert_allclose(
        SimpleITK.GetArrayFromImage(returned), SimpleITK.GetArrayFromImage(image), atol=1e-6
    )


def test_mutual_information__of_an_image_with_itself_is_one():
    image = SimpleITK.GetArrayFromImage(ellipsoid()[0])
    noise = np.random.default_rng(0).random(image.shape)
    assert mutual_information(image, image) == pytest.approx(1)
    assert mutual_information(image, noise) < 0.2


def test_region__middle_half_in_plane_for_mr():
    image, _ = ellipsoid()
    region = region_of_interest(image, modality="MR")
    assert region.GetSize() == (24, 20, 12)
    assert region.GetOrigin() == (12 * 1.5, 10 * 1.5, 0)


def test_nominal_spacing__thin_slices_above_twelve():
    assert nominal((10, 10, 12))[2] == 10
    assert nominal((10, 10, 13))[2] == 5


def test_metric__unknown():
    image, _ = ellipsoid()
    with pytest.raises(UserError, match="metric 'ssd'"):
        elastix.register(image, image, Settings(metric="ssd"))
