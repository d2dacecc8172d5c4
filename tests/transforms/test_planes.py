"""Slicing axes and resizing; image and label stay on top of each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from medseg_kit.transforms.planes import resize_slices, slicing_axis, through_plane


@pytest.mark.parametrize(
    ("shape", "spacing", "axis"),
    [
        ((256, 256, 10), (1.4, 1.4, 10), 2),
        ((12, 256, 256), (1, 1, 1), 0),  # spacing lost: fewest voxels
        ((30, 30, 30), (1, 1, 1), 2),
        ((256, 10, 256), (1, 8, 1.0), 1),
        ((256, 256, 1), (1, 1, 1), 2),
    ],
)
def test_through_plane__rule(shape, spacing, axis) -> None:
    assert through_plane(shape, spacing) == axis


def test_slicing_axis__follows_exchanged_axes() -> None:
    affine = np.array([[0, 0, -3.0, 0], [1.1, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1]])
    meta = {"original_affine": affine, "spatial_shape": np.asarray((9, 10, 5))}
    volume = MetaTensor(torch.zeros(1, 9, 10, 5), affine=torch.as_tensor(affine), meta=meta)
    turned = Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(volume)
    assert turned.shape[1 + slicing_axis(turned)] == 5
    assert slicing_axis(torch.zeros(1, 9, 10, 5), 0) == 0


@pytest.mark.parametrize(
    ("shape", "thickness", "suspicious"),
    [((10, 12, 4), 8.0, False), ((10, 12, 20), 8.0, True), ((10, 12, 20), 1.0, False)],
)
def test_slicing_axis__doubts_a_header_with_most_voxels_along_the_thickest_axis(
    caplog, shape, thickness, suspicious
) -> None:
    affine = torch.diag(torch.tensor([1.0, 1.0, thickness, 1.0]))
    slicing_axis(MetaTensor(torch.zeros(1, *shape), affine=affine))
    assert ("mend the spacing" in caplog.text) == suspicious


@pytest.mark.parametrize("size", [(16, 16), (12, 40), (9, 7)])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_resize_slices__pixel_centres_stay_in_place(size, interpolation) -> None:
    # a ramp in physical position stays the same ramp
    ramp = (torch.arange(20) + 0.5)[None, None, :, None].expand(1, 1, 20, 24) / 20
    resized = resize_slices(ramp, size, interpolation=interpolation)[0, 0, :, 0]
    expected = (torch.arange(size[0]) + 0.5) / size[0]
    assert (resized - expected).abs().max() <= (0.5 if interpolation == "nearest" else 0.26) / 10


def test_resize_slices__labels_and_back() -> None:
    label = torch.randint(0, 4, (3, 1, 10, 12), dtype=torch.uint8)
    larger = resize_slices(label, (20, 24), interpolation="nearest")
    assert larger.dtype == torch.uint8
    assert torch.equal(resize_slices(larger, (10, 12), interpolation="nearest"), label)
    assert resize_slices(label, (10, 12)) is label
