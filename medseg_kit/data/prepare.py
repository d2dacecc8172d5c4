"""Raw public data in, a checked data set out; nothing is left behind when a check fails."""

from __future__ import annotations

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medseg_kit import __version__
from medseg_kit.data.checks import Expected, Volume, check_pair, content_hash, file_sha256
from medseg_kit.data.datalist import SCHEMA_VERSION, SECTIONS, write_datalist, write_json
from medseg_kit.data.findings import (
    DataProblemsError,
    Finding,
    check_allowed,
    separate,
    unusable,
)
from medseg_kit.data.manifest import Manifest
from medseg_kit.data.plan import Plan, PlannedCase
from medseg_kit.data.readers import NIFTI_SUFFIX
from medseg_kit.data.volumes import link_or_copy, relabel, save_volume, to_unit
from medseg_kit.typing import PathLike, UserError

REPORT_NAME = "report.json"
SITES_FOLDER = "sites"
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

    Images are written as NIfTI with identical sform and qform on their own grid; Hounsfield units as
    16-bit integers (rounded where the stored intensity is rescaled), other intensities as stored.
    Labels are written in the numbering of the view. A site folder holds hard links of its images
    (copies where the file system has no links) and labels with the site's organs only.

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
        UserError: When `out` exists or a kind cannot be allowed.
    """
    allowed = check_allowed(allow) | set(plan.allow)
    target = Path(out)
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; choose another folder or replace it with --overwrite")
    with _partial_folder(target) as folder:
        done = _process_cases(plan, folder, progress=progress)
        findings = [*plan.findings, *(finding for case in done for finding in case.findings)]
        findings += duplicate_findings(
            (case.raw.subject, _relative(case.raw.image, case.root), one.content)
            for case, one in zip(plan.cases, done, strict=True)
        )
        errors, warnings = separate(findings, allowed)
        if errors:
            raise DataProblemsError(f"{plan.header['name']} was not prepared", errors)
        report = _report(plan, done, warnings)
        for site in (None, *plan.sites):
            write_datalist(folder / _site_path(site), _datalist(plan, folder, site))
        write_json(folder / REPORT_NAME, report)
        _move(folder, target)
    return report


def duplicate_findings(images: Iterable[tuple[str, str, str | None]]) -> list[Finding]:
    """Find images of different subjects with the same voxel values.

    Args:
        images: Subject, file and content hash (None where unreadable) of each image.

    Returns:
        One finding for each image that repeats an earlier one of another subject.
    """
    first: dict[str, tuple[str, str]] = {}
    findings = []
    for subject, file, content in images:
        if content is None:
            continue
        other, other_file = first.setdefault(content, (subject, file))
        if other != subject:
            message = f"same voxel values as {other_file} (subject {other}); remove one of the two"
            findings.append(Finding(file, "duplicate-image", message))
    return findings


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target`, removed at the end unless it was moved away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f".{target.name}.partial-{uuid.uuid4().hex[:8]}"
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
            (folder / _site_path(site) / name).mkdir(parents=True)
    # zlib and numpy release the interpreter lock, so threads read and compress side by side.
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda case: _process_case(case, plan, folder), plan.cases)
        bar = tqdm(results, total=len(plan.cases), unit="case", disable=not progress)
        return list(bar)


def _process_case(case: PlannedCase, plan: Plan, folder: Path) -> _Done:
    """Check one case and write its image and labels when nothing fatal was found."""
    manifest = case.manifest
    pair = check_pair(case.raw.image, case.raw.label, _expected(manifest), root=case.root)
    content = content_hash(pair.image.array) if pair.image else None
    if unusable(pair.findings) or pair.image is None or pair.label is None:
        return _Done(pair.findings, {}, content)
    image = Volume(
        to_unit(pair.image.array, manifest.stored_intensity, intensity=manifest.intensity),
        pair.image.affine,
    )
    # A label whose affine may differ (finding grid-affine) lies on the grid of its image.
    label = Volume(relabel(pair.label.array, case.view.mapping(case.annotated)), image.affine)
    save_volume(image, folder / _file("images", case))
    save_volume(label, folder / _file("labels", case))
    findings = [*pair.findings, *_write_for_site(case, plan, folder, label)]
    return _Done(findings, _record(case, image, label, pair.image), content)


def _write_for_site(
    case: PlannedCase, plan: Plan, folder: Path, label: Volume
) -> Iterator[Finding]:
    """Write the case into its site's folder, with the organs that the site annotates."""
    if case.site is None:
        return
    site = folder / _site_path(case.site)
    organs = plan.sites[case.site]
    kept = {v: v for v, organ in enumerate(case.view.organs, start=1) if organ in organs}
    own = relabel(label.array, kept)
    link_or_copy(folder / _file("images", case), site / _file("images", case))
    save_volume(Volume(own, label.affine), site / _file("labels", case))
    if not own.any():
        file = f"{_site_path(case.site)}/{_file('labels', case)}"
        yield Finding(file, "empty-label", f"no voxel of {', '.join(organs)}")


