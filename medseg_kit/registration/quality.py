"""How good registrations are: overlap of warped labels first, then what images alone tell.

A round trip alone is best when nothing moves, so it never stands without the other two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import SimpleITK

from medseg_kit.metrics.overlap import dice_score
from medseg_kit.registration.cases import Pair, RegistrationCase
from medseg_kit.registration.job import METRIC
from medseg_kit.registration.parallel import run_parallel
from medseg_kit.registration.resampling import warp_label
from medseg_kit.registration.selection import score_images
from medseg_kit.registration.store import PairStore
from medseg_kit.registration.volumes import read_image, read_label
from medseg_kit.typing import UserError

COLUMNS = ("dice", "dice_unregistered", "mutual_information", "cycle_rmse", "coverage")


def compare_labels(
    store: PairStore,
    labelled: Sequence[RegistrationCase],
    *,
    jobs: int = 1,
    scheduler: str | None = None,
) -> list[dict[str, Any]]:
    """Return the quality of every registered ordered pair of labelled volumes.

    Args:
        store: The registered pairs.
        labelled: Volumes with labels.
        jobs: As `run_parallel`.
        scheduler: As `run_parallel`.

    Returns:
        A row a pair: ``fixed``, ``moving``, ``dice`` (mean over organs of the warped label),
        ``dice_unregistered`` (image centres aligned), ``mutual_information`` (fixed region, warped
        volume), ``cycle_rmse`` and ``coverage`` of the round trip where both directions are there.
    """
    pairs = [(fixed, moving) for fixed in labelled for moving in labelled if fixed.matches(moving)]
    rows = run_parallel(partial(_compare, store), pairs, jobs=jobs, scheduler=scheduler)
    return [row for row in rows if row is not None]


def organ_dice(truth: SimpleITK.Image, pred: SimpleITK.Image) -> float | None:
    """Return the mean Dice over the organs of the first label map; None where it has none.

    Args:
        truth: Label map.
        pred: Label map on the same grid.
    """
    one, other = (SimpleITK.GetArrayFromImage(image) for image in (truth, pred))
    scores = [dice_score(one == value, other == value) for value in np.unique(one[one > 0])]
    return float(np.mean(scores)) if scores else None


def align_centres(fixed: SimpleITK.Image, moving: SimpleITK.Image) -> SimpleITK.Transform:
    """Return the translation that aligns the middles of two volumes: no registration."""
    start = SimpleITK.CenteredTransformInitializerFilter.GEOMETRY
    shift: SimpleITK.Transform = SimpleITK.CenteredTransformInitializer(
        fixed, moving, SimpleITK.AffineTransform(3), start
    )
    return shift


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the mean of each column over the rows that have it.

    Args:
        rows: From `compare_labels`.
    """
    found = list(rows)
    return {column: _mean(row[column] for row in found) for column in COLUMNS}


def format_report(report: Mapping[str, Any]) -> str:
    """Return a report as a table to read.

    Args:
        report: What ``medseg register`` writes as report.json.
    """
    pairs = report["pairs"]
    lines = [
        f"{report['data']}: {pairs['number']} ordered pairs, method {report['method']},"
        f" region {report['region']}",
        f"  {len(pairs['failed'])} failed; {pairs['seconds']:.1f} s of one thread in all, median"
        f" {_shown(pairs['median_seconds'])} s a pair; mean mutual information"
        f" {_shown(pairs['mutual_information'])}",
        "",
        f"labelled volumes, {report['labelled']['pairs']} pairs          mean",
    ]
    names = {
        "dice": "Dice of warped labels",
        "dice_unregistered": "  the same without registration",
        "mutual_information": "mutual information (0 to 1)",
        "cycle_rmse": "round trip, RMSE",
        "coverage": "round trip, share covered",
    }
    means = report["labelled"]["mean"]
    lines += [f"  {name:<34} {_shown(means[key])}" for key, name in names.items()]
    for number, chosen in report["registered_labels"].items():
        missing = chosen["without"]
        lines.append(f"labelled_{number}: {chosen['number']} registered labels")
        lines += [f"  none for {row['case']}: {row['reason']}" for row in missing[:5]]
    lines += [
        f"failed: {row['fixed']} <- {row['moving']}: {row['reason']}" for row in pairs["failed"][:5]
    ]
    return "\n".join(lines)


def _compare(store: PairStore, pair: Pair) -> dict[str, Any] | None:
    fixed, moving = pair
    transform, back = store.transform(fixed, moving), store.transform(moving, fixed)
    record = store.record(fixed, moving)
    if transform is None or record is None:
        return None
    truth, label = read_label(fixed), read_label(moving)
    image, other = read_image(fixed, store.modality), read_image(moving, store.modality)
    for case, one, grid in ((fixed, truth, image), (moving, label, other)):
        if one.GetSize() != grid.GetSize():
            raise UserError(f"{case.label} does not lie on the grid of its image")
        one.CopyInformation(grid)
    row: dict[str, Any] = {
        "fixed": fixed.key,
        "moving": moving.key,
        "dice": organ_dice(truth, warp_label(label, truth, transform)),
        "dice_unregistered": organ_dice(
            truth, warp_label(label, truth, align_centres(truth, label))
        ),
        "mutual_information": record["metric"][METRIC],
        "cycle_rmse": None,
        "coverage": None,
    }
    if back is not None:
        score = score_images(image, other, back, transform)
        row |= {"cycle_rmse": score.rmse, "coverage": score.coverage}
    return {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 5) if known else None


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
