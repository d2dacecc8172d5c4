"""2-D U-Net: published count, shapes of the decoder maps, sizes that do not fit."""

import pytest
import torch

from medseg_kit.networks.unet2d import UNet2D
from medseg_kit.typing import UserError

SMALL = {"channels": (4, 8, 8, 8, 8)}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("classes", "expected"), [(4, 1_813_764), (9, 1_814_489)])
def test_parameters__published_count(classes, expected):
    assert count(UNet2D(1, classes)) == expected


def test_features__shapes_at_224():
    network = UNet2D(1, 4).eval()
    with torch.no_grad():
        maps = network.features(torch.zeros(1, 1, 224, 224))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (128, 28, 28),
        (64, 56, 56),
        (32, 112, 112),
        (16, 224, 224),
    ]


def test_forward_features__taps_and_the_same_logits():
    torch.manual_seed(0)
    network = UNet2D(3, 4, **SMALL).eval()
    image = torch.randn(2, 3, 32, 48)
    logits, taps = network.forward_features(image)
    assert {name: tuple(tap.shape[1:]) for name, tap in taps.items()} == {
        "full": (4, 32, 48),
        "quarter": (8, 8, 12),
        "eighth": (8, 4, 6),
    }
    assert {name: tap.shape[1] for name, tap in taps.items()} == network.tap_channels
    torch.testing.assert_close(logits, network(image))


def test_decoder__is_a_plain_u_net():
    torch.manual_seed(0)
    network = UNet2D(1, 2, channels=(2, 4), dropout=(0.0, 0.0)).eval()
    image = torch.randn(1, 1, 4, 4)
    top, bottom = network.encoder(image)
    narrowed = torch.nn.functional.conv2d(
        bottom, network.decoder.narrow[0].weight, network.decoder.narrow[0].bias
    )
    up = torch.nn.functional.interpolate(
        narrowed, scale_factor=2, mode="bilinear", align_corners=True
    )
    expected = network.decoder.head(network.decoder.blocks[0](torch.cat([top, up], 1)))
    torch.testing.assert_close(network(image), expected)


def test_gradient__reaches_every_parameter():
    network = UNet2D(1, 3, **SMALL).train()
    network(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_mcsc_head__same_shape_other_start():
    torch.manual_seed(0)
    network = UNet2D(1, 4, mcsc_head=True)
    own = UNet2D(1, 4)
    assert network.state_dict().keys() == own.state_dict().keys()
    # Xavier-normal: variance 2 / (fan in + fan out).
    expected = (2 / (9 * (16 + 4))) ** 0.5
    assert network.decoder.head.weight.std().item() == pytest.approx(expected, rel=0.1)


def test_size__error_names_the_nearest_that_fits():
    with pytest.raises(UserError, match=r"divisible by 16; the nearest that fits is \[224, 16\]"):
        UNet2D(1, 4)(torch.zeros(1, 1, 220, 3))


def test_channels__and_dropout_must_agree():
    with pytest.raises(UserError, match="one entry a level"):
        UNet2D(1, 4, channels=(8, 16))


@pytest.mark.slow
def test_export__eval_path():
    network = UNet2D(1, 3, **SMALL).eval()
    image = torch.randn(1, 1, 16, 16)
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image))
