import copy

import pytest
import torch
from torch.nn import functional as F

from medseg_kit.engines.semi_supervised import Branch
from medseg_kit.methods.branch_pixels import BranchPixels
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.mcsc_v2 import CertaintyContrast
from medseg_kit.networks.projectors import Projected
from tests.methods.slice_training import CLASSES, branch_batch, make_batch, pair, train

SCALES = ("full", "eighth")


def make(**options):
    options = {"scales": SCALES, "bank_size": 200, "confidence": 0.34, **options}
    contrast = CertaintyContrast(CLASSES, 10, **options)
    return CrossTeachingStep(total_steps=10, terms=[contrast]), pair(scales=SCALES)


def branch(probabilities, target):
    features = Projected(torch.randn(len(target), 4, 8, 8), torch.nn.Identity())
    return Branch(probabilities.log(), target, probabilities, projected={"full": features})


def pixels(contrast, *, num_labelled=2):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(4, CLASSES, 8, 8, generator=generator).mul(3).softmax(1)
    target = probabilities.argmax(1)
    labelled = torch.arange(4) < num_labelled
    target[labelled] = torch.randint(0, CLASSES, (num_labelled, 8, 8), generator=generator)
    return contrast._pixels([branch(probabilities, target)], labelled, "full")


def test_uncertain__the_share_of_highest_entropy_shrinks_to_none():
    contrast = CertaintyContrast(CLASSES, 10, uncertain=0.2)
    found = pixels(contrast)
    unlabelled = found.certain[~found.labelled]
    assert float((~unlabelled).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert bool(found.certain[found.labelled].all())
    entropy = -(found.probabilities * found.probabilities.log()).sum(1)[~found.labelled]
    assert entropy[~unlabelled].min() >= entropy[unlabelled].max()
    contrast.on_step_start(10, 10)
    assert bool(pixels(contrast).certain.all())
    assert bool(pixels(CertaintyContrast(CLASSES, 10, uncertain=0.0)).certain.all())


def test_negatives__of_labelled_pixels_are_the_hard_ones():
    contrast = CertaintyContrast(CLASSES, 10, uncertain=0.0)
    found = pixels(contrast, num_labelled=4)
    for value in range(CLASSES):
        expected = (found.classes != value) & (found.probabilities.argmax(1) == value)
        assert torch.equal(contrast._negatives(found, value), expected)


def written_out(batch, scale, *, num_uncertain, crossed):
    """Return equation 5.7 of the thesis for h = 0.4, r_l = 1 and r_h = 2."""
    labelled, branches = batch["labelled"][:, None, None], batch["branches"]
    own = [branch.logits.softmax(1) for branch in branches]
    taught = [
        torch.where(labelled[:, None], mine, other if crossed else mine)
        for mine, other in zip(own, own[::-1], strict=True)
    ]
    classes = [torch.where(labelled, batch["label"][:, 0], each.argmax(1)) for each in taught]
    classes, labelled = torch.stack(classes).flatten(), torch.stack([labelled] * 2)
    labelled = labelled.expand(2, 2, 4, 4).flatten()
    chances = torch.cat(taught).movedim(1, -1).flatten(0, 2)
    features = BranchPixels(branches, scale).all()
    entropy = -(chances * chances.log()).sum(1)
    certain = labelled | (entropy <= entropy[~labelled].sort().values[-num_uncertain - 1])
    losses = []
    for value in range(CLASSES):
        anchors = features[(classes == value) & certain & (chances.amax(1) > 0.4)]
        rank = chances.argsort(descending=True).argsort()[:, value]
        unlikely = torch.where(certain, rank >= 1, rank >= 2)
        negative = (classes != value) & torch.where(labelled, rank < 1, unlikely)
        positive = F.normalize(anchors.mean(0), dim=0)
        up = (anchors @ positive / 0.1).exp()
        groups = [features[negative & (classes == other)] for other in range(CLASSES)]
        z = sum((anchors @ keys.t() / 0.1).exp().mean(1) for keys in groups if len(keys))
        losses.append(-(up / (up + z)).log().mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize("bank_size", [0, 1000])
def test_loss__of_labelled_certain_and_uncertain_pixels_written_out(bank_size, crossed):
    batch = branch_batch(scales=SCALES)
    contrast = CertaintyContrast(
        CLASSES, 10, scales=SCALES, weight=0.5, factor=3.0, uncertain=0.5, confidence=0.4,
        bank_size=bank_size, crossed=crossed,
    )  # fmt: skip
    contrast.on_step_start(5, 10)  # a quarter of the 32 unlabelled pixels is uncertain now
    losses = [written_out(batch, scale, num_uncertain=8, crossed=crossed) for scale in SCALES]
    torch.testing.assert_close(contrast(None, batch)["contrast"], 1.5 * sum(losses))


def test_ten_steps__finite_and_the_bank_stays_within_its_size():
    step, network = make()
    history = train(step, network, [make_batch(seed=seed) for seed in range(10)])
    assert all(torch.tensor(list(losses.values())).isfinite().all() for losses in history)
    contrast = step.terms[0]
    assert set(contrast.banks) == set(SCALES)
    for bank in contrast.banks.values():
        assert max(bank.size(value) for value in range(CLASSES)) <= 200
        assert int(bank.written.max()) <= 10 * 50  # at most a quarter of the bank a step


def test_batch__without_a_confident_pixel():
    step, network = make(confidence=1.0)
    before = copy.deepcopy(network.projectors.state_dict())
    history = train(step, network, [make_batch()])
    assert history[0]["contrast"] == 0
    assert all(torch.equal(v, before[k]) for k, v in network.projectors.state_dict().items())


@pytest.mark.parametrize("batch", [make_batch(classes=1), make_batch(4, 0), make_batch(0, 4)])
def test_edge_batches__finite(batch):
    step, network = make()
    train(step, network, [batch] * 2)
    assert all(value.isfinite().all() for value in network.state_dict().values())


@pytest.mark.parametrize(
    "options",
    [
        {"bank_size": 0},
        {"crossed": False},
        {"balanced": False},
        {"background_anchors": False},
        {"certain_anchors": False},
        {"select_negatives": False},
    ],
)
def test_variants__run(options):
    step, network = make(**options)
    history = train(step, network, [make_batch(seed=seed) for seed in range(3)])
    assert history[-1]["contrast"] > 0


def test_state__banks_come_back():
    step, network = make()
    train(step, network, [make_batch(seed=seed) for seed in range(3)])
    again, _ = make()
    again.load_state_dict(copy.deepcopy(step.state_dict()))
    for scale, bank in step.terms[0].banks.items():
        assert torch.equal(again.terms[0].banks[scale].features, bank.features)
