import copy

import pytest
import torch

from medseg_kit.methods import reco
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.reco import RegionalContrast
from tests.methods.slice_training import CLASSES, make_batch, pair, train

SMALL = {"num_queries": 16, "num_keys": 8}


def make(**options):
    contrast = RegionalContrast(CLASSES, **{**SMALL, **options})
    return CrossTeachingStep(total_steps=10, terms=[contrast]), pair(scales=("full", "eighth"))


def branch_of(logits, target, teaching):
    from medseg_kit.engines.semi_supervised import Branch
    from medseg_kit.networks.projectors import Projected

    tap = torch.randn(len(logits), 4, *logits.shape[2:], generator=torch.Generator().manual_seed(1))
    projected = {"full": Projected(tap.requires_grad_(), torch.nn.Identity())}
    return Branch(logits, target, teaching, projected=projected)


@pytest.mark.parametrize("scale", ["full", "eighth"])
def test_steps__finite_and_projectors_learn(scale):
    step, network = make(scale=scale)
    before = copy.deepcopy(network.projectors.shared[scale].weight)
    history = train(step, network, [make_batch(seed=seed) for seed in range(3)])
    assert all(losses["contrast"] > 0 for losses in history)
    assert not torch.equal(before, network.projectors.shared[scale].weight)


@pytest.mark.parametrize("batch", [make_batch(classes=1), make_batch(4, 0), make_batch(0, 4)])
def test_edge_batches__finite(batch):
    step, network = make()
    train(step, network, [batch] * 2)
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_queries__only_hard_pixels_that_count(monkeypatch):
    """Row 0 is easy, row 1 hard; image 1 is unlabelled and its teacher is unsure in column 0."""
    logits = torch.zeros(2, 2, 2, 4)
    target = torch.tensor([0, 0, 1, 1]).expand(2, 2, 4)
    logits[:, 0, 0, :2], logits[:, 1, 0, 2:] = 9.0, 9.0  # probability .9999 of the own class
    teaching = torch.full((2, 2, 2, 4), 0.5)
    teaching[1, 0, :, 1:], teaching[1, 1, :, 1:] = 0.8, 0.2
    branch, seen = branch_of(logits, target, teaching), []

    def note(queries, prototype, keys, *, temperature):
        seen.append((queries, prototype, keys))
        return queries.sum()

    monkeypatch.setattr(reco, "regional_contrast", note)
    term = RegionalContrast(2, num_queries=64, num_keys=4)
    term(None, {"branches": [branch], "labelled": torch.tensor([True, False])})
    features = branch.projected["full"].maps().detach()
    hard = {
        0: [features[0, :, 1, 0], features[0, :, 1, 1], features[1, :, 1, 1]],
        1: [features[i, :, 1, j] for i in (0, 1) for j in (2, 3)],
    }
    for value, (queries, _, keys) in enumerate(seen):
        found = {tuple(row) for row in queries.detach().tolist()}
        assert found == {tuple(row.tolist()) for row in hard[value]}
        others = features[target.unsqueeze(1).expand_as(features) != value]
        assert bool(torch.isin(keys, others).all())
        assert not keys.requires_grad
    valid = torch.ones(2, 2, 4, dtype=torch.bool)
    valid[1, :, 0] = False
    mean = features.permute(0, 2, 3, 1)[valid & (target == 0)].mean(0)
    torch.testing.assert_close(seen[0][1], mean)


def test_loss__is_the_weighted_sum_over_the_branches():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, CLASSES, (2, 4, 4), generator=generator)
    logits = torch.randn(2, 2, CLASSES, 4, 4, generator=generator)
    branches = [branch_of(each, target, each.softmax(1)) for each in logits]
    term, labelled = RegionalContrast(CLASSES, weight=0.5, **SMALL), torch.tensor([True, False])
    torch.manual_seed(0)
    found = term(None, {"branches": branches, "labelled": labelled})["contrast"]
    torch.manual_seed(0)
    expected = 0.5 * sum(term._branch(branch, labelled) for branch in branches)
    torch.testing.assert_close(found, expected)


def test_one_class__costs_nothing():
    logits = torch.zeros(2, 2, 4, 4)
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    branch = branch_of(logits, target, logits.softmax(1))
    term = RegionalContrast(2, **SMALL)
    loss = term(None, {"branches": [branch], "labelled": torch.tensor([True, False])})["contrast"]
    assert loss.item() == 0


def test_batch__without_a_confident_pixel():
    step, network = make(confidence=1.1)
    history = train(step, network, [make_batch(0, 4)])
    assert history[0]["contrast"] == 0
