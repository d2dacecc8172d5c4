"""Properties of the balanced contrast, against the sum written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from medseg_kit.losses.balanced_contrast import balanced_contrast


def written_out(features, labels, temperature=0.1, *, balanced=True):
    """Return the loss pixel by pixel, as equation 4.2 reads without the self term."""
    total, anchors = 0.0, 0
    for i, anchor in enumerate(features):
        positives = [k for k in range(len(features)) if k != i and labels[k] == labels[i]]
        if not positives:
            continue
        denominator = 1e-6
        for value in labels.unique():
            keys = [k for k in range(len(features)) if k != i and labels[k] == value]
            if keys:
                part = sum(torch.exp(anchor @ features[k] / temperature) for k in keys)
                denominator = denominator + (part / len(keys) if balanced else part)
        terms = [
            torch.log(torch.exp(anchor @ features[k] / temperature) / denominator)
            for k in positives
        ]
        total, anchors = total - sum(terms) / len(positives), anchors + 1
    return total / anchors


def group(n=24, classes=3, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(n, 8, generator=generator, dtype=dtype), dim=1)
    return features, torch.randint(0, classes, (n,), generator=generator)


@pytest.mark.parametrize("balanced", [True, False])
def test_value__equals_the_sum_written_out(balanced):
    features, labels = group()
    torch.testing.assert_close(
        balanced_contrast(features, labels, balanced=balanced),
        written_out(features, labels, balanced=balanced),
    )


def test_gradient__of_the_own_backward():
    features, labels = group(10, dtype=torch.float64)
    features.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f: balanced_contrast(f, labels, temperature=0.5), features
    )


def test_golden__two_tight_orthogonal_clusters():
    features = torch.zeros(20, 4)
    features[:10, 0], features[10:, 1] = 1, 1
    labels = torch.tensor([0] * 10 + [1] * 10)
    expected = -math.log(math.exp(10) / (math.exp(10) + 1))
    assert float(balanced_contrast(features, labels)) == pytest.approx(expected, rel=1e-2)


def test_balance__more_background_leaves_foreground_anchors_alone():
    features, labels = group(30)
    more = torch.cat([features, features[labels == 0].repeat(3, 1)])
    more_labels = torch.cat([labels, labels[labels == 0].repeat(3)])
    options = {"discard_background": True}
    torch.testing.assert_close(
        balanced_contrast(more, more_labels, **options),
        balanced_contrast(features, labels, **options),
    )
    unbalanced = [
        balanced_contrast(*pair, balanced=False, **options)
        for pair in ((more, more_labels), (features, labels))
    ]
    assert abs(float(unbalanced[0] - unbalanced[1])) > 0.05


def test_order__does_not_matter():
    features, labels = group()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        balanced_contrast(features[order], labels[order]), balanced_contrast(features, labels)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast__changes_nothing(dtype):
    features, labels = group(1000, classes=2)
    features[:, 1:] *= 0.1  # similarities near 1: in float16 their exponentials add up to infinity
    features = F.normalize(features.abs(), dim=1).requires_grad_()
    exact = balanced_contrast(features, labels, balanced=False)
    (gradient,) = torch.autograd.grad(exact, features)
    with torch.autocast("cpu", dtype=dtype):
        value = balanced_contrast(features, labels, balanced=False)
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(torch.autograd.grad(value, features)[0], gradient)


@pytest.mark.parametrize("labels", [[0] * 6, [0, 1, 2, 3, 4, 5], [1] * 6])
def test_edge_cases__finite(labels):
    features, _ = group(6)
    features.requires_grad_()
    loss = balanced_contrast(features, torch.tensor(labels))
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(features.grad.isfinite().all())
    if labels != [1] * 6:
        assert float(features.grad.abs().sum()) == 0


def test_precision__bf16_is_close():
    features, labels = group(200)
    exact, low = (balanced_contrast(features, labels, precision=p) for p in ("full", "bf16"))
    assert float(low) == pytest.approx(float(exact), rel=0.02)
