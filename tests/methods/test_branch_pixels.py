import pytest
import torch

from medseg_kit.engines.semi_supervised import Branch
from medseg_kit.methods.branch_pixels import BranchPixels, random_subset
from medseg_kit.networks.projectors import Projectors
from medseg_kit.typing import UserError

SIDE, IMAGES = 6, 3


def make():
    torch.manual_seed(0)
    projectors = Projectors({"full": 4}, {"full": 5}, ["full"], hidden=8, out=3)
    taps = [torch.randn(IMAGES, c, SIDE, SIDE, requires_grad=True) for c in (4, 5)]
    pair = projectors({"full": taps[0]}, {"full": taps[1]})["full"]
    nothing = torch.zeros(IMAGES, 2, SIDE, SIDE)
    branches = [Branch(nothing, nothing[:, 0], nothing, projected={"full": p}) for p in pair]
    return BranchPixels(branches, "full"), torch.cat([p.maps() for p in pair]), projectors, taps


def test_at__some_pixels_equal_those_of_the_whole_maps():
    pixels, maps, *_ = make()
    assert torch.equal(pixels.numbers().flatten(), torch.arange(2 * IMAGES * SIDE * SIDE))
    whole = maps.movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(pixels.all(), whole)
    chosen = torch.randint(len(whole), (40,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(pixels.at(chosen), whole[chosen])


def test_at__gradients_equal_those_of_the_whole_maps():
    chosen = torch.tensor([200, 3, 90, 3, 150])
    gradients = []
    for way in ("some", "all"):
        pixels, maps, projectors, taps = make()
        features = pixels.at(chosen) if way == "some" else maps.movedim(1, -1).flatten(0, 2)[chosen]
        (features[:, 0] * torch.arange(5.0)).sum().backward()
        gradients.append([t.grad for t in (*taps, *projectors.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_at__no_pixel_keeps_the_projectors_in_the_graph():
    pixels, _, projectors, _ = make()
    pixels.at(torch.zeros(0, dtype=torch.long)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in projectors.parameters())


def test_pixels__of_a_scale_that_the_network_does_not_project():
    _, _, projectors, taps = make()
    pair = projectors({"full": taps[0]}, {"full": taps[1]})["full"]
    nothing = torch.zeros(IMAGES, 2, SIDE, SIDE)
    branches = [Branch(nothing, nothing[:, 0], nothing, projected={"full": p}) for p in pair]
    with pytest.raises(UserError, match=r"'quarter'.*projects \['full'\]"):
        BranchPixels(branches, "quarter")


def test_random_subset__no_entry_twice():
    index = torch.arange(100, 200)
    chosen = random_subset(index, 60)
    assert len(chosen.unique()) == 60
    assert set(chosen.tolist()) <= set(index.tolist())
    assert random_subset(index, 100) is index
