"""What a prepared data set says about itself: case records, datalists and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg_kit import __version__
from medseg_kit.data.datalist import MIXED, SCHEMA_VERSION, SECTIONS
from medseg_kit.data.findings import Finding
from medseg_kit.data.plan import Plan, PlannedCase
from medseg_kit.data.readers import NIFTI_SUFFIX
from medseg_kit.data.volumes import Volume, file_sha256

REPORT_NAME = "report.json"
SITES_FOLDER = "sites"


def case_record(
    case: PlannedCase, image: Volume, label: Volume | None, stored: Volume
) -> dict[str, Any]:
    """Describe one case for the report; volumes in ml only where the spacing is known."""
    known = case.manifest.knows_spacing(image.spacing)
    millilitres = float(np.prod(image.spacing)) / 1000
    voxels = {}
    if label is not None:
        counts = np.bincount(label.array.ravel(), minlength=len(case.view.organs) + 1)
        voxels = {organ: int(counts[value]) for value, organ in _annotated_values(case)}
    return {
        "case": case.raw.case_id,
        "subject": case.raw.subject,
        "section": case.section,
        "site": case.site,
        "labelled": case.labelled and label is not None,
        "size": list(image.array.shape),
        "spacing_mm": [round(s, 5) for s in image.spacing] if known else None,
        "orientation": image.orientation,
        "stored_type": stored.array.dtype.name,
        "intensity": [float(image.array.min()), float(image.array.max())],
        "voxels": voxels,
        "ml": {o: round(n * millilitres, 3) for o, n in voxels.items()} if known else None,
    }


def _annotated_values(case: PlannedCase) -> list[tuple[int, str]]:
    return [(v, o) for v, o in enumerate(case.view.organs, start=1) if o in case.annotated]


def build_datalist(plan: Plan, folder: Path, site: str | None) -> dict[str, Any]:
    """Build the datalist of the whole set (`site` None) or of one site, sums included."""
    cases = [case for case in plan.cases if site is None or case.site == site]
    annotated = _union(case.annotated for case in cases) if site is None else plan.sites[site]
    sections: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    sums: dict[str, str] = {}
    for case in cases:
        entry: dict[str, Any] = {
            "image": prepared_file("images", case),
            "label": prepared_file("labels", case),
            "subject": case.raw.subject,
            "site": case.site,
        }
        if not (folder / site_path(site) / entry["label"]).is_file():
            del entry["label"]
            entry["labelled"] = False
        if case.support:
            entry["support"] = True
        if case.raw.frame:
            entry["frame"] = case.raw.frame
        if site is None and set(case.annotated) != set(annotated):
            entry["annotated"] = list(case.annotated)
        sections[case.section].append(entry)
        for key in {"image", "label"} & set(entry):
            sums[entry[key]] = file_sha256(folder / site_path(site) / entry[key])
    return {
        "schema": SCHEMA_VERSION,
        **plan.header,
        "modality": _common(case.manifest.modality for case in cases),
        "intensity": _common(case.manifest.intensity for case in cases),
        "annotated": [o for o in plan.header["labels"].values() if o in annotated],
        "site": site,
        **sections,
        "sha256": dict(sorted(sums.items())),
    }


def _common(values: Iterable[str]) -> str:
    """Return the value that all share, or "mixed"."""
    found = set(values)
    return found.pop() if len(found) == 1 else MIXED


def build_report(
    plan: Plan,
    records: Sequence[Mapping[str, Any]],
    warnings: Sequence[Finding],
    *,
    allowed: Iterable[str],
) -> dict[str, Any]:
    """Summarise a prepared data set: choices, counts, warnings and one record a case."""
    sections = Counter(case.section for case in plan.cases)
    sites = {
        site: {
            "organs": list(organs),
            **{s: sum(c.site == site and c.section == s for c in plan.cases) for s in SECTIONS},
            "labelled": _labelled(records, site),
        }
        for site, organs in plan.sites.items()
    }
    return {
        "schema": SCHEMA_VERSION,
        "name": plan.header["name"],
        "made_with": f"medseg_kit {__version__}",
        **plan.choices,
        "allowed": sorted(allowed),
        "cases": {section: sections[section] for section in SECTIONS},
        "sites": sites,
        "orientations": dict(sorted(Counter(record["orientation"] for record in records).items())),
        "warnings": [
            {"kind": f.kind, "file": f.file, "message": f.message, "reason": plan.allow.get(f.kind)}
            for f in warnings
        ],
        "records": list(records),
    }


def _labelled(records: Sequence[Mapping[str, Any]], site: str) -> list[str]:
    """List the training subjects whose labels a site has, in the order of the split."""
    own = (r for r in records if r["site"] == site and r["section"] == "training" and r["labelled"])
    return list(dict.fromkeys(record["subject"] for record in own))


def _union(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(organ for group in groups for organ in group))


def prepared_file(kind: str, case: PlannedCase) -> str:
    """Path of a case's file below a prepared set; `kind` is ``images`` or ``labels``."""
    return f"{kind}/{case.raw.case_id}{NIFTI_SUFFIX}"


def site_path(site: str | None) -> str:
    """Path of a site below the whole set, ``.`` for the whole set itself."""
    return f"{SITES_FOLDER}/{site}" if site else "."
