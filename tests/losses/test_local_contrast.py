"""GLCL's local loss, against the sum written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from medseg_kit.losses.local_contrast import local_contrast


def written_out(features, labels, temperature):
    """Return the mean over foreground anchors, pixel by pixel."""
    terms = []
    for i, anchor in enumerate(features):
        others = [k for k in range(len(features)) if k != i]
        positives = [k for k in others if labels[k] == labels[i]]
        if labels[i] == 0 or not positives:
            continue
        total = sum(torch.exp(anchor @ features[k] / temperature) for k in others)
        ratios = [torch.exp(anchor @ features[p] / temperature) / total for p in positives]
        terms.append(-sum(ratio.log() for ratio in ratios) / len(positives))
    return sum(terms) / len(terms)


def group(n=20, classes=3):
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(n, 6, generator=generator), dim=1)
    return features, torch.randint(0, classes, (n,), generator=generator)


def test_golden__two_foreground_pixels_and_two_of_background():
    """Each anchor has its twin (similarity 1) and two orthogonal keys: log((e^10 + 2) / e^10)."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    loss = local_contrast(features, torch.tensor([1, 1, 0, 0]))
    expected = math.log(1 + 2 * math.exp(-10))  # 9.0796e-5
    assert float(loss) == pytest.approx(expected, rel=1e-2)
    loss = local_contrast(features, torch.tensor([1, 1, 0, 0]), temperature=1.0)
    assert float(loss) == pytest.approx(math.log(1 + 2 / math.e), rel=1e-5)  # 0.551445


@pytest.mark.parametrize("temperature", [0.1, 0.07, 1.0])
def test_value__equals_the_sum_written_out(temperature):
    features, labels = group()
    torch.testing.assert_close(
        local_contrast(features, labels, temperature=temperature),
        written_out(features, labels, temperature),
    )


def test_gradient__reaches_background_keys_too():
    features, labels = group()
    features.requires_grad_()
    local_contrast(features, labels).backward()
    assert float(features.grad[labels == 0].abs().sum()) > 0


@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5]])
def test_group__without_two_pixels_of_an_organ_costs_nothing(labels):
    features, _ = group(6)
    features.requires_grad_()
    loss = local_contrast(features, torch.tensor(labels))
    loss.backward()
    assert loss.detach() == 0
    assert float(features.grad.abs().sum()) == 0
