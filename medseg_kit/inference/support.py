"""From a support scan and its label to prototypes: read, check, encode, keep.

FedCoWPro section V-D: of the slices that show an organ, the middle ones of its three parts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys

from medseg_kit.data.datalist import DATALIST_NAME, SUPPORT, load_datalist
from medseg_kit.data.volume_slices import VolumeSlices
from medseg_kit.inference.positions import extents, slice_profiles, support_slices
from medseg_kit.networks.one_shot import NEEDS_SUPPORT, OneShotNetwork
from medseg_kit.networks.support_prototypes import (
    NUM_PARTS,
    PROTOTYPES_SUFFIX,
    SupportPrototypes,
    SupportScan,
    load_supports,
)
from medseg_kit.transforms.modality import modality_of
from medseg_kit.transforms.pipelines import VolumePreprocessing
from medseg_kit.transforms.planes import slicing_axis, voxel_mm
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)

WINDOW = 2  # pooling window of the support features outside training, algorithms of CoWPro
_SEPARATOR = ","

Names = PathLike | Sequence[PathLike] | None


class SupportSource:
    """Where a network's support prototypes come from: scans with labels, or a file.

    Nothing is read before the prototypes are asked for, so a bundle without any still builds. The
    first of these that is there: ``support``, the support scans of ``dataset_dir``, the file
    ``prototypes``, the ``cases``.

    Args:
        preprocessing: From a file to a volume on the network's grid; the bundle's own.
        support: Support scans: a path, several with commas between them, or a list; or a prepared
            data set, whose support scans serve; or the file that `medseg support` wrote (``*.pt``).
        support_label: The labels of the scans, in the same order; values 1 to K are the organs.
        dataset_dir: Prepared data set whose support scans serve if no support is given.
        prototypes: File that serves if there is no scan.
        cases: Datalist dictionaries that serve if there is nothing else; those without a label are
            left out.
        window: Pooling window of the support features.
    """

    def __init__(
        self,
        preprocessing: VolumePreprocessing,
        *,
        support: Names = None,
        support_label: Names = None,
        dataset_dir: PathLike | None = None,
        prototypes: PathLike | None = None,
        cases: Sequence[Mapping[str, Any]] = (),
        window: int = WINDOW,
    ) -> None:
        self.preprocessing = preprocessing
        self.images = _names(support)
        self.labels = _names(support_label)
        self.dataset_dir = None if dataset_dir is None else Path(dataset_dir)
        self.file = None if prototypes is None else Path(prototypes)
        self.cases = [dict(case) for case in cases if CommonKeys.LABEL in case]
        self.window = window

    def supports(
        self,
        network: OneShotNetwork,
        *,
        slice_size: Sequence[int],
        interpolation: str = "linear",
        direction: str | None = None,
    ) -> tuple[SupportPrototypes, ...]:
        """Return the prototypes for a network, made with its present weights; one a modality.

        Args:
            network: Encodes the support slices.
            slice_size: In-plane size that it wants.
            interpolation: How slices are resized.
            direction: Direction of the body across which slices are cut, see `slicing_axis`.

        Raises:
            UserError: If nothing is there, a file of prototypes was made with other weights or
                settings, or a scan cannot serve; names `medseg support`.
        """
        cutter = VolumeSlices(
            self.preprocessing,
            image_size=slice_size,
            num_classes=1 + len(network.organs),
            interpolation=interpolation,
            direction=direction,
        )
        files = [path for path in self.images if path.suffix == PROTOTYPES_SUFFIX]
        if files:
            return self._read(files, network, cutter)
        cases = self._cases(network.organs)
        if not cases and self.file is not None and self.file.is_file():
            return self._read([self.file], network, cutter)
        cases = cases or self.cases
        if not cases:
            raise UserError(NEEDS_SUPPORT)
        return make_supports(network, cases, cutter, window=self.window)

    def _cases(self, organs: Sequence[str]) -> list[dict[str, Any]]:
        own = [] if self.dataset_dir is None else [self.dataset_dir]
        folders = [_data_set(path) for path in self.images or own]
        if folders and all((folder / DATALIST_NAME).is_file() for folder in folders):
            if self.labels:
                raise UserError(
                    f"{folders[0]} is a prepared data set, which knows its labels; leave"
                    " --support_label out"
                )
            required = bool(self.images)
            cases = [
                case
                for folder in folders
                for case in load_datalist(folder, SUPPORT, organs=organs, required=required)
            ]
            return [case for case in cases if CommonKeys.LABEL in case]
        if len(self.images) != len(self.labels):
            raise UserError(
                f"{len(self.images)} support scans and {len(self.labels)} labels: give one"
                " --support_label for each --support, in the same order"
            )
        pairs = zip(self.images, self.labels, strict=True)
        return [{"image": str(image), "label": str(label)} for image, label in pairs]

    def _read(
        self, files: Sequence[Path], network: OneShotNetwork, cutter: VolumeSlices
    ) -> tuple[SupportPrototypes, ...]:
        """Return the prototypes of files; one support a modality."""
        if self.labels or len(files) < len(self.images):
            raise UserError(
                f"{files[0]} holds prototypes, which need no --support_label and stand with no"
                " scan; give scans to `medseg support`, which takes several"
            )
        supports = [each for file in files for each in self._read_one(file, network, cutter)]
        modalities = [each.modality for each in supports]
        if repeated := {name for name in modalities if modalities.count(name) > 1}:
            raise UserError(
                f"{', '.join(map(str, files))} hold several supports of {' and '.join(repeated)};"
                " give one a modality, or all scans to one `medseg support`"
            )
        return tuple(supports)

    def _read_one(
        self, file: Path, network: OneShotNetwork, cutter: VolumeSlices
    ) -> tuple[SupportPrototypes, ...]:
        if not file.is_file():
            raise UserError(f"{file} does not exist: {NEEDS_SUPPORT}")
        supports = load_supports(file)
        digest = weights_digest(network)
        if any(each.weights not in ("", digest) for each in supports):
            raise UserError(
                f"{file} was made with other weights than the network has now; make it again with"
                " `medseg support` and `--weights` of the network"
            )
        now = _settings(network, cutter, self.window)
        for each in supports:
            if others := [key for key in now if now[key] != each.settings.get(key)]:
                made = {key: each.settings.get(key) for key in others}
                raise UserError(
                    f"{file} was made with {made}, now it is { {key: now[key] for key in others} };"
                    " make it again with `medseg support` and the settings of now"
                )
        return supports


class _Preparable(Protocol):
    def prepare(self, network: torch.nn.Module) -> None:
        """Give the network its support prototypes."""


class SupportHandler:
    """Make the support prototypes anew with the present weights before each evaluation.

    Args:
        inferer: The evaluator's `OneShotInferer`; its support scans are encoded.
        network: The network that is trained and evaluated.
    """

    def __init__(self, inferer: _Preparable, network: torch.nn.Module) -> None:
        self.inferer = inferer
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Run at every ``STARTED`` of an evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Make the prototypes."""
        del engine
        self.inferer.prepare(self.network)


