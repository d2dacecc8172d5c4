import copy

import pytest
import torch

from medseg_kit.engines.semi_supervised import Branch
from medseg_kit.losses.local_contrast import local_contrast
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.glcl import LocalContrast
from medseg_kit.networks.projectors import Projected
from tests.methods.slice_training import make_batch, pair, train

OPTIONS = [{"patch": 8}, {"patch": 8, "num_groups": 2}, {"sampling": "stride", "stride": 4}]


def make(**options):
    contrast = LocalContrast(**options)
    return CrossTeachingStep(total_steps=10, terms=[contrast]), pair(scales=("full",))


@pytest.mark.parametrize("options", OPTIONS)
def test_steps__finite_and_projectors_learn(options):
    step, network = make(**options)
    before = copy.deepcopy(list(network.projectors.parameters()))
    history = train(step, network, [make_batch(seed=seed) for seed in range(3)])
    assert all(losses["contrast"] > 0 for losses in history)
    after = network.projectors.parameters()
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("batch", [make_batch(classes=1), make_batch(4, 0), make_batch(0, 4)])
def test_edge_batches__finite(batch, options):
    step, network = make(**options)
    train(step, network, [batch] * 2)
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_stride__every_second_pixel_of_an_image_in_both_branches():
    torch.manual_seed(0)
    maps = torch.randn(2, 2, 4, 6, 6)  # branch, image
    targets = torch.randint(0, 3, (2, 2, 6, 6))
    targets[:, 1] = 0  # an image without foreground is left out
    branches = [
        Branch(m, t, m, projected={"full": Projected(m, torch.nn.Identity())})
        for m, t in zip(maps, targets, strict=True)
    ]
    term = LocalContrast(sampling="stride", stride=2, weight=1.0, factor=1.0)
    found = term(None, {"branches": branches})["contrast"]
    chosen = torch.nn.functional.normalize(maps[:, 0, :, ::2, ::2], dim=1)
    features = chosen.permute(0, 2, 3, 1).flatten(0, 2)
    expected = local_contrast(features, targets[:, 0, ::2, ::2].flatten())
    torch.testing.assert_close(found, expected)


def test_sampling__unknown():
    with pytest.raises(ValueError, match="sampling must be one of"):
        LocalContrast(sampling="all")
