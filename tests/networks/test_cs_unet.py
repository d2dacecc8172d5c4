"""CS-Unet: the counts of its ablation table, its switches, shapes and gradients."""

import pytest
import torch

from medseg_kit.networks.cs_unet import CSUNet
from medseg_kit.typing import UserError

SMALL = {"image_size": 32, "window_size": 4, "embed_dim": 12, "num_heads": (1, 1, 2, 2)}
TINY = {"image_size": 16, "window_size": 2, "embed_dim": 4, "depths": (2, 2), "num_heads": (1, 2)}
OFF = {"emb": False, "proj": "linear", "pos": True, "att": False, "dsf": False, "sc": False}
ON = {"emb": True, "proj": "window", "att": True, "dsf": True, "sc": True}
FEED_FORWARDS = ["single_conv", "residual", "preactivation", "resnext"]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def leaf_count(module):
    """Parameters as the paper counted them: without bias tables and LayerScale."""
    bare = ("relative_position_bias_table", "gamma")
    return sum(p.numel() for name, p in module.named_parameters() if not name.endswith(bare))


def test_parameters__published_count_and_parts():
    with torch.device("meta"):
        network = CSUNet(1, 4)
    assert count(network) == 24_690_096
    assert count(network.embedding) == 147_024
    blocks = [count(stage.blocks[0]) for stage in network.encoder]
    assert blocks == [83_520, 314_496, 1_218_816, 4_796_928]
    upsamplers = [network.upsample, network.decoder[0].upsample, network.decoder[1].upsample]
    assert [count(module) for module in upsamplers] == [1_181_568, 295_872, 74_208]
    fusions = [count(stage.fusion) for stage in network.decoder]
    assert fusions == [3_982_080, 995_712, 249_024]


# Table 3.3 with 9 classes; for methods 1 and 2 the paper prints the same number.
@pytest.mark.parametrize(
    ("switches", "leaf", "bare"),
    [
        (OFF, 27_146_592, 22_308),
        ({**OFF, "emb": True}, 27_288_720, 22_308),
        ({**OFF, "emb": True, "proj": "window"}, 21_554_064, 22_308),
        ({**OFF, "emb": True, "proj": "window", "pos": False, "att": True}, 19_634_064, 0),
        ({**ON, "sc": False}, 19_845_264, 4_224),
        ({**ON, "pos": True}, 24_686_352, 22_308 + 4_224),
        (ON, 24_686_352, 4_224),
    ],
    ids=[f"method {number}" for number in range(7)],
)
def test_parameters__ablation(switches, leaf, bare):
    with torch.device("meta"):
        network = CSUNet(1, 9, **switches)
    assert leaf_count(network) == leaf
    assert count(network) - leaf == bare


@pytest.mark.slow
def test_forward__shapes_at_224():
    network = CSUNet(1, 4).eval()
    with torch.no_grad():
        logits, taps = network.forward_features(torch.zeros(1, 1, 224, 224))
    assert logits.shape == (1, 4, 224, 224)
    assert {name: tuple(tap.shape[1:]) for name, tap in taps.items()} == {
        "eighth": (192, 28, 28),
        "quarter": (96, 56, 56),
        "full": (96, 224, 224),
    }


def test_forward__small_variant_at_128():
    network = CSUNet(1, 4, image_size=128, window_size=4, embed_dim=48).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 128, 128)).shape == (1, 4, 128, 128)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        OFF,
        {"pos": True},
        {"proj": "cvt"},
        {"patch_size": 2, "image_size": 16},
        *({"dsf": False, "ffn": ffn} for ffn in FEED_FORWARDS),
    ],
    ids=str,
)
def test_gradient__reaches_every_parameter(switches):
    torch.manual_seed(0)
    settings = {**SMALL, **switches}
    network = CSUNet(1, 3, **settings).train()
    side = settings["image_size"]
    logits = network(torch.randn(2, 1, side, side))
    assert logits.shape == (2, 3, side, side)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_position__none_by_default():
    """Window attention without position is the same for every order of windows."""
    torch.manual_seed(0)
    attention = CSUNet(1, 3, **SMALL).eval().encoder[0].blocks[0].attention
    tokens = torch.randn(1, 8, 8, 12)
    swapped = torch.roll(tokens, (4, 4), (1, 2))
    with torch.no_grad():
        expected = torch.roll(attention(tokens), (4, 4), (1, 2))
        torch.testing.assert_close(attention(swapped), expected)


def test_proj__unknown_is_an_error():
    with pytest.raises(UserError, match=r"proj is False; .*cvt.*linear.*window"):
        CSUNet(1, 3, **SMALL, proj=False)


def test_ffn__unknown_or_without_effect_is_an_error():
    with pytest.raises(UserError, match="ffn is 'conv'"):
        CSUNet(1, 3, **SMALL, dsf=False, ffn="conv")
    with pytest.raises(UserError, match="set dsf to false"):
        CSUNet(1, 3, **SMALL, ffn="resnext")


def test_image_size__error_names_the_nearest_that_fits():
    with pytest.raises(UserError, match="nearest that fits is 224"):
        CSUNet(1, 4, image_size=256)


def test_patch_size__must_be_a_power_of_two():
    with pytest.raises(UserError, match="patch_size 3"):
        CSUNet(1, 4, image_size=24, patch_size=3, window_size=4, embed_dim=12, num_heads=(1,) * 4)


@pytest.mark.slow
@pytest.mark.parametrize("switches", [{}, {"proj": "cvt", "pos": True}], ids=str)
def test_export__eval_path(switches):
    network = CSUNet(1, 3, **TINY, **switches).eval()
    image = torch.randn(1, 1, 16, 16)
    exported = torch.export.export(network, (image,)).module()
    torch.testing.assert_close(exported(image), network(image))


@pytest.mark.parametrize(("std", "expected"), [(0.02, 0.02), (None, 0.14)])
def test_convolutions__start_as_asked(std, expected):
    torch.manual_seed(0)
    network = CSUNet(1, 4, 64, 4, 2, 24, num_heads=(1, 1, 2, 2), conv_init_std=std)
    depthwise = [
        module.weight.flatten()
        for module in network.modules()
        if isinstance(module, torch.nn.Conv2d) and module.groups == module.out_channels > 1
    ]
    assert torch.cat(depthwise).std().item() == pytest.approx(expected, rel=0.1)
