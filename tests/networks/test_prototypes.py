"""Prototypes and correlation scores of one-shot segmentation: properties and edge cases."""

from __future__ import annotations

import pytest
import torch

from medseg_kit.networks.prototypes import PrototypeClassifier


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))


def reference_scores(query: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Return the scores (h, w) of one query (C, h, w), pixel by pixel."""

    def standard(vector: torch.Tensor) -> torch.Tensor:
        centred = vector - vector.mean()
        return centred / centred.norm().clamp_min(1e-4)

    result = torch.zeros(query.shape[1:])
    for row in range(query.shape[1]):
        for column in range(query.shape[2]):
            pixel = standard(query[:, row, column])
            each = torch.stack([20 * pixel @ standard(p) for p in prototypes])
            result[row, column] = (each.softmax(0) * each).sum()
    return result


def test_score__is_the_weighted_mean_of_the_single_scores(features):
    prototypes = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    scores = PrototypeClassifier().score(features, prototypes)
    expected = torch.stack([reference_scores(query, prototypes) for query in features])
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)


def test_score__a_constant_on_all_channels_changes_nothing(features):
    classifier, prototypes = PrototypeClassifier(), torch.randn(3, 16)
    shifted = classifier.score(features + 7.0, prototypes - 2.0)
    torch.testing.assert_close(
        shifted, classifier.score(features, prototypes), atol=1e-3, rtol=1e-4
    )


def test_score__renormalised_is_the_correlation_with_the_mean_prototype(features):
    prototypes = torch.randn(4, 16)
    plain = PrototypeClassifier().score(features, prototypes)
    renormalised = PrototypeClassifier(renormalise_aggregate=True).score(features, prototypes)
    assert renormalised.abs().max() <= 20 + 1e-4
    assert not torch.allclose(plain, renormalised)
    single = prototypes[:1]  # one prototype has norm 1 already
    torch.testing.assert_close(
        PrototypeClassifier(renormalise_aggregate=True).score(features, single),
        PrototypeClassifier().score(features, single),
    )


def test_score__prototypes_that_do_not_count_are_ignored(features):
    classifier, prototypes = PrototypeClassifier(), torch.randn(2, 4, 16)
    valid = torch.tensor([[True, True, False, False], [False, True, False, True]])
    scores = classifier.score(features, prototypes, valid)
    for index in range(2):
        alone = classifier.score(features[index : index + 1], prototypes[index][valid[index]])
        torch.testing.assert_close(scores[index : index + 1], alone)


def test_cells__are_the_full_windows_and_the_mean_of_the_mask(features):
    mask = torch.zeros(2, 64, 64)
    mask[:, :32, :] = 1  # the upper half: 8 of 16 windows
    cells = PrototypeClassifier().cells(features, mask, window=2)
    assert cells.foreground.shape == (2, 17, 16)
    assert cells.foreground_valid.sum(1).tolist() == [9, 9]
    assert cells.background_valid.sum(1).tolist() == [8, 8]  # no mean beside local ones
    mean = features[:, :, :4].mean(dim=(2, 3))
    torch.testing.assert_close(cells.foreground[:, -1], mean, atol=1e-4, rtol=1e-4)


def test_cells__without_a_local_background_its_mean_counts(features):
    mask = torch.ones(2, 8, 8)
    mask[:, ::2, ::2] = 0
    cells = PrototypeClassifier().cells(features, mask, window=4)
    assert cells.background_valid[:, -1].tolist() == [True, True]
    assert not cells.background_valid[:, :-1].any()


def test_cells__a_mask_of_one_pixel_is_not_lost(features):
    mask = torch.zeros(2, 64, 64)
    mask[:, 1, 1] = 1  # linear resizing to 8 x 8 looks between its neighbours only
    cells = PrototypeClassifier().cells(features, mask, window=2)
    expected = features[:, :, 0, 0]
    torch.testing.assert_close(cells.foreground[:, -1], expected, atol=2e-3, rtol=2e-3)


def test_query_equal_to_the_support__is_segmented():
    """Features that tell a large mask from the rest give it back."""
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:24, 4:28] = 1
    features = torch.stack([mask, 1 - mask, torch.zeros_like(mask)], dim=1)
    features = features + 0.05 * torch.randn(features.shape)
    classifier = PrototypeClassifier()
    foreground, background = classifier.prototypes(features, mask, window=4)
    pred = classifier.score(features, foreground) > classifier.score(features, background)
    overlap = 2 * (pred * mask).sum() / (pred.sum() + mask.sum())
    assert overlap > 0.98
