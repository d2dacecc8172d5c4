"""`medseg data`: prepare and check data sets, write synthetic ones."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def prepare(
    name: str,
    *,
    source: str,
    out: str,
    view: str | None = None,
    split: str | None = None,
    sites: str | None = None,
    allow: str = "",
    overwrite: bool = False,
) -> int:
    """Check a raw public data set and write it in the form that every bundle reads.

    Example:
        medseg data prepare hippocampus --source RAW --out prepared/hippocampus --sites two_parts

    Args:
        name: A manifest of the package (hippocampus, btcv, msd_liver, ...) or a manifest YAML file.
        source: Folder of the raw data, the data set's own or the one that holds it.
        out: Folder to make; with --sites the site folders stand in OUT/sites.
        view: Organs and their numbering, as named in the manifest.
        split: Division into training, validation and test, as named in the manifest.
        sites: Division of training and validation cases among sites, as named in the manifest.
        allow: Findings to treat as warnings, separated by commas, for example grid-affine.
        overwrite: Replace OUT.

    Returns:
        0, or 1 when a check failed and nothing was written.
    """
    from medseg_kit.data.findings import DataProblemsError
    from medseg_kit.data.plan import make_plan
    from medseg_kit.data.prepare import prepare_dataset

    plan = make_plan(name, source=source, view=view, split=split, sites=sites)
    kinds = [kind for kind in allow.split(",") if kind]
    try:
        report = prepare_dataset(plan, out, allow=kinds, overwrite=overwrite, progress=True)
    except DataProblemsError as error:
        return _print_problems(error.title, error.findings)
    for warning in report["warnings"]:
        print(f"warning: [{warning['kind']}] {warning['file']}: {warning['message']}")
    counts = ", ".join(f"{number} {section}" for section, number in report["cases"].items())
    print(f"{out}: {counts}")
    for site, content in report["sites"].items():
        organs = ", ".join(content["organs"])
        print(
            f"  {site} ({organs}): {content['training']} training, {content['validation']} validation"
        )
    return 0


def _print_problems(title: str, findings: Iterable[object]) -> int:
    lines = [str(finding) for finding in findings]
    print(f"error: {title}, {len(lines)} problem(s)", file=sys.stderr)
    for line in lines:
        print(f"  {line}", file=sys.stderr)
    return 1
