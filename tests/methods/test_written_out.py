"""Losses of the semi-supervised methods and their gradients, written out by hand."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from medseg_kit.losses.soft_dice import soft_dice
from medseg_kit.methods.cct import CrossConsistencyStep
from medseg_kit.methods.cps import CrossPseudoSupervisionStep
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.ict import InterpolationConsistencyStep
from medseg_kit.methods.mean_teacher import MeanTeacherStep
from medseg_kit.methods.rotation_consistency import RotationConsistencyStep
from medseg_kit.methods.uamt import UncertaintyMeanTeacherStep
from tests.methods.slice_training import (
    CLASSES,
    SIZE,
    make_batch,
)

WEIGHT = 0.3  # of the unsupervised loss in the tests that write losses out


def conv():
    return torch.nn.Conv2d(1, CLASSES, 3, padding=1)


class Several(torch.nn.Module):
    """A convolution for each student, or for the main and each auxiliary decoder."""

    def __init__(self, number):
        super().__init__()
        self.heads = torch.nn.ModuleList([conv() for _ in range(number)])

    def forward(self, image):
        said = tuple(head(image) for head in self.heads)
        if len(said) == 2:
            return {"logits": said}
        return {"logits": said[0], "auxiliary": said[1:]}


def compare(kind, network, expected, **options):
    """Compare all losses and their gradient with ``expected(image, label, teacher)``.

    Two of six images are labelled; the student has left its teacher; random numbers are drawn in
    the same order.
    """
    step = kind(total_steps=10, consistency=2 * WEIGHT, ramp=lambda *_: 0.5, **options)
    teacher = None if step.teacher is None else step.teacher.of(network)
    torch.manual_seed(0)
    for parameter in (*network.parameters(), *(teacher.parameters() if teacher else ())):
        torch.nn.init.normal_(parameter)
    batch = make_batch(2, 4)
    torch.manual_seed(1)
    losses = step.losses(SimpleNamespace(network=network), batch)[1]
    torch.manual_seed(1)
    written = expected(batch["image"], batch["label"][:2, 0].long(), teacher)
    found, wanted = (
        (loss, *torch.autograd.grad(loss, list(network.parameters())))
        for loss in (sum(losses.values()), written)
    )
    torch.testing.assert_close(found, wanted)


def supervised(logits, label):
    return (F.cross_entropy(logits, label) + soft_dice(logits.softmax(1), label)) / 2


def noise(number):
    return (0.1 * torch.randn(number, 1, SIZE, SIZE)).clamp(-0.2, 0.2)


def test_mean_teacher__loss_written_out():
    network = conv()

    def expected(image, label, teacher):
        taught = teacher(image[2:] + noise(4)).softmax(1)
        difference = (network(image[2:]).softmax(1) - taught).square().mean()
        return supervised(network(image[:2]), label) + WEIGHT * difference

    compare(MeanTeacherStep, network, expected, consistency_start=0)


def test_uamt__loss_written_out():
    network = conv()

    def expected(image, label, teacher):
        taught = teacher(image[2:] + noise(4)).softmax(1)
        twice = image[2:].repeat(2, 1, 1, 1)
        passes = torch.cat([teacher(twice + noise(8)).softmax(1) for _ in range(4)])
        mean = passes.unflatten(0, (8, 4)).mean(0)
        entropy = -(mean * (mean + 1e-6).log()).sum(1, keepdim=True)
        certain = entropy < (0.75 + 0.25 * math.exp(-5)) * math.log(2)
        distance = certain * (network(image[2:]).softmax(1) - taught).square()
        masked = distance.sum() / (2 * certain.sum())
        return supervised(network(image[:2]), label) + WEIGHT * masked

    compare(UncertaintyMeanTeacherStep, network, expected)


def test_ict__loss_written_out():
    network = conv()

    def expected(image, label, teacher):
        shape = torch.full((2,), 0.2)
        share = torch.distributions.Beta(shape, shape).sample()[:, None, None, None]
        first, second = image[2:].chunk(2)
        mixed = network((1 - share) * first + share * second).softmax(1)
        taught = (1 - share) * teacher(first).softmax(1) + share * teacher(second).softmax(1)
        difference = (mixed - taught).square().mean()
        return supervised(network(image[:2]), label) + WEIGHT * difference

    compare(InterpolationConsistencyStep, network, expected)


def test_rotation_consistency__loss_written_out():
    network = conv()

    def expected(image, label, _):
        turns = int(torch.randint(0, 4, (1,)))
        assert turns % 2  # two directions of a half turn are one
        direct = torch.rot90(network(image[2:]).softmax(1), turns, (2, 3))
        turned = network(torch.rot90(image[2:], turns, (2, 3))).softmax(1)
        ways = (
            (turned.detach() - direct).square().mean(),
            (turned - direct.detach()).square().mean(),
        )
        return supervised(network(image[:2]), label) + WEIGHT * sum(ways) / 2

    compare(RotationConsistencyStep, network, expected)


def test_cct__loss_written_out():
    network = Several(4)

    def expected(image, label, _):
        labelled = [supervised(head(image[:2]), label) for head in network.heads]
        main, *others = (head(image[2:]).softmax(1) for head in network.heads)
        differences = [(main - other).square().mean() for other in others]
        return sum(labelled) / 4 + WEIGHT * sum(differences) / 3

    compare(CrossConsistencyStep, network, expected)


@pytest.mark.parametrize(
    ("kind", "dice"),
    [
        (CrossTeachingStep, True),
        (CrossPseudoSupervisionStep, False),
        (partial(CrossPseudoSupervisionStep, teaching_loss="dice"), True),  # A39
    ],
)
def test_cross_teaching__loss_written_out(kind, dice):
    network = Several(2)

    def expected(image, label, _):
        total = sum(supervised(head(image[:2]), label) for head in network.heads)
        first, second = (head(image[2:]) for head in network.heads)
        for own, other in ((first, second), (second, first)):
            target = other.argmax(1)
            if dice:
                total = total + WEIGHT * soft_dice(own.softmax(1), target)
            else:
                total = total + WEIGHT * F.cross_entropy(own, target)
        return total

    compare(kind, network, expected)
