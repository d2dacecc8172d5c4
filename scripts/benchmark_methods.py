"""Rows of `benchmark.py` about training steps of the label-efficient methods.

The peers are the methods' equations as a research script writes them: float32, one class after the
other, all features projected before any is chosen.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import torch
from benchmark_timing import Arguments, Record, compare_race, race
from torch import nn
from torch.nn import functional as F

NUM_CLASSES = 4
TEMPERATURE = 0.1


def cross_teaching(arguments: Arguments) -> list[Record]:
    """A step of cross teaching, U-Net and Swin-Unet, against two float32 networks in a script."""
    from medseg_kit.methods.cross_teaching import CrossTeachingStep
    from medseg_kit.networks.dual import DualNetwork
    from medseg_kit.networks.swin_unet import SwinUNet2D
    from medseg_kit.networks.unet2d import UNet2D

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    size, batch_size = (32, 4) if arguments.tiny else (224, 8)
    small = {"window_size": 1, "embed_dim": 12} if arguments.tiny else {}
    first = UNet2D(1, NUM_CLASSES)
    second = SwinUNet2D(1, NUM_CLASSES, image_size=size, **small)
    image = torch.rand(batch_size, 1, size, size)
    label = _blobs(batch_size, size)
    labelled = torch.arange(batch_size) < batch_size // 2
    batch = {"image": image, "label": label[:, None].to(torch.uint8), "labelled": labelled}

    network = DualNetwork(copy.deepcopy(first), copy.deepcopy(second)).train()
    network = network.to(memory_format=torch.channels_last)
    step = CrossTeachingStep(total_steps=30_000, amp="bf16", clip_norm=12.0)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    state = SimpleNamespace(device=torch.device("cpu"), output=None)
    engine: Any = SimpleNamespace(
        network=network,
        optimizer=optimizer,
        state=state,
        non_blocking=False,
        fire_event=lambda event: None,
    )
    peer = _cross_teaching_peer(first.train(), second.train(), image, label, batch_size // 2)
    results = race({"peer": peer, "own": lambda: step(engine, batch)}, arguments.repeats)
    row = f"cross-teaching step, {size} px, batch {batch_size}"
    return [compare_race(row, results, 2.8)]


def _cross_teaching_peer(
    first: nn.Module, second: nn.Module, image: torch.Tensor, label: torch.Tensor, count: int
) -> Any:
    """Return a step written plainly: two networks, two optimisers, classes one by one."""
    optimizers = [
        torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
        for network in (first, second)
    ]

    def dice(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros(())
        for value in range(NUM_CLASSES):
            share, truth = probabilities[:, value], (target == value).float()
            total = (share * share).sum() + (truth * truth).sum()
            loss = loss + 1 - (2 * (share * truth).sum() + 1e-5) / (total + 1e-5)
        return loss / NUM_CLASSES

    def step() -> None:
        answers = [first(image), second(image)]
        shares = [torch.softmax(answer, dim=1) for answer in answers]
        loss = torch.zeros(())
        for own, other in ((0, 1), (1, 0)):
            entropy = F.cross_entropy(answers[own][:count], label[:count])
            loss = loss + 0.5 * (entropy + dice(shares[own][:count], label[:count]))
            taught = shares[other][count:].detach().argmax(dim=1)
            loss = loss + 0.1 * dice(shares[own][count:], taught)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return step


def mcsc(arguments: Arguments) -> list[Record]:
    """MCSC's loss and its gradient over groups of patches, against a loop over the classes."""
    from medseg_kit.losses.balanced_contrast import balanced_contrast

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    patch, groups = (5, 2) if arguments.tiny else (19, 3)  # 2 x 4 maps, patches of 19 x 19 pixels
    pixels = 8 * patch**2
    labels = torch.stack([_blobs(8, patch).flatten() for _ in range(groups)])
    leaf = F.normalize(torch.randn(groups, pixels, 128), dim=2).requires_grad_()

    def peer() -> torch.Tensor:
        return _backward(leaf, [_contrast_loop(a, b) for a, b in zip(leaf, labels, strict=True)])

    def own(precision: str) -> torch.Tensor:
        losses = [
            balanced_contrast(a, b, precision=precision) for a, b in zip(leaf, labels, strict=True)
        ]
        return _backward(leaf, losses)

    gap = float((peer() - own("full")).abs() / peer().abs())
    variants = {"peer": peer, "own": lambda: own("full"), "bf16": lambda: own("bf16")}
    results = race(variants, arguments.repeats)
    low = {"peer": results["peer"], "own": results["bf16"]}
    return [
        compare_race("MCSC loss step, fp32", results, 2.0, difference=gap),
        compare_race("MCSC loss step, bf16", low, 3.8),
    ]