def _expected(manifest: Manifest) -> Expected:
    stored = manifest.stored_intensity
    return Expected(manifest.labels, stored.limits, stored.reaches_below, manifest.laterality)


def _record(case: PlannedCase, image: Volume, label: Volume, stored: Volume) -> dict[str, Any]:
    """Describe one case for the report; volumes in ml only where the spacing is known."""
    voxels = np.bincount(label.array.ravel(), minlength=len(case.view.organs) + 1)
    known = case.manifest.spacing == "valid"
    millilitres = float(np.prod(image.spacing)) / 1000
    return {
        "case": case.raw.case_id,
        "subject": case.raw.subject,
        "section": case.section,
        "site": case.site,
        "size": list(image.array.shape),
        "spacing_mm": [round(s, 5) for s in image.spacing] if known else None,
        "orientation": image.orientation,
        "stored_type": stored.array.dtype.name,
        "intensity": [float(image.array.min()), float(image.array.max())],
        "voxels": {o: int(voxels[v]) for v, o in _annotated_values(case)},
        "ml": {o: round(voxels[v] * millilitres, 3) for v, o in _annotated_values(case)}
        if known
        else None,
    }


def _annotated_values(case: PlannedCase) -> list[tuple[int, str]]:
    return [(v, o) for v, o in enumerate(case.view.organs, start=1) if o in case.annotated]


def _datalist(plan: Plan, folder: Path, site: str | None) -> dict[str, Any]:
    """Build the datalist of the whole set (`site` None) or of one site, sums included."""
    cases = [case for case in plan.cases if site is None or case.site == site]
    annotated = _union(case.annotated for case in cases) if site is None else plan.sites[site]
    sections: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    sums: dict[str, str] = {}
    for case in cases:
        entry: dict[str, Any] = {
            "image": _file("images", case),
            "label": _file("labels", case),
            "subject": case.raw.subject,
            "site": case.site,
        }
        if case.raw.frame:
            entry["frame"] = case.raw.frame
        if site is None and set(case.annotated) != set(annotated):
            entry["annotated"] = list(case.annotated)
        sections[case.section].append(entry)
        for key in ("image", "label"):
            sums[entry[key]] = file_sha256(folder / _site_path(site) / entry[key])
    return {
        "schema": SCHEMA_VERSION,
        **plan.header,
        "annotated": [o for o in plan.header["labels"].values() if o in annotated],
        "site": site,
        **sections,
        "sha256": dict(sorted(sums.items())),
    }


def _report(plan: Plan, done: Sequence[_Done], warnings: Sequence[Finding]) -> dict[str, Any]:
    sections = Counter(case.section for case in plan.cases)
    sites = {
        site: {
            "organs": list(organs),
            **{s: sum(c.site == site and c.section == s for c in plan.cases) for s in SECTIONS},
        }
        for site, organs in plan.sites.items()
    }
    return {
        "schema": SCHEMA_VERSION,
        "name": plan.header["name"],
        "made_with": f"medseg_kit {__version__}",
        **plan.choices,
        "cases": {section: sections[section] for section in SECTIONS},
        "sites": sites,
        "orientations": dict(sorted(Counter(one.record["orientation"] for one in done).items())),
        "warnings": [
            {"kind": f.kind, "file": f.file, "message": f.message, "reason": plan.allow.get(f.kind)}
            for f in warnings
        ],
        "records": [one.record for one in done],
    }


def _union(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(organ for group in groups for organ in group))


def _file(kind: str, case: PlannedCase) -> str:
    return f"{kind}/{case.raw.case_id}{NIFTI_SUFFIX}"


def _site_path(site: str | None) -> str:
    return f"{SITES_FOLDER}/{site}" if site else "."


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
