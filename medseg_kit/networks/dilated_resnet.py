"""Dilated ResNet at stride 8 with a 1 x 1 projection: the encoder of CoWPro and ALPNet.

ResNet-101 of DeepLabV3 without its spatial pyramid (Ouyang et al. 2020,
https://arxiv.org/abs/2007.09886). The residual network is MONAI's; its keys are those of
torchvision, so torchvision's checkpoints load.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.resnet import ResNet, get_inplanes
from torch import nn

from medseg_kit.typing import PathLike, UserError

# depth: (block, blocks a stage)
DEPTHS: Mapping[int, tuple[str, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}
STRIDE = 8  # pixels of the image a pixel of the features
IN_CHANNELS = 3
_BACKBONE = "backbone."
_COUNTER = ".num_batches_tracked"


class DilatedResNet(nn.Module):
    """Slices to features at an eighth of their size.

    The last two stages keep the resolution and widen their view by dilation instead (2 and 4; the
    first block of a stage has the dilation of the stage before, as in torchvision). A slice of one
    channel is seen as three equal ones.

    Args:
        depth: 18, 34, 50 or 101 (the papers').
        out_channels: Channels of the features.
        widen_factor: Share of the channels of every stage; 1 in the papers.
        slice_norm: Normalise every slice by its own mean and variance. The papers' batch norm does
            so in training, where both images of an episode show the same slice, but not outside it;
            with CT and MR in one network its running averages fit neither.
        pretrained_path: Checkpoint of torchvision's DeepLabV3 with this ResNet (keys
            ``backbone.*``; the papers' is ``deeplabv3_resnet101_coco``), or of the ResNet alone.
            Random weights if None.

    Raises:
        ValueError: For another depth.
        UserError: If the checkpoint is missing, unreadable or of another network.
    """

    def __init__(
        self,
        depth: int = 101,
        *,
        out_channels: int = 256,
        widen_factor: float = 1.0,
        slice_norm: bool = False,
        pretrained_path: PathLike | None = None,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth must be one of {sorted(DEPTHS)}, got {depth}")
        block, layers = DEPTHS[depth]
        self.backbone = ResNet(
            block,
            list(layers),
            get_inplanes(),
            spatial_dims=2,
            n_input_channels=IN_CHANNELS,
            conv1_t_stride=2,
            widen_factor=widen_factor,
            feed_forward=False,
            bias_downsample=False,
        )
        _dilate(self.backbone.layer3, before=1, after=2)
        _dilate(self.backbone.layer4, before=2, after=4)
        last = [m for m in self.backbone.layer4[-1].modules() if isinstance(m, nn.Conv2d)][-1]
        self.projection = nn.Conv2d(last.out_channels, out_channels, kernel_size=1, bias=False)
        if slice_norm:  # ResNet's own `norm` leaves the first block of a stage out (MONAI 1.6.1)
            _normalise_slices(self.backbone)
        if pretrained_path is not None:
            load_pretrained(self.backbone, pretrained_path)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return features ``(B, out_channels, H / 8, W / 8)``, rounded up.

        Args:
            image: ``(B, 1 or 3, H, W)``.
        """
        net = self.backbone
        x = net.act(net.bn1(net.conv1(image.expand(-1, IN_CHANNELS, -1, -1))))
        x = net.layer2(net.layer1(net.maxpool(x)))
        features: torch.Tensor = self.projection(net.layer4(net.layer3(x)))
        return features


def load_pretrained(backbone: nn.Module, path: PathLike) -> None:
    """Load a residual network from torchvision's checkpoint; every weight of it must be there.

    Args:
        backbone: The network without its classifier.
        path: Checkpoint of DeepLabV3 (only ``backbone.*`` is used) or of the ResNet alone; the
            counters of its norms, which files of old PyTorch lack, may be missing.

    Raises:
        UserError: If the file is missing, unreadable, or does not fit; names a key.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(
            f"pretrained_path {file} does not exist; give torchvision's DeepLabV3 checkpoint, or"
            " null for random weights"
        )
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        own = {key.removeprefix(_BACKBONE): v for key, v in state.items() if _BACKBONE in key}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is no readable weights-only checkpoint ({error})") from error
    own = own or state
    expected = backbone.state_dict()
    for key, value in expected.items():
        if key.endswith(_COUNTER):
            own.setdefault(key, value)
        found = own.get(key)
        if not isinstance(found, torch.Tensor) or found.shape != value.shape:
            what = tuple(found.shape) if isinstance(found, torch.Tensor) else "missing"
            raise UserError(
                f"{file}: {key} is {what}, the encoder has {tuple(value.shape)}; give a checkpoint"
                " of the same depth, with widen_factor 1"
            )
    backbone.load_state_dict({key: own[key] for key in expected})


def _dilate(stage: nn.Sequential, *, before: int, after: int) -> None:
    """Take the stride out of a stage; its 3 x 3 convolutions are dilated instead."""
    for index, block in enumerate(stage):
        for layer in block.modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            layer.stride = (1, 1)
            if layer.kernel_size == (3, 3):
                dilation = before if index == 0 else after
                layer.dilation = layer.padding = (dilation, dilation)


def _normalise_slices(module: nn.Module) -> None:
    """Put instance norm in the place of every batch norm; the keys of its weights stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            own = nn.InstanceNorm2d(child.num_features, eps=child.eps, affine=True)
            setattr(module, name, own)
        else:
            _normalise_slices(child)
