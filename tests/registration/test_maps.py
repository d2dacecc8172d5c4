"""From a finished pair to the tensors of a training step: points land where ITK puts them."""

import numpy as np
import pytest
import SimpleITK
import torch

from medseg_kit.data.volume_slices import VolumeSlices
from medseg_kit.registration.cases import read_cases
from medseg_kit.registration.mapping import RegistrationMaps
from medseg_kit.registration.maps import write_maps
from medseg_kit.registration.settings import make_settings
from medseg_kit.registration.store import PairStore
from medseg_kit.transforms.pipelines import volume_preprocessing
from medseg_kit.typing import UserError
from tests.registration.conftest import SIZE, to_image

DONE = {"success": True, "reason": None}


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


def read(dataset, tmp_path):
    cases = read_cases(dataset, labelled=1).section()
    return cases, PairStore(tmp_path / "out", "MR", make_settings(modality="MR"))


@pytest.mark.parametrize("kind", ["affine", "bspline", "other spacing"])
def test_points__land_where_the_transform_puts_them(dataset, tmp_path, kind):
    cases, store = read(dataset, tmp_path)
    if kind == "other spacing":
        image = SimpleITK.ReadImage(str(cases[1].image))
        image.SetSpacing([1.4 * image.GetSpacing()[0], *image.GetSpacing()[1:]])
        SimpleITK.WriteImage(image, str(cases[1].image))
    fixed, moving = (SimpleITK.ReadImage(str(case.image)) for case in cases[:2])
    transform = spline(fixed) if kind == "bspline" else affine()
    store.save(cases[0], cases[1], DONE, transform)
    assert write_maps(store, cases) is not None
    maps = RegistrationMaps(store.folder, ["a", "b", "c"])
    assert maps.has.tolist() == [[False, True, False], [False] * 3, [False] * 3]
    points = torch.tensor([[24.0, 20.0, 6.0], [12.0, 15.0, 4.0], [30.0, 22.0, 8.0]])
    found, valid = maps.map_points(0, 1, points)
    assert bool(valid.all())
    assert not maps.map_points(0, 2, points)[1].any()  # a pair that failed, or was not registered
    for point, mapped in zip(points.tolist(), found.tolist(), strict=True):
        physical = transform.TransformPoint(fixed.TransformContinuousIndexToPhysicalPoint(point))
        expected = moving.TransformPhysicalPointToContinuousIndex(physical)
        tolerance = 0.3 if kind == "bspline" else 1e-3
        np.testing.assert_allclose(mapped, expected, atol=tolerance)


def test_maps__of_volumes_that_have_lost_their_spacing(make_dataset, tmp_path):
    """The transform lives on the nominal spacing, the points on voxels."""
    header = {"spacing": "lost", "labels": {"0": "background", "1": "left ventricle"}}
    dataset = make_dataset(annotated=["left ventricle"], **header)
    cases, store = read(dataset, tmp_path)
    assert cases[0].spacing == (1.5, 1.5, 10.0)
    shift = SimpleITK.TranslationTransform(3, (3.0, -1.5, 10.0))  # two, one and one voxels
    store.save(cases[0], cases[1], DONE, shift)
    write_maps(store, cases)
    found, _ = RegistrationMaps(store.folder, ["a", "b"]).map_points(
        0, 1, torch.tensor([[20.0, 20.0, 5.0]])
    )
    torch.testing.assert_close(found, torch.tensor([[22.0, 19.0, 6.0]]), atol=1e-4, rtol=0)


def test_maps__without_a_finished_pair(dataset, tmp_path):
    cases, store = read(dataset, tmp_path)
    assert write_maps(store, cases) is None
    with pytest.raises(UserError, match=r"maps\.pt does not exist"):
        RegistrationMaps(tmp_path, ["a", "b"])


# The second turns both axes of a slice, the third cuts coronally what was acquired axially.
@pytest.mark.parametrize(("orientation", "direction"), [(None, None), ("RAS", None), (None, "A")])
def test_pixels__show_the_voxels_that_they_are_mapped_to(dataset, tmp_path, orientation, direction):
    cases, store = read(dataset, tmp_path)
    store.save(cases[0], cases[1], DONE, affine())
    write_maps(store, cases)
    maps = RegistrationMaps(store.folder, ["a", "b"], orientation=orientation, direction=direction)
    preprocessing = volume_preprocessing(("image",), orientation=orientation, intensity="minmax")
    slices = torch.tensor([0, 3, 11])
    pixels = torch.tensor([[5.0, 9.0], [60.0, 20.0], [90.0, 58.0]])  # column, row
    voxels = maps.pixels_to_voxels(0, slices, pixels, size=(64, 96))
    for axis, last in enumerate(side - 1 for side in SIZE):
        position = np.indices(SIZE)[axis].astype(np.float32)
        SimpleITK.WriteImage(to_image(position), str(tmp_path / "position.nii.gz"))
        cutter = VolumeSlices(
            preprocessing, image_size=(64, 96), num_classes=2, direction=direction
        )
        images, _, _ = cutter.cut({"image": tmp_path / "position.nii.gz"})
        shown = last * images[slices, 0, pixels[:, 1].long(), pixels[:, 0].long()]
        turned = orientation is not None and axis < 2
        mapped = last - voxels[:, axis] if turned else voxels[:, axis]
        torch.testing.assert_close(mapped, shown, atol=1e-3, rtol=0)
    back = maps.voxels_to_pixels(0, voxels, size=(64, 96))
    assert torch.equal(back[0], slices)
    torch.testing.assert_close(back[1], pixels)
