"""Rows of `benchmark.py` about one-shot segmentation: superpixels, an episode, a query.

The peers go through slices, organs and prototypes one by one, in float32.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from benchmark_timing import Arguments, Record, compare_race, race
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

ORGANS = ("liver", "right kidney", "left kidney", "spleen")
SCALE = 20.0


def superpixels(arguments: Arguments) -> list[Record]:
    """Superpixels of all slices of volumes, a second, against a loop over scikit-image."""
    from medseg_kit.data.superpixels import SuperpixelFiles, Superpixels

    side, depth, count = (32, 4, 2) if arguments.tiny else (256, 12, 4)
    settings = Superpixels(min_size=max(4, 400 * side**2 // 256**2), mr_body=50.0)
    with tempfile.TemporaryDirectory() as work:
        cases = _scans(Path(work), side, depth, count)
        files = SuperpixelFiles(
            Path(work) / "superpixels", settings, image_size=side, orientation="RAS"
        )
        volumes = [files.slicing.cut(case)[0][:, 0].numpy() for case in cases]
        pieces: dict[str, list[Any]] = {}

        def own() -> None:
            for case in cases:
                files.path(case).unlink(missing_ok=True)
            files.make(cases, jobs=arguments.threads)

        def peer() -> None:
            pieces["peer"] = [_superpixel_loop(volume, settings) for volume in volumes]

        results = race({"peer": peer, "own": own}, arguments.repeats)
        made = [files.read(case).numpy() for case in cases]
    equal = all(np.array_equal(a, b) for a, b in zip(made, pieces["peer"], strict=True))
    found = sum(int(plane.max()) for volume in made for plane in volume)
    rates = {
        f"{name}_superpixels_a_second": round(found / statistics.median(r["wall"] for r in runs))
        for name, runs in results.items()
    }
    record = compare_race("superpixels", results, 1.0, equal=equal, **rates)
    del record["processor_ratio"]  # the workers' time is not this process's
    return [record]


def _scans(folder: Path, side: int, depth: int, count: int) -> list[dict[str, str]]:
    """Write MR-like scans of a body with bright organs; return them as cases."""
    import nibabel as nib

    cases = []
    for seed in range(count):
        array = _scan(side, depth, seed)[0]
        path = folder / f"scan{seed}.nii.gz"
        nib.save(nib.Nifti1Image(array, np.diag([1.25, 1.25, 7.7, 1.0])), path)
        cases.append({"image": str(path)})
    return cases


def _scan(side: int, depth: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image ``(side, side, depth)`` and its labels: four organs inside a body."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij")
    z = np.linspace(-1, 1, depth)
    texture = ndimage.gaussian_filter(random.normal(size=(side, side, depth)), (6, 6, 0))
    image = np.where((x / 0.85) ** 2 + (y / 0.65) ** 2 < 1, 300.0, 0.0)[:, :, None]
    image = image + 800 * texture + random.normal(scale=8, size=texture.shape)
    labels = np.zeros(texture.shape, np.uint8)
    places = ((-0.4, 0.1), (-0.3, -0.3), (0.3, -0.3), (0.45, 0.1))
    for value, (row, column) in enumerate(places, start=1):
        flat = ((x - row) / 0.25) ** 2 + ((y - column) / 0.2) ** 2
        organ = flat[:, :, None] + (z / 0.7) ** 2 < 1
        labels[organ] = value
        image[organ] += 120 * value
    return image.clip(0).astype(np.float32), labels


def _superpixel_loop(volume: np.ndarray, settings: Any) -> np.ndarray:
    """Return the superpixels of a volume, slice by slice."""
    from skimage.segmentation import felzenszwalb

    result = np.zeros(volume.shape, np.uint16)
    for index, plane in enumerate(volume):
        parts, number = ndimage.label(plane > settings.mr_body)
        if not number:
            continue
        body = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
        pieces = felzenszwalb(
            plane.astype(np.float64),
            scale=settings.scale,
            sigma=settings.sigma,
            min_size=settings.min_size,
        )
        inside = np.where(ndimage.binary_fill_holes(body), pieces + 1, 0)
        for number, value in enumerate(v for v in np.unique(inside) if v):
            result[index][inside == value] = number + 1
    return result


def episode(arguments: Arguments) -> list[Record]:
    """A training step of four episodes against one by one, prototype by prototype."""
    from medseg_kit.methods.cowpro import CoWProStep
    from medseg_kit.networks.one_shot import OneShotNetwork
    from medseg_kit.networks.prototypes import PrototypeClassifier

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    size, count = (64, 2) if arguments.tiny else (256, 4)
    encoder = _encoder(arguments)
    scans = [_scan(size, 3, seed) for seed in range(2 * count)]
    image = torch.stack([torch.from_numpy(scan[0][None, :, :, 1] / 300) for scan in scans])
    mask = torch.stack([torch.from_numpy(scan[1][None, :, :, 1] == 1) for scan in scans])
    batch = {"image": image, "label": mask.to(torch.uint8)}

    classifier = PrototypeClassifier()
    network = OneShotNetwork(copy.deepcopy(encoder), classifier, ORGANS)
    network = network.train().to(memory_format=torch.channels_last)
    step = CoWProStep(classifier, total_steps=1000, amp="bf16", clip_norm=12.0)
    engine: Any = SimpleNamespace(
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4),
        state=SimpleNamespace(device=torch.device("cpu"), output=None),
        non_blocking=False,
        fire_event=lambda event: None,
    )
    optimizer = torch.optim.SGD(encoder.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
    encoder.train()

    def peer() -> None:
        optimizer.zero_grad()
        for index in range(count):
            pair = [index, index + count]
            loss = _episode_loss(encoder, image[pair], mask[pair, 0].float()) / count
            loss.backward()
        optimizer.step()

    results = race({"peer": peer, "own": lambda: step(engine, batch)}, arguments.repeats)
    return [compare_race(f"episode step, {size} px, {count} episodes", results, 1.0)]


def _encoder(arguments: Arguments) -> nn.Module:
    from medseg_kit.networks.dilated_resnet import DilatedResNet

    width = {"widen_factor": 0.125, "out_channels": 32} if arguments.tiny else {"widen_factor": 0.5}
    return DilatedResNet(18, **width)


def _episode_loss(encoder: nn.Module, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the loss of one support and query, and of the support by the query's answer."""
    support, query = encoder(image)
    small = F.interpolate(mask[:1, None], support.shape[1:], mode="bilinear")[0, 0]
    answer = _answer(query, _prototypes(support, small, 4))
    weight = torch.tensor([0.05, 1.0])
    size = image.shape[2:]
    logits = F.interpolate(answer[None], size, mode="bilinear")
    loss = F.cross_entropy(logits, mask[1:].long(), weight=weight)
    found = answer.argmax(0).float()
    if found.any():
        back = _answer(support, _prototypes(query, found, 4))
        back = F.interpolate(back[None], size, mode="bilinear")
        loss = loss + F.cross_entropy(back, mask[:1].long())
    return loss


