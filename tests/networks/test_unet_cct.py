"""Four-decoder U-Net: count, what it returns, the perturbations."""

import pytest
import torch

from medseg_kit.networks.unet2d import UNet2D
from medseg_kit.networks.unet_cct import (
    UNetCCT,
    attention_dropout,
    feature_dropout,
    feature_noise,
)

SMALL = {"channels": (4, 8, 8, 8, 8)}


def test_parameters__published_count():
    assert sum(p.numel() for p in UNetCCT(1, 4).parameters()) == 3_713_664


def test_train__main_and_three_auxiliary_logits():
    result = UNetCCT(1, 3, **SMALL).train()(torch.randn(2, 1, 32, 32))
    assert result["logits"].shape == (2, 3, 32, 32)
    assert [logits.shape for logits in result["auxiliary"]] == [(2, 3, 32, 32)] * 3


def test_eval__is_the_plain_u_net_with_its_weights():
    torch.manual_seed(0)
    network = UNetCCT(1, 3, **SMALL).eval()
    plain = UNet2D(1, 3, **SMALL).eval()
    state = network.state_dict()
    plain.load_state_dict({key: state[key] for key in plain.state_dict()})
    image = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(network(image), plain(image))


def test_gradient__reaches_every_parameter():
    network = UNetCCT(1, 3, **SMALL).train()
    result = network(torch.randn(2, 1, 32, 32))
    total = sum(logits.square().sum() for logits in (result["logits"], *result["auxiliary"]))
    total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_feature_noise__within_range_and_shared_by_the_batch():
    torch.manual_seed(0)
    perturbed = feature_noise(torch.ones(2, 3, 32, 32))
    assert torch.equal(perturbed[0], perturbed[1])
    assert 0.7 <= perturbed.min() < 0.71 < 1.29 < perturbed.max() <= 1.3


def test_feature_dropout__drops_three_tenths():
    torch.manual_seed(0)
    perturbed = feature_dropout(torch.ones(4, 8, 32, 32))
    assert (perturbed == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert perturbed.mean().item() == pytest.approx(1.0, abs=0.02)


def test_attention_dropout__removes_the_most_active_places():
    features = torch.tensor([0.0, 6.0, 9.5, 10.0]).reshape(1, 1, 2, 2).repeat(1, 3, 1, 1)
    kept = attention_dropout(features)
    assert torch.equal(kept[0, 0], torch.tensor([[0.0, 6.0], [0.0, 0.0]]))


@pytest.mark.slow
def test_export__eval_path():
    network = UNetCCT(1, 3, **SMALL).eval()
    image = torch.randn(1, 1, 16, 16)
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image))