def make_supports(
    network: OneShotNetwork,
    cases: Sequence[Mapping[str, Any]],
    cutter: VolumeSlices,
    *,
    window: int = WINDOW,
) -> tuple[SupportPrototypes, ...]:
    """Return the prototypes of support scans, one set a modality; several scans stand side by side.

    An organ that no scan has is logged and never found. Nothing of the network changes.

    Args:
        network: Encodes the support slices, as in evaluation.
        cases: ``image`` and ``label`` paths; label values 1 to K are the network's organs.
        cutter: Cuts scans and labels into the slices that the network wants.
        window: Pooling window of the support features.

    Raises:
        UserError: If a file cannot serve, or a label is empty.
    """
    scans: dict[str, list[_Encoded]] = {}
    for case in cases:
        scan = _encode_scan(network, case, cutter, window)
        scans.setdefault(scan.modality, []).append(scan)
    made_with = {"weights": weights_digest(network), "settings": _settings(network, cutter, window)}
    return tuple(
        _side_by_side(network.organs, scans[modality], made_with) for modality in sorted(scans)
    )


def weights_digest(network: torch.nn.Module) -> str:
    """Return a digest of a network's weights, without its support."""
    digest = hashlib.sha256()
    for key, value in network.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def field_of_view(volume: torch.Tensor, axis: int) -> tuple[float, float]:
    """Return the sides of a volume's slices in mm.

    Args:
        volume: ``(C, H, W, D)``.
        axis: Spatial axis across the slices.
    """
    spacing = voxel_mm(volume)
    first, second = (spacing[a] * volume.shape[1 + a] for a in range(3) if a != axis)
    return first, second


def marked_in_part(organ: str, slices: int) -> str:
    """Return what to know about a support that marks an organ in hardly any slice."""
    return (
        f"the support marks {organ} in {slices} slice(s): it is looked for in about as many;"
        " mark every slice of an organ"
    )


