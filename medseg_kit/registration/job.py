"""Registers many pairs: in parallel, on several machines, resumable, one file a pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import SimpleITK

from medseg_kit.registration.cases import Pair
from medseg_kit.registration.parallel import run_parallel
from medseg_kit.registration.resampling import mutual_information, warp_image
from medseg_kit.registration.settings import register_images
from medseg_kit.registration.store import PairStore
from medseg_kit.registration.volumes import read_image, region_of_interest
from medseg_kit.typing import UserError

METRIC = "normalised mutual information"


def register_pairs(
    pairs: Sequence[Pair],
    store: PairStore,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    on_pair: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Register the pairs that are not done yet; return the records of all.

    A pair that fails is recorded and costs only itself; the next run tries it again.

    Args:
        pairs: Ordered pairs (fixed, moving).
        store: Where they are kept, and how they are registered.
        jobs: Processes on this machine.
        scheduler: Address of a Dask scheduler, see `run_parallel`.
        on_pair: Called with each record.

    Raises:
        UserError: If the Dask cluster cannot be used.
    """
    records = []
    work = partial(register_pair, store)
    for record in run_parallel(work, pairs, jobs=jobs, scheduler=scheduler):
        records.append(record)
        if on_pair is not None:
            on_pair(record)
    return records


def register_pair(store: PairStore, pair: Pair) -> dict[str, Any]:
    """Register one pair unless it is done; return its record.

    Args:
        store: Where pairs are kept, and how they are registered.
        pair: Fixed and moving volume.

    Returns:
        The record: ``success``, ``reason`` of a failure, ``metric`` (name and value between the
        fixed region and the warped volume), ``iterations``, ``seconds``.
    """
    known = store.record(*pair)
    if known is not None:
        return known
    record: dict[str, Any] = {"success": False, "reason": None, "metric": {METRIC: None}}
    transform = None
    started = time.perf_counter()
    try:
        fixed, moving = (read_image(case, store.modality) for case in pair)
        transform, iterations = register_images(fixed, moving, store.settings)
        part = region_of_interest(fixed, store.settings.region)
        warped = warp_image(moving, part, transform)
        value = mutual_information(*map(SimpleITK.GetArrayFromImage, (part, warped)))
        record |= {"success": True, "iterations": iterations, "metric": {METRIC: round(value, 5)}}
    except (UserError, RuntimeError) as error:  # ITK's errors are RuntimeErrors
        record["reason"] = " ".join(str(error).split())[:300]
    record["seconds"] = round(time.perf_counter() - started, 3)
    return store.save(*pair, record, transform if record["success"] else None)
