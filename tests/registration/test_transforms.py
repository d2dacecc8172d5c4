"""Directions, recovery of known movements, and warping."""

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK

from medseg_kit.registration import elastix, plain
from medseg_kit.registration.elastix import Stages
from medseg_kit.registration.resampling import mutual_information, round_trip, warp_label
from medseg_kit.registration.settings import affine_part, make_settings, register_images
from medseg_kit.registration.volumes import region_of_interest
from medseg_kit.typing import UserError
from tests.registration.conftest import SIZE, SPACING, ellipsoid, overlap

QUICK = Stages(iterations=120)


def corner_error(transform, expected, size=SIZE):
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
    transform, iterations = elastix.register(image, image, QUICK)
    assert corner_error(transform, lambda point: point) < 1
    assert iterations == 4 * 120


@pytest.mark.slow
@pytest.mark.parametrize("stages", [QUICK, replace(QUICK, rigid=True)], ids=["affine", "rigid"])
def test_translation__is_recovered_from_fixed_to_moving(stages):
    """A landmark of the fixed image maps to its place in the moving one."""
    fixed, _ = ellipsoid()
    moving, _ = ellipsoid((4, -3, 0))
    transform, _ = elastix.register(fixed, moving, stages)
    shift = np.array([4, -3, 0]) * SPACING
    landmark = np.array([24, 20, 6]) * SPACING
    found = np.array(transform.TransformPoint(landmark.tolist()))
    assert np.linalg.norm((found - landmark - shift) / SPACING) < 0.5
    assert corner_error(transform, lambda point: point + shift) < 1.5


@pytest.mark.slow
def test_affine__is_recovered():
    fixed, truth = ellipsoid()
    moving, label = ellipsoid((2, 1, 0), 1.2)
    transform, _ = elastix.register(fixed, moving, QUICK)
    centre = np.array([24, 20, 6]) * SPACING
    shift = np.array([2, 1, 0]) * SPACING
    assert corner_error(transform, lambda p: centre + shift + 1.2 * (p - centre)) < 1.5
    assert overlap(truth, warp_label(label, truth, transform)) > 0.9


@pytest.mark.slow
def test_conversion__maps_points_as_transformix_does():
    """The SimpleITK transform is elastix's, B-spline included, on a turned grid as well."""
    import itk

    turned = []
    for image in (ellipsoid()[0], ellipsoid((3, 2, 0), 1.15)[0]):
        image.SetDirection([0, -1, 0, 1, 0, 0, 0, 0, 1])
        image.SetOrigin((5.0, -7.0, 11.0))
        turned.append(image)
    stages = Stages(iterations=20, bspline=20.0)
    maps = elastix.run(*turned, stages)
    transform, _ = elastix.register(*turned, stages)
    points = np.array(
        [turned[0].TransformIndexToPhysicalPoint(p) for p in [(9, 8, 3), (30, 25, 7)]]
    )
    parameters = itk.ParameterObject.New()
    for content in maps:
        parameters.AddParameterMap(content)
    mesh = itk.Mesh[itk.F, 3].New()
    for at, point in enumerate(points):
        mesh.SetPoint(at, point.tolist())
    method = itk.TransformixFilter.New(elastix.to_itk(turned[1]))
    method.SetTransformParameterObject(parameters)
    method.SetInputMesh(mesh)
    method.Update()
    for at, point in enumerate(points):
        expected = np.array(method.GetOutputMesh().GetPoint(at))
        np.testing.assert_allclose(transform.TransformPoint(point.tolist()), expected, atol=1e-3)


@pytest.mark.slow
def test_bspline__is_a_composite_that_warps_better_than_nothing():
    fixed, truth = ellipsoid()
    moving, label = ellipsoid((3, 2, 0), 1.15)
    transform, _ = elastix.register(fixed, moving, replace(QUICK, bspline=20.0))
    assert overlap(truth, warp_label(label, truth, transform)) > 0.88
    assert overlap(truth, label) < 0.85
    assert affine_part(transform).IsLinear()


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [None, 24.0], ids=["affine", "bspline"])
def test_plain__keeps_an_image_on_itself(spacing):
    """Its steps are long for a small phantom, and it is known to be poor: no more is asked."""
    image, label = ellipsoid()
    transform, iterations = plain.register(image, image, bspline=spacing)
    assert overlap(label, warp_label(label, label, transform)) > 0.75
    assert iterations > 0


