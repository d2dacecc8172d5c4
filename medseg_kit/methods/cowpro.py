"""CoWPro and FedCoWPro: one-way, one-shot episodes on superpixels.

A superpixel of a slice is the organ of the moment: one distorted view of the slice is the support,
another the query. ALPNet (Ouyang et al. 2020, https://arxiv.org/abs/2007.09886) with correlated
prototypes (CoWPro); the spatial and edge Dice terms are FedCoWPro's (equation 4).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from monai.losses import TverskyLoss
from monai.utils.enums import CommonKeys
from torch import nn
from torch.nn import functional

from medseg_kit.engines.step import Losses, TrainStep
from medseg_kit.losses.fused_dice import edge_dice, spatial_dice
from medseg_kit.networks.prototypes import Cells, PrototypeClassifier

if TYPE_CHECKING:
    from monai.engines import SupervisedTrainer

logger = logging.getLogger(__name__)

WINDOW = 4  # pooling window of the support features in training
CLASS_WEIGHTS = (0.05, 1.0)  # of background and foreground in the cross-entropy of the query


class CoWProStep(TrainStep):
    """Segments each query by its support, then the support by the answer.

    The first half of a batch are supports, the second half their queries (`EpisodeLoader`), and
    both go through the network at once. An episode whose support mask is empty does not count; the
    loader draws another. If nothing, or nothing else, is found in a query there is nothing to
    segment the support by: that loss is 0 for the episode, which is counted in ``num_unaligned``
    as long as the process lives, and logged.

    Args:
        classifier: Makes and compares prototypes.
        spatial_weight: Weight of the spatial Dice loss; 1 in the second column of the paper.
        edge_weight: Weight of the edge Dice loss; 1 there too.
        edge_denominator: See `edge_dice`.
        tversky_weight: Weight of a soft Tversky loss (0.3 for what is found too much, 0.7 for what
            is missed). CoWPro's code has it on hard labels, where it trains nothing,
            so it is left out unless asked for.
        window: Side of a prototype's cell in pixels of the features.
        freeze_norm: Let batch norms use the statistics that they came with, instead of those of the
            batch; for an encoder with pre-trained ones.
        **options: Those of `TrainStep`.
    """

    def __init__(
        self,
        classifier: PrototypeClassifier,
        *,
        spatial_weight: float = 0.0,
        edge_weight: float = 0.0,
        edge_denominator: str = "squared",
        tversky_weight: float = 0.0,
        window: int = WINDOW,
        freeze_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.classifier = classifier
        self.spatial_weight = spatial_weight
        self.edge_weight = edge_weight
        self.edge_denominator = edge_denominator
        self.tversky_weight = tversky_weight
        self.tversky = TverskyLoss(alpha=0.3, beta=0.7, reduction="none")
        self.window = window
        self.freeze_norm = freeze_norm
        self.num_unaligned = 0

    def losses(
        self, engine: SupervisedTrainer, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, Losses]:
        """Return the queries' logits ``(B, 2, H, W)`` and the losses of the episodes."""
        masks = batch[CommonKeys.LABEL][:, 0]
        if self.freeze_norm:
            _freeze_norms(engine.network)
        features = engine.network(batch[CommonKeys.IMAGE])["features"].float()
        with torch.autocast(features.device.type, enabled=False):  # correlations in float32
            return self._episode_losses(features, masks)

    def _episode_losses(
        self, features: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor, Losses]:
        """Return `losses` for features ``(2B, C, h, w)`` and masks ``(2B, H, W)``."""
        (support, query), (support_mask, query_mask) = features.chunk(2), masks.chunk(2)
        used = (support_mask > 0).flatten(1).any(dim=1)
        cells = self.classifier.cells(support, support_mask.float(), window=self.window)
        small = self._logits(query, cells)
        logits = _enlarged(small, masks.shape[-2:])
        losses = {
            "query": _mean(_weighted_cross_entropy(logits, query_mask.long()), used),
            "alignment": self._alignment(small, features, support_mask.long(), used),
        }
        foreground, target = logits.softmax(dim=1)[:, 1], query_mask.float()
        if self.spatial_weight:
            losses["spatial"] = self.spatial_weight * _mean(spatial_dice(foreground, target), used)
        if self.edge_weight:
            edges = edge_dice(foreground, target, denominator=self.edge_denominator)
            losses["edge"] = self.edge_weight * _mean(edges, used)
        if self.tversky_weight:
            missed = self.tversky(foreground[:, None], target[:, None]).flatten()
            losses["tversky"] = self.tversky_weight * _mean(missed, used)
        return logits, losses

    def _alignment(
        self,
        answer: torch.Tensor,
        features: torch.Tensor,
        support_mask: torch.Tensor,
        used: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of the supports, segmented by the queries' answers ``(B, 2, h, w)``."""
        support, query = features.chunk(2)
        found = answer.argmax(dim=1)
        cells = self.classifier.cells(query, found.float(), window=self.window)
        logits = _enlarged(self._logits(support, cells), support_mask.shape[-2:])
        answer_shares = found.flatten(1).float().mean(dim=1)
        has_answer = (answer_shares > 0) & (answer_shares < 1)
        missing = int((used & ~has_answer).sum())
        if missing:
            before, self.num_unaligned = self.num_unaligned, self.num_unaligned + missing
            if before.bit_length() < self.num_unaligned.bit_length():  # at 1, 2, 4, 8, ...
                logger.info(
                    "%d queries so far in which nothing, or all, was found: no alignment loss",
                    self.num_unaligned,
                )
        losses = functional.cross_entropy(logits, support_mask, reduction="none").mean((1, 2))
        return _mean(losses, used & has_answer)

    def _logits(self, query: torch.Tensor, cells: Cells) -> torch.Tensor:
        score = self.classifier.score
        background = score(query, cells.background, cells.background_valid)
        foreground = score(query, cells.foreground, cells.foreground_valid)
        return torch.stack([background, foreground], dim=1)


def _freeze_norms(network: nn.Module) -> None:
    """Let batch norms use the statistics that they came with.

    Raises:
        ValueError: If there is none.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise ValueError(
            "freeze_norm is for batch norms, and the network has none (slice_norm: true normalises"
            " each slice by itself); leave it out"
        )
    for layer in norms:
        layer.eval()


def _enlarged(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return functional.interpolate(logits, size, mode="bilinear")


def _weighted_cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return each image's cross-entropy, ``(B,)``: the mean over pixels by class weight."""
    weights = logits.new_tensor(CLASS_WEIGHTS)
    losses = functional.cross_entropy(logits, target, weight=weights, reduction="none")
    return losses.sum((1, 2)) / weights[target].sum((1, 2))


def _mean(values: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """Return the mean of the values ``(B,)`` that count, 0 if none does."""
    return torch.where(used, values, 0.0).sum() / used.sum().clamp(min=1)
