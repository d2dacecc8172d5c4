"""The encoder of one-shot segmentation: stride, parameter counts, torchvision's checkpoints."""

from __future__ import annotations

import pytest
import torch

from medseg_kit.networks.dilated_resnet import DilatedResNet
from medseg_kit.typing import UserError

# ResNet without its classifier, and 1 x 1 projection to 256 channels
PARAMETERS = {18: 11_176_512 + 512 * 256, 101: 42_500_160 + 2048 * 256}


@pytest.mark.parametrize("depth", sorted(PARAMETERS))
def test_dilated_resnet__golden_parameters(depth):
    with torch.device("meta"):
        network = DilatedResNet(depth)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[depth]


@pytest.mark.parametrize("depth", [18, 50])
def test_dilated_resnet__features_at_an_eighth(depth):
    network = DilatedResNet(depth, widen_factor=0.125, out_channels=32).eval()
    with torch.no_grad():
        one = network(torch.ones(2, 1, 64, 48))
        three = network(torch.ones(2, 3, 64, 48))
    assert one.shape == (2, 32, 8, 6)
    torch.testing.assert_close(one, three)


def test_dilated_resnet__slice_norm_is_that_of_an_episode():
    """Two equal views: batch norm in training and slice norm outside give the same features."""
    batch = DilatedResNet(18, widen_factor=0.125, out_channels=32).train()
    own = DilatedResNet(18, widen_factor=0.125, out_channels=32, slice_norm=True).eval()
    state = batch.state_dict()
    own.load_state_dict({key: state[key] for key in own.state_dict()})
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            batch(image.expand(2, -1, -1, -1))[:1], own(image), atol=1e-4, rtol=1e-3
        )


def test_dilated_resnet__dilations_are_those_of_torchvision():
    with torch.device("meta"):
        network = DilatedResNet(101)
    for stage, expected in (("layer3", [1] + [2] * 22), ("layer4", [2, 4, 4])):
        blocks = getattr(network.backbone, stage)
        assert [block.conv2.dilation[0] for block in blocks] == expected
        assert [block.conv2.stride[0] for block in blocks] == [1] * len(expected)


def test_pretrained__loads_deeplabs_backbone(tmp_path):
    source = DilatedResNet(18)
    state = {f"backbone.{key}": v + 1 for key, v in source.backbone.state_dict().items()}
    state["classifier.0.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "deeplab.pth")
    network = DilatedResNet(18, pretrained_path=tmp_path / "deeplab.pth")
    for key, value in network.backbone.state_dict().items():
        torch.testing.assert_close(value, state[f"backbone.{key}"])


def test_pretrained__files_of_old_pytorch_lack_the_counters_of_the_norms(tmp_path):
    state = DilatedResNet(18).backbone.state_dict()
    old = {key: v for key, v in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "resnet.pth")
    network = DilatedResNet(18, pretrained_path=tmp_path / "resnet.pth")
    torch.testing.assert_close(network.backbone.conv1.weight, state["conv1.weight"])


def test_pretrained__the_names_are_those_of_torchvision():
    """Golden names and shapes of deeplabv3_resnet101_coco; torchvision is no dependency."""
    with torch.device("meta"):
        state = DilatedResNet(101).backbone.state_dict()
    assert len(state) == 624
    for key, shape in {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.weight": (256,),
        "layer3.22.conv2.weight": (256, 256, 3, 3),
        "layer4.2.bn3.bias": (2048,),
    }.items():
        assert tuple(state[key].shape) == shape


def test_pretrained__that_does_not_fit_names_a_key(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        DilatedResNet(18, pretrained_path=tmp_path / "nothing.pth")
    torch.save({"backbone.conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"conv1\.weight is \(64, 3, 3, 3\)"):
        DilatedResNet(18, pretrained_path=tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(UserError, match="no readable weights-only checkpoint"):
        DilatedResNet(18, pretrained_path=tmp_path / "text.pth")


def test_depth__unknown():
    with pytest.raises(ValueError, match="depth must be one of"):
        DilatedResNet(20)


@pytest.mark.slow
def test_dilated_resnet__features_of_the_papers():
    with torch.device("meta"):
        assert DilatedResNet(101)(torch.zeros(1, 3, 256, 256)).shape == (1, 256, 32, 32)