def _settings(network: OneShotNetwork, cutter: VolumeSlices, window: int) -> dict[str, Any]:
    """Return what prototypes depend on beside scans and weights; tuples are lists, as in JSON."""
    classifier = network.classifier
    made_by = {
        "pooling": window,
        "classifier": type(classifier).__name__,
        "threshold": getattr(classifier, "threshold", None),  # of a cell; a copied mask has none
    }
    settings: dict[str, Any] = json.loads(json.dumps({**cutter.parameters, **made_by}))
    return settings


def _data_set(path: Path) -> Path:
    """Return the folder of a prepared data set that is named by its list."""
    return path.parent if path.name == DATALIST_NAME else path


def _names(value: Names) -> list[Path]:
    if value is None:
        return []
    if isinstance(value, str):
        return [Path(part.strip()) for part in value.split(_SEPARATOR)]
    return [Path(part) for part in ([value] if isinstance(value, os.PathLike) else value)]


_Pair = tuple[torch.Tensor, torch.Tensor]  # foreground (P, C), background (Q, C)


@dataclass(frozen=True)
class _Encoded:
    """One support scan: each organ's prototypes of its parts, none where the organ is not."""

    modality: str
    scan: SupportScan
    organs: list[list[_Pair]]


def _encode_scan(
    network: OneShotNetwork, case: Mapping[str, Any], cutter: VolumeSlices, window: int
) -> _Encoded:
    images, labels, _ = cutter.cut(case)
    if bool(images.min() == images.max()):
        raise UserError(f"{case['image']} is empty: all voxels are equal; give the annotated scan")
    if not bool(labels.any()):
        raise UserError(
            f"{case['label']} is empty: no voxel of {', '.join(network.organs)}; a support"
            " label marks the organs with the values 1, 2, ..."
        )
    numbers = range(1, 1 + len(network.organs))
    preprocessing = cutter.preprocessing
    volume: MetaTensor = preprocessing({CommonKeys.IMAGE: case["image"]})[CommonKeys.IMAGE]
    axis = slicing_axis(volume, direction=cutter.direction)
    told_apart = preprocessing.window is None and preprocessing.intensity == "ct_or_mr"
    return _Encoded(
        modality_of(volume.as_tensor()) if told_apart else "unknown",
        SupportScan(
            profile=slice_profiles(images),
            spacing=voxel_mm(volume)[axis],
            field_of_view=field_of_view(volume, axis),
            extents=extents(labels, len(numbers)),
        ),
        [_encode(network, images, labels == number, window) for number in numbers],
    )


@torch.no_grad()
def _encode(
    network: OneShotNetwork, images: torch.Tensor, mask: torch.Tensor, window: int
) -> list[_Pair]:
    """Return the prototypes of one organ's parts; nothing where the mask is empty.

    Args:
        network: The encoder and the classifier.
        images: ``(D, 1, H, W)``.
        mask: ``(D, H, W)`` bool.
        window: Pooling window.
    """
    shown = mask.flatten(1).any(dim=1).nonzero()[:, 0]
    if not len(shown):
        return []
    chosen = shown[support_slices(len(shown))]
    was_training = network.training
    network.eval()
    try:
        features = network.encoder(images[chosen].to(network.device)).float()
    finally:
        network.train(was_training)
    pairs = zip(features.split(1), mask[chosen].float().to(network.device).split(1), strict=True)
    return [network.classifier.prototypes(*pair, window=window) for pair in pairs]


def _side_by_side(
    organs: Sequence[str], scans: Sequence[_Encoded], made_with: Mapping[str, Any]
) -> SupportPrototypes:
    """Return the prototypes of several scans of one modality."""

    def joined(organ: int, part: int, side: int) -> torch.Tensor:
        found = [scan.organs[organ][part][side].cpu() for scan in scans if scan.organs[organ]]
        return torch.cat(found) if found else torch.zeros(0, 1)

    foreground, background = (
        tuple(
            tuple(joined(organ, part, side) for part in range(NUM_PARTS))
            for organ in range(len(organs))
        )
        for side in (0, 1)
    )
    result = SupportPrototypes(
        tuple(organs),
        foreground,
        background,
        tuple(scan.scan for scan in scans),
        scans[0].modality,
        **made_with,
    )
    if result.missing:
        logger.warning("the support has no %s: it will not be found", ", ".join(result.missing))
    for organ, slices in result.short.items():
        logger.warning("%s", marked_in_part(organ, slices))
    return result
