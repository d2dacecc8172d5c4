"""Contrastive projectors: unit length, one shared layer, the norm of token taps."""

import pytest
import torch

from medseg_kit.networks.projectors import Projectors, projectors_between
from medseg_kit.networks.swin_unet import SwinUNet2D
from medseg_kit.networks.unet2d import UNet2D
from medseg_kit.typing import UserError

CNN = {"full": 16, "quarter": 64, "eighth": 128}
SWIN = {"full": 96, "quarter": 96, "eighth": 192}
SIDES = {"full": 16, "quarter": 4, "eighth": 2}


def taps(channels):
    return {scale: torch.randn(2, width, *[SIDES[scale]] * 2) for scale, width in channels.items()}


def test_forward__unit_vectors_of_128_channels():
    torch.manual_seed(0)
    projected = Projectors(CNN, SWIN)(taps(CNN), taps(SWIN))
    assert set(projected) == {"full", "eighth"}
    for scale, pair in projected.items():
        for each in pair:
            features = each.maps()
            assert features.shape == (2, 128, SIDES[scale], SIDES[scale])
            length = features.norm(dim=1)
            torch.testing.assert_close(length, torch.ones_like(length), atol=1e-5, rtol=0)


def test_features__unit_length_under_autocast():
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        first, second = Projectors(CNN, SWIN)(taps(CNN), taps(SWIN))["full"]
        found = [
            first.maps().movedim(1, -1).flatten(0, 2),
            second.all(),
            second.pixels(torch.arange(9)),
        ]
    for features in found:
        length = features.norm(dim=1)
        torch.testing.assert_close(length, torch.ones_like(length), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_all__is_the_maps_pixel_by_pixel(layout, monkeypatch):
    monkeypatch.setattr("medseg_kit.networks.projectors._TOKENS", 100)  # several parts
    torch.manual_seed(0)
    pair = Projectors(CNN, SWIN, token_taps=((), ("full",)))(taps(CNN), taps(SWIN))["full"]
    for each in pair:
        each.tap = each.tap.contiguous(memory_format=layout)
        expected = each.maps().movedim(1, -1).flatten(0, 2)
        torch.testing.assert_close(each.all(), expected, atol=1e-6, rtol=0)


def test_second_layer__is_shared_by_the_branches():
    projectors = Projectors({"full": 4}, {"full": 4}, ["full"], hidden=8, out=3)
    projectors.second["full"].load_state_dict(projectors.first["full"].state_dict())
    features = {"full": torch.randn(1, 4, 5, 5)}
    first, second = projectors(features, features)["full"]
    assert torch.equal(first.maps(), second.maps())


def test_token_taps__are_normalised_first():
    projectors = Projectors(
        {"full": 4}, {"full": 4}, ["full"], hidden=8, out=3, token_taps=((), ("full",))
    )
    features = torch.randn(1, 4, 5, 5)
    one = projectors({"full": features}, {"full": features})["full"]
    other = projectors({"full": features}, {"full": 7 * features + 2})["full"]
    torch.testing.assert_close(one[1].maps(), other[1].maps(), atol=1e-4, rtol=0)


def test_projectors_between__reads_the_students():
    first = UNet2D(1, 4)
    second = SwinUNet2D(1, 4, 32, 4, 4, 12, num_heads=(1, 1, 2, 2))
    projectors = projectors_between(first, second, ("full", "quarter", "eighth"))
    layers = {
        (branch, scale): [type(layer).__name__ for layer in module]
        for branch in ("first", "second")
        for scale, module in getattr(projectors, branch).items()
    }
    plain, normed = ["Conv2d", "ReLU"], ["ChannelNorm", "Conv2d", "ReLU"]
    assert {key for key, value in layers.items() if value == normed} == {
        ("second", "quarter"),
        ("second", "eighth"),
    }
    assert {key for key, value in layers.items() if value == plain} == {
        ("first", "full"),
        ("first", "quarter"),
        ("first", "eighth"),
        ("second", "full"),
    }


def test_gradient__reaches_every_parameter():
    projectors = Projectors(CNN, SWIN, ("full", "quarter", "eighth"), 8, 4)
    projected = projectors(taps(CNN), taps(SWIN))
    sum(a.maps()[:, 0].sum() + b.maps()[:, 1].sum() for a, b in projected.values()).backward()
    assert all(parameter.grad is not None for parameter in projectors.parameters())


def test_scale__unknown_is_an_error():
    with pytest.raises(UserError, match=r"'half'.*\['eighth', 'full', 'quarter'\]"):
        Projectors(CNN, SWIN, ["half"])
