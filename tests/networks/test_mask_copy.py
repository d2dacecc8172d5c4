"""The floor of one-shot segmentation: the support mask, whatever the query shows."""

from __future__ import annotations

import torch

from medseg_kit.networks.mask_copy import MaskCopyClassifier
from medseg_kit.networks.one_shot import OneShotNetwork


def test_mask_copy__answers_with_the_mask_of_the_support():
    mask = torch.zeros(1, 16, 16)
    mask[:, 3:9, 4:12] = 1
    copy = MaskCopyClassifier()
    foreground, background = copy.prototypes(torch.zeros(1, 1, 16, 16), mask, window=2)
    query = torch.randn(3, 1, 16, 16)
    margin = copy.score(query, foreground) - copy.score(query, background)
    assert torch.equal(margin > 0, mask.bool().expand(3, -1, -1))


def test_mask_copy__of_several_supports_is_their_majority():
    masks = torch.zeros(3, 8, 8)
    masks[:2, :4], masks[2, 4:] = 1, 1
    copy = MaskCopyClassifier()
    foreground, background = copy.prototypes(torch.zeros(3, 1, 8, 8), masks, window=2)
    query = torch.zeros(1, 1, 8, 8)
    found = copy.score(query, foreground) > copy.score(query, background)
    assert torch.equal(found, masks[:1].bool())


def test_mask_copy__the_network_knows_its_device_without_parameters():
    network = OneShotNetwork(torch.nn.Identity(), MaskCopyClassifier(), ["organ"])
    assert network.to("meta").device == torch.device("meta")
    assert not network.state_dict()
    assert "MaskCopyClassifier()" in str(network)