def _prototypes(
    features: torch.Tensor, mask: torch.Tensor, window: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return background and foreground prototypes of one slice, cell by cell."""
    sides = []
    for inside in (1 - mask, mask):
        found = []
        for row in range(mask.shape[0] // window):
            for column in range(mask.shape[1] // window):
                rows = slice(row * window, (row + 1) * window)
                columns = slice(column * window, (column + 1) * window)
                if inside[rows, columns].mean() > 0.95:
                    found.append(features[:, rows, columns].mean(dim=(1, 2)))
        sides.append(found)
    whole = (features * mask).sum(dim=(1, 2)) / (mask.sum() + 1e-5)
    sides[1].append(whole)
    if not sides[0]:
        sides[0].append((features * (1 - mask)).sum(dim=(1, 2)) / ((1 - mask).sum() + 1e-5))
    return sides[0], sides[1]


def _answer(features: torch.Tensor, sides: Any) -> torch.Tensor:
    """Return the scores ``(2, h, w)`` of one slice, prototype by prototype."""
    pixels = features - features.mean(dim=0)
    pixels = pixels / pixels.norm(dim=0).clamp_min(1e-4)
    scores = []
    for prototypes in sides:
        similarity = []
        for prototype in prototypes:
            centred = prototype - prototype.mean()
            centred = centred / centred.norm().clamp_min(1e-4)
            similarity.append(SCALE * (pixels * centred[:, None, None]).sum(dim=0))
        stacked = torch.stack(similarity)
        scores.append((stacked.softmax(dim=0) * stacked).sum(dim=0))
    return torch.stack(scores)


def query(arguments: Arguments) -> list[Record]:
    """Segment a volume by a support scan, against slice by slice and organ by organ."""
    from monai.data import MetaTensor

    from medseg_kit.inference.memory import use_channels_last
    from medseg_kit.inference.one_shot import OneShotInferer
    from medseg_kit.inference.positions import extents, slice_profiles
    from medseg_kit.networks.one_shot import OneShotNetwork
    from medseg_kit.networks.prototypes import PrototypeClassifier
    from medseg_kit.networks.support_prototypes import SupportPrototypes, SupportScan

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    size, depth = (64, 6) if arguments.tiny else (256, 16)
    encoder = _encoder(arguments).eval()
    network = OneShotNetwork(copy.deepcopy(encoder), PrototypeClassifier(), ORGANS).eval()
    use_channels_last(network)
    scans = [_scan(size, depth, seed) for seed in (0, 1)]
    (images, labels), (queries, truth) = (
        (
            torch.from_numpy(image / 300).movedim(2, 0)[:, None],
            torch.from_numpy(label).movedim(2, 0),
        )
        for image, label in scans
    )
    with torch.no_grad():
        sides = _support(encoder, images, labels)
    foreground, background = (
        tuple(tuple(torch.stack(part[side]) for part in organ) for organ in sides)
        for side in (1, 0)
    )
    scan = SupportScan(
        slice_profiles(images), 7.7, (1.25 * size,) * 2, extents(labels, len(ORGANS))
    )
    network.load_supports([SupportPrototypes(ORGANS, foreground, background, (scan,))])
    inferer = OneShotInferer(slice_size=(size, size), extent="oracle")
    volume = MetaTensor(
        queries.movedim(0, -1)[None], affine=torch.diag(torch.tensor([1.25, 1.25, 7.7, 1]))
    )
    found: dict[str, torch.Tensor] = {}

    def own() -> None:
        with torch.no_grad():
            logits = inferer(volume, network, label=truth.movedim(0, -1)[None, None])
        found["own"] = logits.argmax(1)[0].movedim(-1, 0)

    def peer() -> None:
        with torch.no_grad():
            found["peer"] = _query_loop(encoder, queries, truth, sides)

    results = race({"peer": peer, "own": own}, arguments.repeats)
    same = float((found["own"] == found["peer"]).float().mean())
    row = f"one-shot query of {depth} slices, {len(ORGANS)} organs"
    return [compare_race(row, results, 1.0, equal_labels=same)]


def _support(encoder: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Any:
    """Return the prototypes of each organ's three parts, background and foreground."""
    sides = []
    for value in range(1, len(ORGANS) + 1):
        shown = (labels == value).flatten(1).any(dim=1).nonzero()[:, 0]
        parts = []
        for share in (1 / 6, 3 / 6, 5 / 6):
            index = int(shown[int(share * len(shown))])
            features = encoder(images[index][None])[0]
            mask = (labels[index] == value).float()[None, None]
            small = F.interpolate(mask, features.shape[1:], mode="bilinear")[0, 0]
            parts.append(_prototypes(features, small, 2))
        sides.append(parts)
    return sides


def _query_loop(
    encoder: nn.Module, queries: torch.Tensor, truth: torch.Tensor, sides: Any
) -> torch.Tensor:
    """Return the labels ``(D, H, W)``: each organ by itself, its slices one by one."""
    best = torch.zeros(truth.shape)
    labels = torch.zeros(truth.shape, dtype=torch.long)
    for organ in range(len(ORGANS)):
        shown = (truth == organ + 1).flatten(1).any(dim=1).nonzero()[:, 0]
        first, last = int(shown[0]), int(shown[-1])
        for index in range(first, last + 1):
            part = min(int(3 * (index - first) / max(last - first, 1)), 2)
            answer = _answer(encoder(queries[index][None])[0], sides[organ][part])
            large = F.interpolate(answer[None], truth.shape[1:], mode="bilinear")[0]
            margin = large[1] - large[0]
            won = margin > best[index]
            labels[index][won] = organ + 1
            best[index] = torch.maximum(best[index], margin)
    return labels
