import pytest
import torch

from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.mcsc import BalancedContrast
from medseg_kit.methods.patch_groups import num_patches, patch_groups, random_order
from tests.methods.slice_training import make_batch, pair, train

PATCHES = {"full": 8, "eighth": 2}


def make(**options):
    contrast = BalancedContrast(PATCHES, **options)
    return CrossTeachingStep(total_steps=10, terms=[contrast]), pair(scales=tuple(PATCHES))


@pytest.mark.parametrize(("side", "patch", "groups"), [(224, 19, 121), (56, 28, 4), (28, 14, 4)])
def test_groups__golden_counts_and_every_patch_once(side, patch, groups):
    assert num_patches((side, side), patch) == groups
    rows = side // patch
    number = torch.arange(rows).repeat_interleave(patch)
    tile = number[:, None] * rows + number[None]
    maps = torch.full((3, 2, side, side), -1.0)
    maps[:, 0, : rows * patch, : rows * patch] = tile.float()
    maps[:, 1] = torch.arange(3.0)[:, None, None]
    torch.manual_seed(0)
    found = patch_groups(maps, patch, random_order(3, groups, maps.device))
    assert found.shape == (groups, 3 * patch * patch, 2)
    for index in range(3):  # every group has one whole patch of every map, each patch once
        own = found[:, index * patch * patch : (index + 1) * patch * patch]
        assert (own[..., 1] == index).all()
        assert (own[..., 0] == own[:, :1, 0]).all()
        assert sorted(own[:, 0, 0].tolist()) == list(range(groups))


def test_groups__features_and_labels_stay_together():
    """The public code pairs patches and labels in different orders."""
    labels = torch.arange(4 * 64).reshape(4, 1, 8, 8).float()
    features = labels.repeat(1, 3, 1, 1) * torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    order = random_order(4, 4, labels.device)
    cut, classes = patch_groups(features, 4, order), patch_groups(labels, 4, order)
    torch.testing.assert_close(cut, classes * torch.tensor([1.0, 2.0, 3.0]))


def test_ten_steps__finite_and_projectors_learn():
    step, network = make(unlabelled_start=2)
    before = [value.clone() for value in network.projectors.parameters()]
    history = train(step, network, [make_batch(seed=seed) for seed in range(10)])
    assert all("contrast" in losses for losses in history)
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in history)
    after = network.projectors.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_start__labelled_images_alone_at_first():
    step, network = make(unlabelled_start=1)
    history = train(step, network, [make_batch(0, 4), make_batch(0, 4)])
    assert [losses["contrast"] > 0 for losses in history] == [False, True]


@pytest.mark.parametrize("batch", [make_batch(classes=1), make_batch(4, 0), make_batch(0, 4)])
def test_edge_batches__finite(batch):
    step, network = make(unlabelled_start=0)
    train(step, network, [batch] * 2)
    assert all(value.isfinite().all() for value in network.state_dict().values())


@pytest.mark.parametrize(
    "options",
    [
        {"balanced": False},
        {"discard_background": True},
        {"crossed": False},
        {"num_groups": 2},
        {"grid_minus_one": True},
    ],
)
def test_variants__run(options):
    step, network = make(unlabelled_start=0, **options)
    history = train(step, network, [make_batch(seed=seed) for seed in range(2)])
    assert all(losses["contrast"] == losses["contrast"] for losses in history)
