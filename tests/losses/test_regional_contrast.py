"""ReCo's loss and its sampling, against sums written out."""

import math

import pytest
import torch
from torch.nn import functional as F

from medseg_kit.losses.regional_contrast import (
    class_prototypes,
    draw_pixels,
    negative_shares,
    regional_contrast,
)


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_golden__one_query_at_its_prototype_and_two_orthogonal_keys():
    query = torch.tensor([[1.0, 0.0]])
    keys = torch.tensor([[[0.0, 1.0], [0.0, -1.0]]])
    loss = regional_contrast(query, torch.tensor([3.0, 0.0]), keys)
    assert float(loss) == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-6)  # 0.239545


def test_value__equals_the_sum_written_out():
    queries, keys, prototype = unit(5, 4), unit(5, 7, 4, seed=1), unit(4, seed=2) * 0.3
    terms = []
    for query, own in zip(queries, keys, strict=True):
        positive = math.exp(float(F.cosine_similarity(query, prototype, dim=0)) / 0.5)
        negatives = [math.exp(float(query @ key) / 0.5) for key in own]
        terms.append(-math.log(positive / (positive + sum(negatives))))
    found = regional_contrast(queries, prototype, keys)
    assert float(found) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_gradient__of_no_query_is_zero():
    queries = torch.zeros(0, 4, requires_grad=True)
    loss = regional_contrast(queries, unit(4), torch.zeros(0, 7, 4))
    loss.backward()
    assert loss.detach() == 0


def test_prototypes__are_the_means_of_the_classes():
    features, classes = unit(9, 4), torch.tensor([0, 0, 2, 2, 2, 0, 2, 0, 2])
    found = class_prototypes(features, classes, 4)
    torch.testing.assert_close(found[0], features[classes == 0].mean(0))
    torch.testing.assert_close(found[2], features[classes == 2].mean(0))
    assert float(found[[1, 3]].abs().sum()) == 0


def test_shares__similar_classes_are_drawn_more_often():
    prototypes = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [5.0, 5.0]])
    present = torch.tensor([True, True, True, False])
    found = negative_shares(prototypes, present, 0)
    near, far = math.exp(math.sqrt(0.5) / 0.5), 1.0
    expected = torch.tensor([0.0, near / (near + far), far / (near + far), 0.0])
    torch.testing.assert_close(found, expected)


def test_pixels__drawn_by_share_and_uniformly_within_a_class():
    torch.manual_seed(0)
    classes = torch.tensor([2, 0, 1, 2, 0, 2, 2])
    drawn = draw_pixels(classes, torch.tensor([0.0, 0.25, 0.75]), 40_000)
    counts = torch.bincount(drawn, minlength=7) / 40_000
    expected = torch.tensor([0.1875, 0.0, 0.25, 0.1875, 0.0, 0.1875, 0.1875])
    torch.testing.assert_close(counts, expected, atol=0.01, rtol=0)
