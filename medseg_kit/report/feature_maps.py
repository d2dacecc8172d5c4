"""Features before the head of each method's network in two dimensions, coloured by class.

The two dimensions are the first two principal components, of each method's own features.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.weights import load_strictly, read_weights
from medseg_kit.data.volume_slices import VolumeSlices
from medseg_kit.networks.dual import DualNetwork
from medseg_kit.networks.taps import Student
from medseg_kit.report.figures import STYLE, legend_below
from medseg_kit.report.grids import organ_color
from medseg_kit.report.pictures import (
    case_files,
    median_and_worst,
    shown_name,
    shown_records,
    weights_file,
)
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

logger = logging.getLogger(__name__)
Record = Mapping[str, Any]
NUM_PIXELS = 100
NUM_CASES = 8
NUM_SLICES = 12
BACKGROUND = "#9aa5b1"


def feature_figures(
    study_dir: Path, records: Sequence[Record], test: Mapping[str, str]
) -> dict[str, bytes]:
    """Return PNGs "within" one case and "across" cases; empty without images or any weights.

    A panel is a method of the first seed and largest budget whose weights lie in the study's folder
    and whose network is slice-wise and has taps. `NUM_PIXELS` pixels a class and slice: of at most
    `NUM_SLICES` slices with ground truth of the first method's median case, and of the slice with
    most ground truth of `NUM_CASES` cases.

    Args:
        study_dir: The study's folder.
        records: Records of the study.
        test: `data` (prepared data set) and `section` of the test cases.
    """
    shown = shown_records(records)
    files = case_files(test)
    median = median_and_worst(shown[0])[0] if files else None
    if median not in files:
        return {}
    others = [files[case] for case in list(files)[:NUM_CASES]]
    panels: dict[str, dict[str, tuple[Any, ...]]] = {"within": {}, "across": {}}
    for record in shown:
        deployed = _deployed(study_dir, record)
        if deployed is None:
            continue
        network, slicing = deployed
        one, several = _spread_slices(slicing, files[median]), _largest_slices(slicing, others)
        for name, slices in (("within", one), ("across", several)):
            panels[name][shown_name(record, shown)] = embedded(network, *slices)
    organs = list(files[median][2])
    return {name: _draw(found, organs) for name, found in panels.items() if found}


def embedded(
    network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, *, seed: int = 0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], float]:
    """Return pixels in two dimensions ``(n, 2)``, their classes ``(n,)`` and the share of variance.

    Args:
        network: A network with taps in evaluation mode.
        images: ``(N, 1, H, W)``.
        labels: ``(N, H, W)``.
        seed: Draws the pixels, the same ones for all networks that see slices of this size.
    """
    pixels = draw_pixels(labels, seed=seed)
    features = torch.cat(
        [
            _features(network, image[None])[0].flatten(1)[:, chosen].t()
            for image, chosen in zip(images, pixels, strict=True)
        ]
    )
    classes = torch.cat(
        [label.flatten()[chosen] for label, chosen in zip(labels, pixels, strict=True)]
    )
    points, share = principal_components(features.double().numpy())
    return points, classes.numpy().astype(np.int64), share


def draw_pixels(labels: torch.Tensor, *, seed: int, count: int = NUM_PIXELS) -> list[torch.Tensor]:
    """Return flat indices of random pixels of each slice, at most ``count`` a class.

    Args:
        labels: ``(N, H, W)``.
        seed: Draws them.
        count: Pixels a class and slice.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels:
        parts = []
        for value in label.unique():
            places = (label.flatten() == value).nonzero()[:, 0]
            parts.append(places[torch.randperm(len(places), generator=generator)[:count]])
        chosen.append(torch.cat(parts))
    return chosen