def _backward(leaf: torch.Tensor, losses: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean loss after its gradient has been computed."""
    leaf.grad = None
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.detach()


def _contrast_loop(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the balanced contrast of a group, class by class."""
    similarity = features @ features.t() / TEMPERATURE
    present = [value for value in range(NUM_CLASSES) if int((labels == value).sum()) > 0]
    total, anchors = torch.zeros(()), 0
    for value in present:
        own = (labels == value).nonzero()[:, 0]
        if len(own) < 2:
            continue
        itself = torch.eye(len(own), dtype=torch.bool)
        denominator = torch.zeros(len(own))
        for other in present:
            keys = (labels == other).nonzero()[:, 0]
            exponentials = torch.exp(similarity[own][:, keys])
            if other == value:
                exponentials = exponentials.masked_fill(itself, 0.0)
                denominator = denominator + exponentials.sum(1) / (len(keys) - 1)
            else:
                denominator = denominator + exponentials.sum(1) / len(keys)
        positives = similarity[own][:, own].masked_fill(itself, 0.0).sum(1) / (len(own) - 1)
        total = total + (torch.log(denominator + 1e-6) - positives).sum()
        anchors += len(own)
    return total / anchors


def mcsc_v2(arguments: Arguments) -> list[Record]:
    """MCSCv2: choosing, projecting and contrasting pixels, against masks over whole maps."""
    from medseg_kit.engines.semi_supervised import make_branches
    from medseg_kit.methods.mcsc_v2 import CertaintyContrast
    from medseg_kit.networks.projectors import Projectors

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    size, batch_size, bank = (32, 4, 500) if arguments.tiny else (112, 8, 60_000)
    channels = ({"full": 16}, {"full": 96})
    projectors = Projectors(*channels, scales=("full",))
    taps = [
        {"full": torch.randn(batch_size, width["full"], size, size, requires_grad=True)}
        for width in channels
    ]
    label = _blobs(batch_size, size)
    sharp = 8 * F.one_hot(label, NUM_CLASSES).movedim(-1, 1).float()
    logits = tuple(sharp + torch.randn_like(sharp) for _ in taps)
    labelled = torch.arange(batch_size) < batch_size // 2
    term = CertaintyContrast(NUM_CLASSES, 30_000, scales=("full",), bank_size=bank)
    batch = {"image": sharp[:, :1], "label": label[:, None], "labelled": labelled}

    def own() -> None:
        projected = projectors(*taps)
        make_branches(batch, {"logits": logits, "taps": tuple(taps), "projected": projected})
        none: Any = None
        term(none, batch)["contrast"].backward()

    peer = _CertaintyPeer(projectors, bank)

    def plain() -> None:
        peer(taps, logits, label, labelled).backward()

    results = race({"peer": plain, "own": own}, arguments.repeats)
    row = f"MCSCv2 sampling and loss step, {size} px, batch {batch_size}"
    return [compare_race(row, results, 2.7)]


class _CertaintyPeer:
    """MCSCv2's loss by boolean masks over all projected pixels; its banks are joined tensors."""

    def __init__(self, projectors: nn.Module, capacity: int) -> None:
        self.projectors = projectors
        self.capacity = capacity
        self.banks = [(torch.zeros(0, 128), torch.zeros(0).long()) for _ in range(NUM_CLASSES)]

    def __call__(
        self, taps: Any, logits: Any, label: torch.Tensor, labelled: torch.Tensor
    ) -> torch.Tensor:
        maps = [each.maps() for each in self.projectors(*taps)["full"]]
        features = torch.cat([each.movedim(1, -1).reshape(-1, 128) for each in maps])
        shares, classes = [], []
        for own, other in ((0, 1), (1, 0)):
            share = logits[own].softmax(1)
            share = torch.where(labelled[:, None, None, None], share, logits[other].softmax(1))
            shares.append(share.movedim(1, -1).reshape(-1, NUM_CLASSES))
            taught = torch.where(labelled[:, None, None], label, share.argmax(1))
            classes.append(taught.flatten())
        share, target = torch.cat(shares), torch.cat(classes)
        known = labelled.repeat(2)[:, None].expand(-1, label[0].numel()).flatten()
        entropy = -(share * torch.log(share + 1e-8)).sum(1)
        limit = entropy[~known].sort().values[int(0.8 * (~known).sum()) - 1]
        certain = known | (entropy <= limit)
        order = share.argsort(dim=1, descending=True).argsort(dim=1)
        losses = []
        for value in range(NUM_CLASSES):
            rank = order[:, value]
            hard = known & (rank < 1)
            sure, unsure = ~known & certain & (rank >= 1), ~certain & (rank >= 2)
            negative = (target != value) & (hard | sure | unsure)
            self._push(value, features[negative].detach(), target[negative])
            anchor = (target == value) & certain & (share.max(1).values > 0.9)
            chosen = features[anchor]
            keys, kinds = self.banks[value]
            if len(chosen) == 0 or len(keys) == 0:
                continue
            positive = F.normalize(chosen.detach().mean(0), dim=0)
            chosen = chosen[torch.randperm(len(chosen))[:1000]]
            drawn = torch.randperm(len(keys))[:500]
            losses.append(self._contrast(chosen, positive, keys[drawn], kinds[drawn]))
        return torch.stack(losses).mean()

    def _push(self, value: int, features: torch.Tensor, kinds: torch.Tensor) -> None:
        chosen = torch.randperm(len(features))[: self.capacity // 4]
        old, old_kinds = self.banks[value]
        joined = torch.cat([old, features[chosen]]), torch.cat([old_kinds, kinds[chosen]])
        self.banks[value] = joined[0][-self.capacity :], joined[1][-self.capacity :]

    def _contrast(
        self,
        anchors: torch.Tensor,
        positive: torch.Tensor,
        keys: torch.Tensor,
        kinds: torch.Tensor,
    ) -> torch.Tensor:
        near = torch.exp(anchors @ positive / TEMPERATURE)
        far = torch.zeros(len(anchors))
        for kind in range(NUM_CLASSES):
            members = keys[kinds == kind]
            if len(members):
                far = far + torch.exp(anchors @ members.t() / TEMPERATURE).mean(1)
        return -torch.log(near / (near + far)).mean()


def _blobs(number: int, size: int) -> torch.Tensor:
    """Return label maps ``(N, H, W)`` with two thirds background, as organs leave them."""
    noise = torch.rand(number, 1, max(size // 8, 2), max(size // 8, 2))
    smooth = F.interpolate(noise, (size, size), mode="bilinear")[:, 0]
    limits = smooth.flatten().quantile(torch.tensor([0.66, 0.8, 0.9]))
    return torch.bucketize(smooth, limits)
