import pytest
import torch

from medseg_kit.methods.branch_pixels import BranchPixels
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.mcsc import BalancedContrast
from medseg_kit.methods.patch_groups import (
    foreground_groups,
    num_patches,
    patch_groups,
    random_order,
)
from tests.methods.slice_training import branch_batch, make_batch, pair, train

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


@pytest.mark.parametrize(("minus_one", "patches"), [(False, range(9)), (True, (0, 1, 3, 4))])
def test_foreground_groups__patches_with_their_labels_in_each_maps_own_order(minus_one, patches):
    torch.manual_seed(0)
    pixels = BranchPixels(branch_batch(size=6)["branches"], "full")
    labels = torch.randint(1, 4, (4, 6, 6))
    numbers = pixels.numbers().flatten(0, 1)
    features, classes = foreground_groups(pixels, numbers, labels, 2, grid_minus_one=minus_one)
    number = (features @ pixels.all().t()).argmax(-1)  # each feature is most like itself
    assert torch.equal(classes, labels.flatten()[number])
    row, column = number % 36 // 6, number % 6
    maps = (number // 36).unflatten(1, (4, 4))
    tile = (row // 2 * 3 + column // 2).unflatten(1, (4, 4))
    assert torch.equal(maps, torch.arange(4)[None, :, None].expand_as(maps))
    assert torch.equal(tile, tile[:, :, :1].expand_as(tile))
    orders = tile[:, :, 0].t().tolist()
    assert all(sorted(order) == list(patches) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def balanced_by_hand(features, labels):
    """Return equation 4.2 of the thesis without the self term, anchor by anchor."""
    terms, number = [], torch.arange(len(labels))
    for index, (anchor, label) in enumerate(zip(features, labels, strict=True)):
        similarity = (features @ anchor / 0.1).exp()
        other = number != index
        keys = [similarity[other & (labels == value)].mean() for value in labels.unique()]
        own = similarity[other & (labels == label)]
        terms.append(-(own / torch.stack(keys).sum()).log().mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("crossed", [True, False])
def test_loss__of_whole_maps_written_out(crossed):
    batch = branch_batch(scales=("full", "half"))
    said = [branch.logits.argmax(1) for branch in batch["branches"]]
    taught = said[::-1] if crossed else said
    truth = batch["label"][:1, 0]
    labels = torch.cat([torch.cat([truth, classes[1:]]) for classes in taught]).flatten()
    losses = [
        balanced_by_hand(BranchPixels(batch["branches"], scale).all(), labels)
        for scale in ("full", "half")
    ]
    patches = {"full": 4, "half": 4}
    term = BalancedContrast(patches, weight=0.5, factor=3.0, unlabelled_start=0, crossed=crossed)
    torch.testing.assert_close(term(None, batch)["contrast"], 1.5 * sum(losses))


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
