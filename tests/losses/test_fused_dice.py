"""Spatial and edge Dice of FedCoWPro: values, limits and gradients."""

from __future__ import annotations

import pytest
import torch

from medseg_kit.losses.fused_dice import edge_dice, edge_map, spatial_dice


@pytest.fixture
def disc() -> torch.Tensor:
    x = torch.arange(32.0)
    return (((x - 15) ** 2 + (x[:, None] - 15) ** 2) < 64).float()[None]


def test_spatial_dice__of_half_the_mask(disc):
    assert float(spatial_dice(disc, disc)) == pytest.approx(0, abs=1e-6)
    assert float(spatial_dice(0.5 * disc, disc)) == pytest.approx(1 - 2 * 0.5 / 1.5, abs=1e-6)
    assert float(spatial_dice(1 - disc, disc)) == pytest.approx(1, abs=1e-6)


def test_edge_dice__of_equal_maps_is_0_unless_as_printed(disc):
    assert float(edge_dice(disc, disc)) == pytest.approx(0, abs=1e-6)
    assert 0.02 <= float(edge_dice(disc, disc, denominator="linear")) <= 0.19


def test_edge_dice__of_two_blank_maps_is_0():
    blank = torch.zeros(2, 16, 16)
    assert edge_dice(blank, blank).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert float(edge_map(blank).max()) == pytest.approx(0, abs=1e-6)


def test_losses__stay_in_0_to_1_and_have_gradients(disc):
    pred = torch.rand(1, 32, 32, requires_grad=True)
    for loss in (spatial_dice(pred, disc), edge_dice(pred, disc)):
        assert 0 <= float(loss.detach()) <= 1
        (gradient,) = torch.autograd.grad(loss.sum(), pred)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_edge_map__is_the_same_on_all_sides(disc):
    edges = edge_map(disc)
    assert 0 <= float(edges.min()) <= float(edges.max()) <= 1
    torch.testing.assert_close(edges.transpose(1, 2), edges)
    torch.testing.assert_close(edge_map(disc.flip(2)), edges.flip(2))


def test_losses__refuse_what_does_not_fit(disc):
    with pytest.raises(ValueError, match=r"must be \(B, H, W\)"):
        spatial_dice(disc[:, :4], disc)
    with pytest.raises(ValueError, match="denominator must be one of"):
        edge_dice(disc, disc, denominator="cubic")
