"""Labels warped once from labelled volumes to others: for training, or as a segmentation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import SimpleITK

from medseg_kit.data.volumes import file_sha256
from medseg_kit.files import replacing, write_json
from medseg_kit.registration.cases import RegistrationCase
from medseg_kit.registration.layout import SELECTION
from medseg_kit.registration.parallel import run_parallel
from medseg_kit.registration.resampling import warp_label
from medseg_kit.registration.selection import BEST, Rule, select
from medseg_kit.registration.store import PairStore
from medseg_kit.registration.volumes import read_image, read_label
from medseg_kit.typing import UserError

_SUFFIX = ".nii.gz"


def propagate_labels(  # noqa: PLR0913 - the options of a command, all by name
    store: PairStore,
    out: Path,
    *,
    targets: Sequence[RegistrationCase],
    candidates: Sequence[RegistrationCase],
    names: dict[str, str] | None = None,
    rule: Rule = BEST,
    jobs: int = 1,
    scheduler: str | None = None,
    on_case: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Write the best registered label of each target; return which was chosen and why.

    Args:
        store: The registered pairs.
        out: Folder for ``<case>.nii.gz`` (uint8, on the grid and with the geometry of the image)
            and ``selection.json``.
        targets: Volumes to label; one without a usable registration gets no file and is named.
        candidates: Labelled volumes.
        names: File name without ending by case key; the key itself if None.
        rule: As `select`.
        jobs: As `run_parallel`.
        scheduler: As `run_parallel`.
        on_case: Called with each row.

    Returns:
        A row a target, see `select`.

    Raises:
        UserError: If a labelled volume's label is missing or does not fit, or no target could be
            labelled.
    """
    if not candidates:
        raise UserError("no labelled training volume: give --labelled N, or labels in the data")
    named = names or {}
    files = {t.key: out / f"{named.get(t.key, t.key)}{_SUFFIX}" for t in targets}
    known = _known(out / SELECTION)
    work = partial(_propagate, store, tuple(candidates), known, rule)
    rows = []
    tasks = [(target, files[target.key]) for target in targets]
    for row in run_parallel(work, tasks, jobs=jobs, scheduler=scheduler):
        rows.append(row)
        if on_case is not None:
            on_case(row)
    write_json(out / SELECTION, rows)
    if not any(row["chosen"] for row in rows):
        raise UserError(
            f"none of the {len(rows)} volumes has a usable registration with a labelled one, e.g."
            f" {rows[0]['case']}: {rows[0]['reason']}"
        )
    return rows


def _propagate(
    store: PairStore,
    candidates: tuple[RegistrationCase, ...],
    known: dict[str, dict[str, Any]],
    rule: Rule,
    task: tuple[RegistrationCase, Path],
) -> dict[str, Any]:
    target, path = task
    digest = _digest(store, target, candidates, rule)
    row = known.get(target.key)
    if row and row["inputs"] == digest and (row["chosen"] is None or path.is_file()):
        return row
    path.unlink(missing_ok=True)
    row = select(store, target, candidates, rule=rule) | {"inputs": digest}
    if row["chosen"] is not None:
        chosen = next(case for case in candidates if case.key == row["chosen"])
        write_label(store, target, chosen, path)
    return row


def write_label(
    store: PairStore, target: RegistrationCase, chosen: RegistrationCase, path: Path
) -> None:
    """Warp a volume's label to a target and write it.

    Args:
        store: The registered pairs.
        target: Volume to label.
        chosen: Volume with the label.
        path: ``.nii.gz`` file.

    Raises:
        UserError: If the label is missing or lies on another grid than its image, or the pair is
            not registered.
    """
    transform = store.transform(target, chosen)
    if transform is None:
        raise UserError(f"{target.key} is not registered with {chosen.key}; run it again")
    image, label = read_image(chosen, store.modality), read_label(chosen)
    if label.GetSize() != image.GetSize():
        raise UserError(
            f"{chosen.label} has size {label.GetSize()}, its image {image.GetSize()}; a label lies"
            " on the grid of its image"
        )
    label.CopyInformation(image)
    warped = warp_label(label, read_image(target, store.modality), transform)
    warped.CopyInformation(SimpleITK.ReadImage(str(target.image)))  # the file's own geometry
    _write(warped, path)


def write_empty_label(target: RegistrationCase, path: Path) -> None:
    """Write a label map without any structure, on the grid of a volume's file (``.nii.gz``)."""
    image = SimpleITK.ReadImage(str(target.image))
    empty = SimpleITK.Image(image.GetSize(), SimpleITK.sitkUInt8)
    empty.CopyInformation(image)
    _write(empty, path)


def _write(label: SimpleITK.Image, path: Path) -> None:
    with replacing(path) as file:
        temporary = file.with_name(f"{file.name}{_SUFFIX}")  # the ending decides the format
        try:
            SimpleITK.WriteImage(label, str(temporary), useCompression=True)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def _known(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))
    return {row["case"]: row for row in rows}


def _digest(
    store: PairStore,
    target: RegistrationCase,
    candidates: Sequence[RegistrationCase],
    rule: Rule,
) -> str:
    """Return a digest of what a selection depends on: pairs, labels and an unusual rule."""
    parts: list[Any] = [] if rule == BEST else [asdict(rule)]
    for case in candidates:
        if case.matches(target):
            done = [store.record(*pair) is not None for pair in ((target, case), (case, target))]
            label = None if case.label is None else file_sha256(case.label)
            pairs = [store.fingerprint(target, case), store.fingerprint(case, target)]
            parts.append([case.key, done, pairs, label])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
