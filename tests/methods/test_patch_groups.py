"""Labels and probabilities at the size of the features, and patches that do not fit them."""

import pytest
import torch

from medseg_kit.engines.semi_supervised import make_branches
from medseg_kit.methods.glcl import LocalContrast
from medseg_kit.methods.mcsc import BalancedContrast
from medseg_kit.methods.patch_groups import resize_labels, resize_maps
from medseg_kit.typing import UserError
from tests.methods.slice_training import make_batch, pair


def blobs(side=64):
    """Return a ring around a disc, ``(1, side, side)``."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    distance = ((y - 0.42 * side) ** 2 + (x - 0.55 * side) ** 2).sqrt() / side
    return ((distance < 0.3).long() + (distance < 0.2).long())[None]


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_labels__are_the_class_of_the_probabilities_at_each_place(stride):
    labels = blobs()
    size = 64 // stride, 64 // stride
    certain = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    top, classes = resize_maps(certain, size).max(1)
    sure = top > 0.9
    assert bool(((classes > 0) & sure).any())
    assert torch.equal(resize_labels(labels, size)[sure], classes[sure])


@pytest.mark.parametrize("stride", [4, 8])
def test_labels__keep_their_place(stride):
    """The centre of a disc stays where it is, within a quarter of a feature's pixel."""
    disc = (blobs() == 2).long()
    small = resize_labels(disc, (64 // stride, 64 // stride))
    centre = disc.nonzero()[:, 1:].float().mean(0) + 0.5
    found = (small.nonzero()[:, 1:].float().mean(0) + 0.5) * stride
    assert float((found - centre).abs().max()) < stride / 4


@pytest.mark.parametrize(
    ("term", "largest"),
    [
        (BalancedContrast({"eighth": 14}), 4),
        (BalancedContrast({"eighth": 4}, grid_minus_one=True), 2),
        (LocalContrast(scale="full", patch=33), 32),
    ],
)
def test_patch__larger_than_the_features_names_one_that_fits(term, largest):
    network, batch = pair(scales=("full", "eighth")), make_batch()
    output = network.train()(batch["image"])
    make_branches(batch, output)
    with pytest.raises(UserError, match=f"take patches of at most {largest}, or larger images"):
        term(None, batch)
