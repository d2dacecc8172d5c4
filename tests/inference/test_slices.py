from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from medseg_kit.inference.slices import SliceInferer
from medseg_kit.transforms.planes import voxel_mm


@pytest.fixture
def network(kit):
    torch.manual_seed(2)
    return kit.network(dims=2).eval()


def _volume(affine: np.ndarray, shape: tuple[int, int, int] = (9, 10, 5)) -> MetaTensor:
    generator = torch.Generator().manual_seed(0)
    meta = {"original_affine": affine, "spatial_shape": np.asarray(shape)}
    image = torch.randn(1, *shape, generator=generator)
    return MetaTensor(image, affine=torch.as_tensor(affine), meta=meta)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_inferer__equals_a_loop_over_slices(network, axis):
    image = torch.randn(1, 1, 6, 8, 10)
    loop = torch.stack([network(part) for part in image.unbind(2 + axis)], dim=2 + axis)

    result = SliceInferer(slice_axis=axis, sw_batch_size=4)(image, network)

    torch.testing.assert_close(result, loop, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("with_bf16")
def test_slice_inferer__batches_of_the_cpu_and_fast_mode(network):
    image = torch.randn(1, 1, 6, 8, 10)
    seen = []
    network.register_forward_hook(lambda *call: seen.append((len(call[1][0]), call[2].dtype)))
    full = SliceInferer(slice_axis=2, cpu_batch_size=4)(image, network)
    assert seen == [(4, torch.float32), (4, torch.float32), (2, torch.float32)]

    seen.clear()
    fast = SliceInferer(slice_axis=2, cpu_batch_size=5, fast=True)(image, network)
    assert seen == [(5, torch.bfloat16), (5, torch.bfloat16)]
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, full, rtol=0.05, atol=0.05)


def test_slice_inferer__oblique_volume_keeps_its_stored_slices(network, kit, caplog):
    affine = kit.affine_of("oblique")  # 6 mm slices along stored axis 2
    volume = _volume(affine)
    expected = torch.stack([network(part) for part in volume[None].unbind(4)], dim=4)

    with caplog.at_level(logging.DEBUG):
        result = SliceInferer()(volume[None], network)

    torch.testing.assert_close(result, torch.as_tensor(expected), rtol=0, atol=1e-5)
    assert "stored axis 2 (through-plane, spacing 6 mm, 5 slices)" in caplog.text


def test_slice_inferer__axial_whatever_the_spacing(kit):
    volume = _volume(kit.affine_of("oblique"))
    sides = []

    def network(slices):
        sides.append(tuple(slices.shape[2:]))
        return slices

    axis = int(np.abs(np.asarray(volume.affine)[2, :3] / voxel_mm(volume)).argmax())
    SliceInferer(direction="S", cpu_batch_size=99)(volume[None], network)
    SliceInferer(direction="R", cpu_batch_size=99)(volume[None], network)
    shape = list(volume.shape[1:])
    assert sides[0] == tuple(side for index, side in enumerate(shape) if index != axis)
    assert sides[1] != sides[0]
    with pytest.raises(ValueError, match="direction must be one of"):
        SliceInferer(direction="up")
    with pytest.raises(ValueError, match="both say how to cut"):
        SliceInferer(direction="S", slice_axis=0)


@pytest.mark.parametrize("direction", [None, "S"])
@pytest.mark.parametrize("shape", [(24, 20, 1), (1, 24, 20), (24, 1, 20)])
def test_slice_inferer__one_slice_whatever_its_spacing(shape, direction):
    """A two-dimensional image as a volume: its one voxel is across the slice."""
    spacing = [1.0 if side == 1 else 1.5 for side in shape]
    volume = MetaTensor(torch.rand(1, 1, *shape), affine=torch.diag(torch.tensor([*spacing, 1.0])))
    sides = []
    SliceInferer(direction=direction)(
        volume, lambda slices: sides.append(tuple(slices.shape)) or slices
    )
    assert sides == [(1, 1, *(side for side in shape if side > 1))]


def test_slice_inferer__follows_exchanged_axes(network, kit):
    affine = kit.affine_of("permuted")  # 3 mm spacing along stored axis 2
    volume = _volume(affine)
    turned = Orientation("RAS", labels=(("L", "R"), ("P", "A"), ("I", "S")))(volume)
    axis = int(np.argmin(turned.shape[1:]))  # the 5 slices
    expected = torch.stack([network(part) for part in turned[None].unbind(2 + axis)], dim=2 + axis)

    result = SliceInferer()(turned[None], network)

    torch.testing.assert_close(result, torch.as_tensor(expected), rtol=0, atol=1e-5)


def test_slice_inferer__batch_of_collated_volumes(network, kit):
    volume = _volume(kit.affine_of("ras"))
    both = torch.stack([volume.as_tensor(), 2 * volume.as_tensor()])
    batch = MetaTensor(
        both,
        affine=torch.as_tensor(np.stack([volume.meta["original_affine"]] * 2)),
        meta={"original_affine": np.stack([volume.meta["original_affine"]] * 2)},
    )
    result = SliceInferer()(batch, network)
    alone = SliceInferer()(volume[None], network)
    torch.testing.assert_close(result[:1], alone, rtol=0, atol=1e-5)


def test_slice_inferer__resizes_and_pads(network):
    sizes = []

    def watched(slices: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(slices.shape[2:]))
        return network(slices)

    inferer = SliceInferer(slice_axis=2, slice_size=(14, 15), divisor=8)
    result = inferer(torch.randn(1, 1, 9, 11, 3), watched)

    assert set(sizes) == {(16, 16)}
    assert result.shape == (1, 3, 9, 11, 3)


def test_slice_inferer__padding_alone_changes_nothing_inside():
    image = torch.randn(1, 1, 9, 11, 3)
    result = SliceInferer(slice_axis=2, divisor=8)(image, lambda slices: slices * 2)
    torch.testing.assert_close(result, image * 2)


def test_slice_inferer__interpolation_by_name():
    image = torch.randn(1, 1, 8, 8, 2)
    seen = []

    def watched(slices: torch.Tensor) -> torch.Tensor:
        seen.append(slices)
        return slices

    SliceInferer(slice_axis=2, slice_size=(4, 4), interpolation="nearest")(image, watched)
    assert torch.isin(seen[0], image).all()
    with pytest.raises(ValueError, match="interpolation must be"):
        SliceInferer(interpolation="cubic")


def test_slice_inferer__wrong_input():
    with pytest.raises(ValueError, match="stored axis"):
        SliceInferer(slice_axis=3)
    with pytest.raises(ValueError, match="two positive whole numbers"):
        SliceInferer(slice_size=[[96, 128], [96, 128]])
    with pytest.raises(ValueError, match="slices need volumes"):
        SliceInferer()(torch.zeros(1, 1, 8, 8), lambda slices: slices)