def principal_components(
    features: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], float]:
    """Return the first two principal components ``(n, 2)`` and their share of the variance.

    Args:
        features: ``(n, C)`` with C at least 2; the sign of a component is that of its largest
            weight.
    """
    centred = features - features.mean(axis=0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(axes[:2]).argmax(axis=1)
    axes = axes[:2] * np.sign(axes[[0, 1], largest])[:, None]
    total = float((spread**2).sum())
    return centred @ axes.T, float((spread[:2] ** 2).sum()) / total if total else 0.0


def _deployed(study_dir: Path, record: Record) -> tuple[torch.nn.Module, VolumeSlices] | None:
    """Return the trained network and how its slices are cut; None without weights or taps."""
    weights, settings = weights_file(study_dir, record), record.get("configuration", {})
    if weights is None:
        return None
    inference = settings.get("inference") or {}
    files = ["inference.yaml", *inference.get("overlays", ())]
    try:
        config = load_config(settings["bundle"], files, overrides=inference.get("overrides", {}))
        network = config.get_parsed_content("network_def").eval()
        load_strictly(network, read_weights(weights), source=weights)
    except UserError as error:
        logger.warning("no features of %s: %s", record["run"], error)
        return None
    inferer = config.get_parsed_content("inferer")
    size = getattr(inferer, "slice_size", None)
    if size is None or not all(hasattr(student, "forward_features") for student in _used(network)):
        logger.info("no features of %s: not slice-wise, or without taps", record["run"])
        return None
    preprocessing = config.get_parsed_content("preprocessing")
    classes = 1 + len(config.get_parsed_content("organs"))
    return network, VolumeSlices(
        preprocessing,
        image_size=size,
        num_classes=classes,
        interpolation=inferer.interpolation,
        direction=inferer.direction,
    )


def _used(network: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the students whose logits a network answers with."""
    return network.answering() if isinstance(network, DualNetwork) else [network]


@torch.no_grad()
def _features(network: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Return the maps before the head ``(B, C, H, W)``; those of a pair's mean side by side."""
    students = (cast("Student", student) for student in _used(network))
    return torch.cat([student.forward_features(image)[1]["full"] for student in students], dim=1)


def _spread_slices(
    slicing: VolumeSlices, case: tuple[Path, Path, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return evenly spread slices with ground truth of a case: images and labels."""
    images, labels, _ = slicing.cut({"image": case[0], "label": case[1]})
    shown = (labels > 0).any(2).any(1)
    there = (shown | ~shown.any()).nonzero()[:, 0]  # a case without ground truth: all slices
    steps = torch.linspace(0, len(there) - 1, min(NUM_SLICES, len(there))).round().long()
    return images[there[steps]], labels[there[steps]]


def _largest_slices(
    slicing: VolumeSlices, cases: Sequence[tuple[Path, Path, Any]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the slice with most ground truth of each case: images and labels."""
    found = []
    for image_path, label_path, _ in cases:
        images, labels, _ = slicing.cut({"image": image_path, "label": label_path})
        index = int((labels > 0).sum((1, 2)).argmax())
        found.append((images[index], labels[index]))
    images, labels = (torch.stack(kind) for kind in zip(*found, strict=True))
    return images, labels


def _draw(panels: Mapping[str, tuple[Any, ...]], organs: Sequence[str]) -> bytes:
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    colors: list[Any] = [BACKGROUND, *(organ_color(value) for value in range(1, len(organs) + 1))]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        size = (max(2.4 * columns, 4.8) + 0.3, 2.4 * rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (method, (points, classes, share)) in zip(
            grid.flat, panels.items(), strict=False
        ):
            order = np.random.default_rng(0).permutation(len(points))  # no class lies on top
            axes.scatter(
                *points[order].T, s=2, c=[colors[value] for value in classes[order]], linewidths=0
            )
            axes.set_title(f"{method} ({share:.0%})", fontsize=9)
            axes.set_xticks([], [])
            axes.set_yticks([], [])
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        handles = [
            mpl.patches.Patch(color=color, label=name)
            for color, name in zip(colors, ["background", *organs], strict=True)
        ]
        legend_below(figure, handles)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