def test_register_images__refuses_what_is_no_fit(monkeypatch):
    image, _ = ellipsoid()
    flat = SimpleITK.ScaleTransform(3, (1.0, 1.0, 0.01))
    monkeypatch.setattr(elastix, "register", lambda *_: (flat, 1))
    with pytest.raises(UserError, match=r"scales the volume by 0\.01"):
        register_images(image, image, make_settings(modality="MR"))


def test_settings__by_modality_and_wrong_input():
    assert make_settings(modality="MR").region == "centre"
    assert make_settings(modality="CT").region == "body"
    assert make_settings("plain", modality="MR").region == "full"
    assert make_settings("affine_bspline", modality="CT").stages.bspline == 24
    with pytest.raises(UserError, match="method 'magic'"):
        make_settings("magic", modality="MR")
    with pytest.raises(UserError, match="region 'heart'"):
        make_settings(modality="MR", region="heart")
    with pytest.raises(UserError, match="spline_spacing is 0"):
        make_settings(modality="MR", spline_spacing=0)
    with pytest.raises(UserError, match="metric 'ssd'"):
        elastix.register(*ellipsoid(), Stages(metric="ssd"))


def test_warp_label__makes_no_new_value():
    _, label = ellipsoid()
    transform = SimpleITK.AffineTransform(3)
    transform.Rotate(0, 1, 0.3)
    warped = SimpleITK.GetArrayFromImage(warp_label(label, label, transform))
    assert set(np.unique(warped)) <= {0, 1, 2}


def test_round_trip__identity_changes_nothing():
    image, _ = ellipsoid()
    stay = SimpleITK.Transform(3, SimpleITK.sitkIdentity)
    returned, inside = round_trip(image, image, stay, stay)
    assert inside.all()
    np.testing.assert_allclose(returned, SimpleITK.GetArrayFromImage(image), atol=1e-6)


def test_round_trip__counts_dark_voxels_as_inside():
    image, _ = ellipsoid()
    away = SimpleITK.TranslationTransform(3, (24 * SPACING[0], 0.0, 0.0))
    _, inside = round_trip(image * 0, image, away, away.GetInverse())
    assert inside.mean() == pytest.approx(0.5, abs=0.03)


def test_mutual_information__of_an_image_with_itself_is_one():
    image = SimpleITK.GetArrayFromImage(ellipsoid()[0])
    noise = np.random.default_rng(0).random(image.shape)
    assert mutual_information(image, image) == pytest.approx(1)
    assert mutual_information(image, noise) < 0.2
    assert mutual_information(image * 0, image) == 0
    assert mutual_information(image[:0], image[:0]) == 0


def test_mutual_information__golden_value():
    """Two by two bins, hand-computed: log 2 of information, entropy log 2, and independence."""
    first, second = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0.2, 0.8, 0.2, 0.8])
    assert mutual_information(first, 1 - first) == pytest.approx(1)
    assert mutual_information(first, second) == pytest.approx(0)


def test_region__middle_half_in_plane_body_and_full():
    image, _ = ellipsoid()
    region = region_of_interest(image, "centre")
    assert region.GetSize() == (24, 20, 12)
    assert region.GetOrigin() == (12 * 1.5, 10 * 1.5, 0)
    body = region_of_interest(SimpleITK.Clamp(image - 0.4, lowerBound=0.0), "body")
    assert body.GetSize() == (23, 17, 7)
    assert region_of_interest(image, "full").GetSize() == SIZE
    image.SetSpacing((1.0, 1.0, 1.0))  # the fewest voxels are the slices', as in all of the project
    assert region_of_interest(image, "centre").GetSize() == (24, 20, 12)
    assert region_of_interest(image * 0, "body").GetSize() == SIZE
