"""Swin-Unet: published count, taps, the two sizes that ship, sizes that do not fit."""

import pytest
import torch
from monai.networks.nets.swin_unetr import PatchMergingV2

from medseg_kit.networks.swin_blocks import PatchExpand
from medseg_kit.networks.swin_unet import SwinUNet2D
from medseg_kit.typing import UserError

SMALL = {"image_size": 32, "window_size": 4, "embed_dim": 12, "num_heads": (1, 1, 2, 2)}
TINY = {"image_size": 16, "window_size": 2, "embed_dim": 4, "depths": (2, 2), "num_heads": (1, 2)}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def tables(module):
    named = module.named_parameters()
    return sum(p.numel() for name, p in named if name.endswith("relative_position_bias_table"))


def test_parameters__published_count():
    with torch.device("meta"):
        network = SwinUNet2D(1, 9)
    assert count(network) == 27_168_900
    assert count(network) - tables(network) == 27_146_592
    assert count(network.embedding) == 4_896


@pytest.mark.slow
def test_parameters__four_classes_and_shapes_at_224():
    network = SwinUNet2D(1, 4).eval()
    assert count(network) == 27_168_420
    with torch.no_grad():
        logits, taps = network.forward_features(torch.zeros(1, 1, 224, 224))
    assert logits.shape == (1, 4, 224, 224)
    assert {name: tuple(tap.shape[1:]) for name, tap in taps.items()} == {
        "eighth": (192, 28, 28),
        "quarter": (96, 56, 56),
        "full": (96, 224, 224),
    }
    assert {name: tap.shape[1] for name, tap in taps.items()} == network.tap_channels


def test_forward__small_variant_at_128():
    network = SwinUNet2D(1, 4, image_size=128, window_size=4, embed_dim=48).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 128, 128)).shape == (1, 4, 128, 128)


@pytest.mark.parametrize("options", [{"image_size": 16, "patch_size": 2}, {"in_channels": 3}])
def test_forward__other_patches_and_channels(options):
    settings = {"in_channels": 1, "out_channels": 2, **SMALL, **options}
    network = SwinUNet2D(**settings).eval()
    side = settings["image_size"]
    logits, taps = network.forward_features(torch.randn(2, settings["in_channels"], side, side))
    assert logits.shape == (2, 2, side, side)
    assert {name: tap.shape[1] for name, tap in taps.items()} == network.tap_channels


def test_gradient__reaches_every_parameter():
    network = SwinUNet2D(1, 3, **SMALL).train()
    network(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_drop_path__decoder_mirrors_the_encoder():
    network = SwinUNet2D(1, 3, **SMALL)
    encoder, decoder = (
        [[block.drop_path.drop_prob for block in stage.blocks] for stage in part]
        for part in (network.encoder, network.decoder)
    )
    assert decoder == encoder[2::-1]
    assert encoder[-1][-1] == pytest.approx(0.2)
    feed_forward = network.encoder[1].blocks[1].feed_forward
    assert feed_forward.drop_path.drop_prob == encoder[1][1]


def test_patch_merging__order_is_the_published_one():
    merging = PatchMergingV2(1, spatial_dims=2)
    merging.norm = merging.reduction = torch.nn.Identity()
    tokens = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 2, 2, 1)
    # (row, column) = (0, 0), (1, 0), (0, 1), (1, 1): what published weights expect.
    assert merging(tokens).flatten().tolist() == [0.0, 2.0, 1.0, 3.0]


def test_patch_expand__channels_become_rows_then_columns():
    expand = PatchExpand(1, 1, 2)
    expand.norm = torch.nn.Identity()
    torch.nn.init.zeros_(expand.expand.weight)
    expand.expand.weight.data[:, 0] = torch.arange(4.0)
    assert expand(torch.ones(1, 1, 1, 1))[0, ..., 0].tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_mcsc_head__is_three_by_three_with_bias():
    head = SwinUNet2D(1, 3, **SMALL, mcsc_head=True).head
    assert head.kernel_size == (3, 3)
    assert head.bias is not None


def test_image_size__error_names_the_nearest_that_fits():
    with pytest.raises(UserError, match="nearest that fits is 224"):
        SwinUNet2D(1, 4, image_size=256)


def test_forward__other_size_than_built_for_is_an_error():
    with pytest.raises(UserError, match=r"\[32, 48\].*the size that fits is \[32, 32\]"):
        SwinUNet2D(1, 3, **SMALL)(torch.zeros(1, 1, 32, 48))


@pytest.mark.slow
def test_export__eval_path():
    network = SwinUNet2D(1, 3, **TINY).eval()
    image = torch.randn(1, 1, 16, 16)
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image))
