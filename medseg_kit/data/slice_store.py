"""The slices of a data set in memory, and their cache on the disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from monai.utils.enums import CommonKeys

from medseg_kit.data.volume_slices import VolumeSlices
from medseg_kit.data.volumes import file_sha256
from medseg_kit.files import replacing

logger = logging.getLogger(__name__)

NUM_THREADS = 2
CACHE_FORMAT = 1
Cut = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class SliceStore:
    """N slices of several volumes.

    Attributes:
        images: ``(N, 1, H, W)`` float32.
        labels: ``(N, H, W)`` uint8, also those that a budget hides: only for evaluation.
        registered: Registered labels ``(N, H, W)`` uint8; None where no volume has one.
        volume: Position of each slice's volume in the list, ``(N,)`` int64.
        index: Position of each slice in its volume, ``(N,)`` int64.
    """

    images: torch.Tensor
    labels: torch.Tensor
    registered: torch.Tensor | None
    volume: torch.Tensor
    index: torch.Tensor


def build_store(
    cases: Sequence[Mapping[str, Any]],
    slicing: VolumeSlices,
    registered: Sequence[Path | None],
    *,
    cache_dir: Path | None = None,
) -> SliceStore:
    """Return the slices of all cases, from the cache where it has them.

    Args:
        cases: Datalist dictionaries.
        slicing: Cuts one volume.
        registered: Registered label of each case, or None.
        cache_dir: Folder of the cache; files in it are named by the SHA-256 of all inputs.

    Raises:
        UserError: When a volume cannot be used, see `VolumeSlices.cut`.
    """
    if cache_dir is None:
        return _read(cases, slicing, registered)
    path = cache_dir / f"slices_{_cache_key(cases, slicing, registered)}.pt"
    if not path.is_file():
        with replacing(path) as file:
            torch.save(asdict(_read(cases, slicing, registered)), file)
    logger.info("slices from the cache %s", path)
    return SliceStore(**torch.load(path, map_location="cpu", weights_only=True, mmap=True))


def _read(
    cases: Sequence[Mapping[str, Any]], slicing: VolumeSlices, registered: Sequence[Path | None]
) -> SliceStore:
    with ThreadPoolExecutor(NUM_THREADS) as pool:  # decompressing releases the interpreter lock
        cuts = list(pool.map(slicing.cut, cases, registered))
    depths = torch.tensor([len(images) for images, _, _ in cuts])
    images, labels, registered_labels = (list(kind) for kind in zip(*cuts, strict=True))
    del cuts
    has_registered = any(path is not None for path in registered)
    store = SliceStore(
        images=_joined(images),
        labels=_joined(labels),
        registered=_joined(registered_labels) if has_registered else None,
        volume=torch.repeat_interleave(torch.arange(len(depths)), depths),
        index=torch.cat([torch.arange(int(depth)) for depth in depths]),
    )
    logger.info("%d slices of %d volumes", len(store.volume), len(depths))
    return store


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the parts as one tensor; empties the list, so that both never stand in memory."""
    first = parts[0]
    joined = torch.empty(sum(map(len, parts)), *first.shape[1:], dtype=first.dtype)
    start = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        joined[start : start + len(part)] = part
        start += len(part)
    return joined


def _cache_key(
    cases: Sequence[Mapping[str, Any]], slicing: VolumeSlices, registered: Iterable[Path | None]
) -> str:
    sums = [
        [None if not path else file_sha256(Path(path)) for path in paths]
        for paths in _files(cases, registered)
    ]
    content = {"format": CACHE_FORMAT, "parameters": slicing.parameters, "files": sums}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(
    cases: Sequence[Mapping[str, Any]], registered: Iterable[Path | None]
) -> Iterator[tuple[Any, Any, Any]]:
    for case, path in zip(cases, registered, strict=True):
        yield case[CommonKeys.IMAGE], case.get(CommonKeys.LABEL), path
