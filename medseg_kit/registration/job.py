"""Registers many pairs: in parallel, on several machines, resumable, one file a pair."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import SimpleITK
from joblib import Parallel, delayed, parallel_config

from medseg_kit.files import replacing, write_json
from medseg_kit.registration import elastix, plain
from medseg_kit.registration.cases import RegistrationCase, RegistrationData
from medseg_kit.registration.elastix import Settings
from medseg_kit.registration.resampling import mutual_information, warp_image
from medseg_kit.registration.volumes import read_volume, region_of_interest
from medseg_kit.typing import UserError

PAIRS = "pairs"
METHODS: dict[str, Settings | None] = {
    "affine": Settings(),
    "rigid_affine": Settings(rigid=True),
    "affine_correlation": Settings(metric="correlation"),
    "affine_bspline": Settings(bspline=20.0),
    "plain": None,
    "plain_bspline": None,
}
Pair = tuple[RegistrationCase, RegistrationCase]


def register_pairs(
    pairs: Sequence[Pair],
    out: Path,
    *,
    data: RegistrationData,
    method: str = "affine",
    jobs: int = 1,
    scheduler: str | None = None,
    on_pair: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Register the pairs that are not done yet; return the records of all.

    Writes ``out/pairs/<fixed>__<moving>.h5`` (a SimpleITK transform) and ``.json`` a pair. A pair
    that fails is recorded and costs only itself; the next run tries it again.

    Args:
        pairs: Ordered pairs (fixed, moving).
        out: Output folder.
        data: How to read the volumes.
        method: One of `METHODS`.
        jobs: Processes on this machine.
        scheduler: Address of a Dask scheduler whose workers share the file system; instead of jobs.
        on_pair: Called with each record.

    Raises:
        UserError: For an unknown method, or a scheduler without Dask installed.
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown; choose one of {', '.join(METHODS)}")
    options = (method, data.modality, data.nominal_spacing)
    folder = out.absolute() / PAIRS
    folder.mkdir(parents=True, exist_ok=True)
    with _backend(jobs, scheduler):
        records = Parallel(return_as="generator")(
            delayed(register_pair)(fixed, moving, folder, options) for fixed, moving in pairs
        )
        found = []
        for record in records:
            found.append(record)
            if on_pair is not None:
                on_pair(record)
    return found


def register_pair(
    fixed: RegistrationCase, moving: RegistrationCase, folder: Path, options: tuple[str, str, bool]
) -> dict[str, Any]:
    """Register one pair unless its files are there for the same inputs and settings."""
    stem = folder / f"{fixed.key}__{moving.key}"
    record_file, transform_file = stem.with_suffix(".json"), stem.with_suffix(".h5")
    fingerprint = _fingerprint(fixed, moving, options)
    if record_file.is_file() and transform_file.is_file():
        known: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
        if known["success"] and known["fingerprint"] == fingerprint:
            return known
    record: dict[str, Any] = {
        "fixed": fixed.key,
        "moving": moving.key,
        "method": options[0],
        "fingerprint": fingerprint,
        "success": False,
        "reason": None,
        "mutual_information": None,
    }
    started = time.perf_counter()
    try:
        transform, information = _register(fixed, moving, options)
        with replacing(transform_file) as file:
            temporary = file.with_suffix(".h5")  # SimpleITK chooses the format by the ending
            SimpleITK.WriteTransform(transform, str(temporary))
            temporary.replace(file)
        record |= {"success": True, "mutual_information": information}
    except (UserError, RuntimeError) as error:
        record["reason"] = " ".join(str(error).split())[:300]
    record["seconds"] = round(time.perf_counter() - started, 3)
    write_json(record_file, record)
    return record


def _register(
    fixed: RegistrationCase, moving: RegistrationCase, options: tuple[str, str, bool]
) -> tuple[SimpleITK.Transform, float]:
    method, modality, nominal_spacing = options
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    whole = [
        read_volume(case.image, modality=modality, nominal_spacing=nominal_spacing)
        for case in (fixed, moving)
    ]
    settings = METHODS[method]
    if settings is None:
        transform = plain.register(whole[0], whole[1], bspline=method == "plain_bspline")
        parts = whole
    else:
        parts = [region_of_interest(image, modality=modality) for image in whole]
        transform = elastix.register(parts[0], parts[1], settings)
    warped = warp_image(whole[1], parts[0], transform)
    arrays = [SimpleITK.GetArrayFromImage(image) for image in (parts[0], warped)]
    return transform, mutual_information(*arrays)


def read_transform(folder: Path, fixed: str, moving: str) -> SimpleITK.Transform | None:
    """Return A(fixed, moving) of a finished pair; None if it failed or was never registered."""
    stem = folder / PAIRS / f"{fixed}__{moving}"
    record = stem.with_suffix(".json")
    if not record.is_file() or not json.loads(record.read_text(encoding="utf-8"))["success"]:
        return None
    transform: SimpleITK.Transform = SimpleITK.ReadTransform(str(stem.with_suffix(".h5")))
    return transform


def _fingerprint(
    fixed: RegistrationCase, moving: RegistrationCase, options: tuple[str, str, bool]
) -> str:
    settings = METHODS[options[0]]
    described = [*options, asdict(settings) if settings else None]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for case in (fixed, moving):
        digest.update(hashlib.sha256(case.image.read_bytes()).digest())
    return digest.hexdigest()


@contextmanager
def _backend(jobs: int, scheduler: str | None) -> Iterator[None]:
    if scheduler is None:
        with parallel_config(backend="loky" if jobs != 1 else "sequential", n_jobs=jobs):
            yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError(
            "--scheduler needs Dask: pip install -c constraints.txt 'medseg-kit[registration]'"
        ) from error
    with Client(scheduler), parallel_config(backend="dask", n_jobs=-1):
        yield
