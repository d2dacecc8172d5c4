"""The layers of CS-Unet against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from medseg_kit.networks.cs_blocks import ConvEmbedding, ConvFusion, ConvProjection, ConvUpsample
from medseg_kit.networks.cs_feed_forward import DepthwiseSeparableFeedForward, resnext


def test_projection__pads_each_window_with_zeros():
    torch.manual_seed(0)
    projection = ConvProjection(4)
    windows = torch.randn(3, 5, 5, 4)
    parts = projection(windows)
    assert [part.shape for part in parts] == [(3, 5, 5, 4)] * 3
    for part, conv in zip(parts, projection.convs, strict=True):
        maps = F.conv2d(windows.permute(0, 3, 1, 2), conv.weight, padding=1, groups=4)
        torch.testing.assert_close(part, F.layer_norm(maps.permute(0, 2, 3, 1), (4,)))


def test_dsf__starts_as_the_identity():
    torch.manual_seed(0)
    tokens = torch.randn(2, 8, 8, 4)
    torch.testing.assert_close(DepthwiseSeparableFeedForward(4)(tokens), tokens, atol=1e-4, rtol=0)
    changed = DepthwiseSeparableFeedForward(4, layerscale_init=0.7)(tokens)
    assert (changed - tokens).abs().mean() > 0.01


def test_embedding__one_pair_of_convolutions_for_each_halving():
    embedding = ConvEmbedding(3, 96, 4)
    assert [pair[0].out_channels for pair in embedding.pairs] == [48, 96]
    assert embedding(torch.randn(1, 3, 16, 16)).shape == (1, 4, 4, 96)


def test_upsample__doubles_the_side_and_halves_the_channels():
    assert ConvUpsample(8)(torch.randn(2, 3, 3, 8)).shape == (2, 6, 6, 4)


def test_fusion__keeps_the_shape_and_reads_both():
    torch.manual_seed(0)
    fusion = ConvFusion(4).eval()
    tokens, skip = torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4)
    fused = fusion(tokens, skip)
    assert fused.shape == (2, 3, 3, 4)
    assert not torch.equal(fused, fusion(tokens, torch.zeros_like(skip)))
    assert not torch.equal(fused, fusion(torch.zeros_like(tokens), skip))


@pytest.mark.parametrize(("dim", "groups"), [(96, 16), (192, 32), (8, 4)])
def test_resnext__groups_divide_the_width(dim, groups):
    assert resnext(dim).layers[3].groups == groups
