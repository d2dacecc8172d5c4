"""`medseg data`: prepare and check data sets, write synthetic ones."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medseg_kit.data.findings import Finding


def prepare(  # noqa: PLR0913 - the options of a command line
    name: str,
    *,
    source: str,
    out: str,
    view: str | None = None,
    split: str | None = None,
    sites: str | None = None,
    label_map: str | None = None,
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
        label_map: What the raw label values of this copy mean, where the manifest does not say it,
            for example "1:aorta,2:gallbladder".
        allow: Findings to treat as warnings, separated by commas, for example grid-affine.
        overwrite: Replace OUT.

    Returns:
        0, or 1 when a check failed and nothing was written.
    """
    from medseg_kit.data.findings import DataProblemsError, Finding
    from medseg_kit.data.label_map import parse_label_map
    from medseg_kit.data.plan import make_plan
    from medseg_kit.data.prepare import prepare_dataset

    meaning = None if label_map is None else parse_label_map(label_map)
    plan = make_plan(name, source=source, view=view, split=split, sites=sites, label_map=meaning)
    try:
        report = prepare_dataset(plan, out, allow=_kinds(allow), overwrite=overwrite, progress=True)
    except DataProblemsError as error:
        _print_warnings(error.warnings)
        return _print_errors(error.title, error.findings)
    _print_warnings([Finding(w["file"], w["kind"], w["message"]) for w in report["warnings"]])
    counts = ", ".join(f"{number} {section}" for section, number in report["cases"].items())
    unlabelled = sum(record["voxels"] == {} for record in report["records"])
    print(f"{out}: {counts}" + (f"; {unlabelled} without a label" if unlabelled else ""))
    for site, content in report["sites"].items():
        counts = f"{content['training']} training, {content['validation']} validation"
        counts += f", {len(content['labelled'])} labelled subjects"
        print(f"  sites/{site} ({', '.join(content['organs'])}): {counts}")
    return 0


def check(folder: str, *, allow: str = "") -> int:
    """Repeat the checks on a prepared data set and on the sites in it, sha256 sums included.

    Example:
        medseg data check prepared/hippocampus

    Args:
        folder: A prepared data set, or a folder of sites.
        allow: Findings to treat as warnings, separated by commas, for example grid-affine.

    Returns:
        0, or 1 when a check failed.
    """
    from medseg_kit.data.verify import verify_dataset

    errors, warnings = verify_dataset(folder, allow=_kinds(allow), progress=True)
    _print_warnings(warnings)
    if errors:
        return _print_errors(f"{folder} must not be used", errors)
    print(f"{folder}: all checks passed")
    return 0


def phantoms(  # noqa: PLR0913 - the options of a command line
    out: str,
    *,
    organs: str = "liver,spleen,pancreas,kidneys",
    patients_per_site: int = 8,
    num_outside: int = 4,
    size: str = "64,64,64",
    seed: int = 0,
    modality: str = "CT",
    anatomy: str = "abdomen",
    num_support: int = 0,
) -> int:
    """Write synthetic patients: one site an organ that labels only it, and a labelled outside.

    Example:
        medseg data phantoms phantom_sites --patients_per_site 8 --size 64,64,64

    Args:
        out: Folder to make: OUT/sites/site-ORGAN and OUT/outside.
        organs: Organs in the order of their label values, separated by commas.
        patients_per_site: Patients of each site; a quarter of them, at least one, validates.
        num_outside: Test patients of the outside site.
        size: Voxels along right, front and head, separated by commas, or one number.
        seed: Seed of everything random.
        modality: CT or MR.
        anatomy: abdomen, abdomen_parts (eight organs), cardiac, hippocampus or pelvis.
        num_support: Support scans of one-shot segmentation at every site, beside its patients; with
            any, every site labels all organs.

    Returns:
        0.
    """
    from medseg_kit.data.manifest_types import choose
    from medseg_kit.data.phantoms import ANATOMIES, write_phantom_sites

    folders = write_phantom_sites(
        out,
        organs=organs.split(","),
        patients_per_site=patients_per_site,
        num_outside=num_outside,
        size=_size(size),
        seed=seed,
        modality=modality,
        anatomy=choose("anatomy", anatomy, ANATOMIES, "medseg data phantoms"),
        num_support=num_support,
    )
    for folder in folders.values():
        print(folder)
    return 0


def _kinds(allow: str) -> list[str]:
    return [kind.strip() for kind in allow.split(",") if kind.strip()]


def _size(text: str) -> tuple[int, int, int]:
    from medseg_kit.typing import UserError

    parts = str(text).strip("()[] ").split(",")
    try:
        numbers = [int(part) for part in parts]
    except ValueError as error:
        raise UserError(f"size {text!r} must be whole numbers, for example 64,64,64") from error
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise UserError(f"size {text!r} has {len(numbers)} numbers; give three or one")
    return (numbers[0], numbers[1], numbers[2])


def _print_warnings(warnings: Sequence[Finding]) -> None:
    for warning in warnings:
        print(f"warning: {warning}")


def _print_errors(title: str, errors: Sequence[Finding]) -> int:
    print(f"error: {title}, {len(errors)} problem(s):", file=sys.stderr)
    for error in errors:
        print(f"  {error}", file=sys.stderr)
    return 1
