"""Raw public data in, a checked data set out; nothing is left behind when a check fails."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from medseg_kit.data.checks import Expected, ImageContent, check_pair, duplicate_findings
from medseg_kit.data.datalist import DATALIST_NAME, write_datalist
from medseg_kit.data.findings import (
    DataProblemsError,
    Finding,
    check_allowed,
    separate,
    unusable,
)
from medseg_kit.data.manifest_types import Manifest
from medseg_kit.data.plan import Plan, PlannedCase
from medseg_kit.data.records import (
    REPORT_NAME,
    build_datalist,
    build_report,
    case_record,
    prepared_file,
    site_path,
)
from medseg_kit.data.volumes import (
    Volume,
    content_hash,
    link_or_copy,
    relabel,
    save_volume,
    to_unit,
)
from medseg_kit.files import write_json
from medseg_kit.typing import PathLike, UserError

MAX_THREADS = 4


@dataclass(frozen=True)
class _Done:
    """What one case left behind: findings, its line in the report, and the hash of its voxels."""

    findings: Sequence[Finding]
    record: Mapping[str, Any]
    content: str | None


def prepare_dataset(
    plan: Plan,
    out: PathLike,
    *,
    allow: Iterable[str] = (),
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Check every case of a plan and write the prepared data set and its sites.

    Images are written as NIfTI with identical sform and qform on their own grid; Hounsfield units
    as 16-bit integers (rounded where the stored intensity is rescaled), others as stored.
    Labels are written in the numbering of the view. A training case may come without one where the
    kind missing-label is allowed. A site folder holds hard links of its images
    (copies where the file system has no links) and labels with the site's organs only, none for
    the subjects that the site has not labelled. A set with a lost spacing is marked as such.

    Args:
        plan: Result of `medseg_kit.data.plan.make_plan`.
        out: Folder to make. It appears complete or not at all.
        allow: Kinds of errors to treat as warnings, beside those that the manifest allows.
        overwrite: Replace an existing folder.
        progress: Show a progress bar on stderr.

    Returns:
        The report, as written to ``report.json``: counts, findings and one record a case.

    Raises:
        DataProblemsError: When a check fails; lists every problem of every file.
        UserError: When `out` exists (with `overwrite`: and is no prepared data set) or a kind
            cannot be allowed.
    """
    allowed = check_allowed(allow) | set(plan.allow)
    target = Path(out)
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; choose another folder or replace it with --overwrite")
    if target.exists() and not (target / DATALIST_NAME).is_file():
        raise UserError(f"{target} is no prepared data set, so it is not replaced; remove it first")
    with _partial_folder(target) as folder:
        done = _process_cases(plan, folder, progress=progress)
        findings = [*plan.findings, *(finding for case in done for finding in case.findings)]
        findings += duplicate_findings(
            ImageContent(
                case.raw.subject, case.section, _relative(case.raw.image, case.root), one.content
            )
            for case, one in zip(plan.cases, done, strict=True)
        )
        errors, warnings = separate(findings, allowed)
        if errors:
            raise DataProblemsError(f"{plan.header['name']} was not prepared", errors, warnings)
        records = [one.record for one in done]
        if any(record["spacing_mm"] is None for record in records):
            plan = replace(plan, header={**plan.header, "spacing": "lost"})
        report = build_report(plan, records, warnings, allowed=allowed)
        for site in (None, *plan.sites):
            write_datalist(folder / site_path(site), build_datalist(plan, folder, site))
        write_json(folder / REPORT_NAME, report)
        _move(folder, target)
    return report


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target`, removed at the end unless it was moved away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-{platform.node()}-"
    for left in target.parent.iterdir():
        owner = left.name.removeprefix(prefix)
        if owner != left.name and owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left)  # of a run that was killed
    folder = target.parent / f"{prefix}{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def _move(folder: Path, target: Path) -> None:
    """Put a finished folder in its place, an old one out of the way first."""
    if not target.exists():
        folder.replace(target)
        return
    old = folder.with_name(folder.name.replace(".partial-", ".old-"))
    target.replace(old)
    folder.replace(target)
    shutil.rmtree(old)


def _process_cases(plan: Plan, folder: Path, *, progress: bool) -> list[_Done]:
    for site in (None, *plan.sites):
        for name in ("images", "labels"):
            (folder / site_path(site) / name).mkdir(parents=True)
    # zlib and numpy release the interpreter lock, so threads read and compress side by side.
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda case: _process_case(case, plan, folder), plan.cases)
        try:
            return list(tqdm(results, total=len(plan.cases), unit="case", disable=not progress))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the other cases
            raise


def _process_case(case: PlannedCase, plan: Plan, folder: Path) -> _Done:
    """Check one case and write its image and labels when nothing fatal was found."""
    manifest = case.manifest
    labelled = not _may_lack_label(case) or case.raw.label.exists()
    label_path = case.raw.label if labelled else None
    pair = check_pair(case.raw.image, label_path, expected_values(manifest), root=case.root)
    if not labelled:
        message = "no label; if it has none, --allow missing-label prepares the image without one"
        file = _relative(case.raw.label, case.root)
        pair.findings.append(Finding(file, "missing-label", message))
    content = content_hash(pair.image.array) if pair.image else None
    if unusable(pair.findings) or pair.image is None or (labelled and pair.label is None):
        return _Done(pair.findings, {}, content)
    image = Volume(
        to_unit(pair.image.array, manifest.stored_intensity, intensity=manifest.intensity),
        pair.image.affine,
    )
    save_volume(image, folder / prepared_file("images", case))
    label = None
    if pair.label is not None:
        # A label whose affine may differ (finding grid-affine) lies on the grid of its image.
        label = Volume(relabel(pair.label.array, case.view.mapping(case.annotated)), image.affine)
        save_volume(label, folder / prepared_file("labels", case))
    findings = [*pair.findings, *_write_for_site(case, plan, folder, label)]
    if manifest.spacing == "valid" and not manifest.knows_spacing(image.spacing):
        message = "the header's voxel size stands for an unknown one: mm and ml stay empty"
        findings.append(Finding(manifest.name, "lost-spacing", message))
    return _Done(findings, case_record(case, image, label, pair.image), content)


def _may_lack_label(case: PlannedCase) -> bool:
    """Whether a case is of use without a label: training is, a support scan's mask is its point."""
    return case.section == "training" and not case.support and case.raw.image.exists()


def _write_for_site(
    case: PlannedCase, plan: Plan, folder: Path, label: Volume | None
) -> Iterator[Finding]:
    """Write the case into its site's folder, with the organs that the site annotates."""
    if case.site is None:
        return
    site = folder / site_path(case.site)
    link_or_copy(folder / prepared_file("images", case), site / prepared_file("images", case))
    if label is None or not case.labelled:
        return
    organs = plan.sites[case.site]
    kept = {v: v for v, organ in enumerate(case.view.organs, start=1) if organ in organs}
    own = relabel(label.array, kept)
    save_volume(Volume(own, label.affine), site / prepared_file("labels", case))
    if not own.any():
        file = f"{site_path(case.site)}/{prepared_file('labels', case)}"
        yield Finding(file, "empty-label", f"no voxel of {', '.join(organs)}")


def expected_values(manifest: Manifest) -> Expected:
    """Say what stored values a manifest allows."""
    stored = manifest.stored_intensity
    return Expected(manifest.labels, stored.limits, stored.reaches_below, manifest.laterality)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
