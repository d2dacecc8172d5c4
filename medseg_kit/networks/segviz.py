"""SegViz: one 3-D U-Net representation shared by all sites and one small head per organ.

Kanhere et al., "SegViz: a federated-learning based framework for multi-organ segmentation on
heterogeneous data sets with partial annotations", 2023 (https://arxiv.org/abs/2301.07074).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from monai.networks.nets import UNet
from torch import nn

# Logit difference of an organ whose head a site does not hold: it never wins the argmax, and it
# survives half precision and linear interpolation, which minus infinity would not.
ABSENT_HEAD_LOGIT = -1e4


class TaskNorm(nn.Module):
    """One normalisation layer per task over a batch in which the tasks follow each other.

    Args:
        norm: The layer to copy for each task.
        tasks: Names of the tasks, in the order of their chunks in the batch.
    """

    def __init__(self, norm: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({task: copy.deepcopy(norm) for task in tasks})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise chunk ``k`` with the layer of task ``k``; shape ``(K * B, C, ...)`` kept."""
        chunks = x.chunk(len(self.norms)) if len(self.norms) > 1 else (x,)
        normalised = [norm(chunk) for norm, chunk in zip(self.norms.values(), chunks)]
        return torch.cat(normalised) if len(normalised) > 1 else normalised[0]


class SegVizUNet(nn.Module):
    """Multi-head U-Net: representation block, then one two-channel head per organ.

    The head is the top of the up-path (transposed convolution and residual unit), the
    representation is everything else. In training mode the forward returns
    ``{"logits": {organ: (B, 2, H, W[, D])}}``; in evaluation mode one tensor ``(B, 1 + K, ...)``
    with the channels ``[0, d_1 .. d_K]``, ``d = foreground - background`` of a head, so that argmax
    is the fusion rule: the organ with the highest foreground probability, if that exceeds 0.5.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Channels of the image.
        organs: All organs of the model, in label order (organ ``i`` has label ``i + 1``).
        heads: The organs whose heads this copy holds (a site holds its own); all by default.
        channels: Features a level, top first.
        strides: Stride of each down-sampling; the image side must be divisible by their product.
        num_res_units: Residual sub-units a level.
        norm: MONAI's name of the normalisation layer.
        task_norm: Keep one set of normalisation layers per organ (FedBN for partial labels). The
            representation then runs once per head: K passes at inference.
        dropout: Dropout probability.
        answer: The organs that the fused output may hold, all by default. With one organ, argmax is
            that head's own decision, as the papers evaluate each head.
        frozen_representation: Train the heads alone, the paper's fine-tuning after the federation:
            the representation gets no gradient, and its norms keep their statistics.

    Raises:
        ValueError: If a head names an unknown organ, or organs repeat.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - each argument is an id of the configuration
        self,
        spatial_dims: int,
        in_channels: int,
        organs: Sequence[str],
        heads: Sequence[str] | None = None,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        strides: Sequence[int] = (2, 2, 2, 2),
        num_res_units: int = 2,
        norm: str = "batch",
        task_norm: bool = False,
        dropout: float = 0.0,
        answer: Sequence[str] | None = None,
        frozen_representation: bool = False,
    ) -> None:
        super().__init__()
        held = list(organs) if heads is None else [o for o in organs if o in heads]
        _check_names(organs, heads, held)
        _check_names(organs, answer, held)
        self.organs = list(organs)
        self.answer = [organ for organ in held if answer is None or organ in answer]
        self.task_norm = task_norm
        self.divisor = 1
        for stride in strides:
            self.divisor *= stride
        unet = UNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=2,
            channels=channels,
            strides=strides,
            num_res_units=num_res_units,
            norm=norm,
            dropout=dropout,
        )
        down, skip, head = unet.model.children()
        self.representation = nn.Sequential(down, skip)
        if task_norm:
            _replace_norms(self.representation, held)
        self.heads = nn.ModuleDict({organ: _fresh_copy(head) for organ in held})
        self.frozen_representation = frozen_representation
        self.representation.requires_grad_(not frozen_representation)

    def extra_repr(self) -> str:
        """Say which heads answer where not all do: two such networks differ in nothing else."""
        return "" if len(self.answer) == len(self.heads) else f"answer={self.answer}"

    def train(self, mode: bool = True) -> SegVizUNet:
        """Switch to training or evaluation; a frozen representation stays in evaluation."""
        super().train(mode)
        if self.frozen_representation:
            self.representation.eval()
        return self

    def forward(self, image: torch.Tensor) -> torch.Tensor | dict[str, dict[str, torch.Tensor]]:
        """Segment ``image`` ``(B, in_channels, H, W[, D])``; see the class for the result."""
        self._check_size(image)
        copies = len(self.heads) if self.task_norm else 1
        stacked = image.repeat(copies, *[1] * (image.dim() - 1)) if copies > 1 else image
        features = self.representation(stacked).chunk(copies)
        if not self.task_norm:
            features = features * len(self.heads)
        logits = {
            organ: head(feature) for (organ, head), feature in zip(self.heads.items(), features)
        }
        return {"logits": logits} if self.training else self._fuse(logits)

    def _fuse(self, logits: dict[str, torch.Tensor]) -> torch.Tensor:
        """Stack the margins of the heads behind a zero background: ``(B, 1 + K, ...)``."""
        some = next(iter(logits.values()))[:, :1]
        absent = torch.full_like(some, ABSENT_HEAD_LOGIT)
        margins = [
            logits[organ][:, 1:2] - logits[organ][:, 0:1] if organ in self.answer else absent
            for organ in self.organs
        ]
        return torch.cat([torch.zeros_like(some), *margins], dim=1)

    def _check_size(self, image: torch.Tensor) -> None:
        size = list(image.shape[2:])
        if any(side % self.divisor for side in size):
            fixed = [-(-side // self.divisor) * self.divisor for side in size]
            raise ValueError(
                f"image size {size} must be divisible by {self.divisor}; pad to {fixed}"
            )


def _check_names(organs: Sequence[str], heads: Sequence[str] | None, held: Sequence[str]) -> None:
    if len(set(organs)) != len(organs):
        raise ValueError(f"organs must differ from each other, got {list(organs)}")
    unknown = set(heads or ()) - set(organs)
    if unknown or not held:
        raise ValueError(
            f"heads {sorted(unknown) or heads} are not among the organs {list(organs)}; "
            "name at least one organ of the model"
        )


def _replace_norms(module: nn.Module, tasks: Sequence[str]) -> None:
    """Replace every normalisation layer (named ``N`` in MONAI's ADN blocks) by a `TaskNorm`."""
    for name, child in module.named_children():
        if name == "N":
            setattr(module, name, TaskNorm(child, tasks))
        else:
            _replace_norms(child, tasks)


def _fresh_copy(module: nn.Module) -> nn.Module:
    """Copy a module and draw its parameters anew, so that heads do not start equal."""
    fresh = copy.deepcopy(module)
    for child in fresh.modules():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
    return fresh
