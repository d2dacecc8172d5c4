"""Data sets of synthetic patients: raw, prepared, or divided among sites; for demo and tests.

Everything written here is called synthetic in its datalist. Nothing learned from it, and no number
measured on it, says anything about patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medseg_kit.data.datalist import SCHEMA_VERSION, SECTIONS, SUPPORT, write_datalist
from medseg_kit.data.phantom_anatomy import (
    ABDOMEN,
    ABDOMEN_PARTS,
    CARDIAC,
    HIPPOCAMPUS,
    PELVIS,
    Anatomy,
)
from medseg_kit.data.phantom_image import Scanner, draw_phantom
from medseg_kit.data.phantom_recipe import Recipe, Size, raw_manifest
from medseg_kit.data.readers import NIFTI_SUFFIX
from medseg_kit.data.records import SITES_FOLDER
from medseg_kit.data.volumes import file_sha256, save_volume
from medseg_kit.typing import PathLike, UserError

__all__ = [
    "ABDOMEN",
    "ABDOMEN_PARTS",
    "ANATOMIES",
    "CARDIAC",
    "HIPPOCAMPUS",
    "OUTSIDE",
    "PELVIS",
    "Scanner",
    "draw_phantom",
    "site_scanner",
    "write_phantom_dataset",
    "write_phantom_raw",
    "write_phantom_sites",
]

ANATOMIES: Mapping[str, Anatomy] = {
    "abdomen": ABDOMEN,
    "abdomen_parts": ABDOMEN_PARTS,
    "cardiac": CARDIAC,
    "hippocampus": HIPPOCAMPUS,
    "pelvis": PELVIS,
}
OUTSIDE = "outside"

# Four looks that differ in contrast phase, offset, noise, voxel size and stored orientation; the
# outside look is none of them. Shifts in HU, or hundredths of muscle's signal for MR.
_LOOKS: tuple[dict[str, Any], ...] = (
    {"gain": 1.00, "shift": 0, "noise": 14, "coarseness": (1, 1, 1.25), "orientation": "LAS"},
    {"gain": 0.75, "shift": 15, "noise": 20, "coarseness": (1, 1, 1), "orientation": "RAS"},
    {"gain": 1.20, "shift": -15, "noise": 10, "coarseness": (1.1, 1.1, 1), "orientation": "LPS"},
    {"gain": 0.90, "shift": 8, "noise": 24, "coarseness": (1, 1, 1.5), "orientation": "RPI"},
)
_OUTSIDE_LOOK: dict[str, Any] = {
    "gain": 0.95,
    "shift": -6,
    "noise": 18,
    "coarseness": (1.05, 1.05, 1.15),
    "orientation": "LPI",
}
_MR_BIAS = 0.15


def site_scanner(index: int | None, *, modality: str = "CT") -> Scanner:
    """Give the look of a site's images.

    Args:
        index: Number of the site from 0 (looks repeat after four), or None for the outside site.
        modality: ``CT`` or ``MR``; MR adds a bias field.

    Returns:
        The scanner.

    Raises:
        UserError: When the modality is neither.
    """
    if modality not in {"CT", "MR"}:
        raise UserError(f"modality {modality!r} is unknown; choose CT or MR")
    look = _OUTSIDE_LOOK if index is None else _LOOKS[index % len(_LOOKS)]
    return Scanner(modality=modality, bias=_MR_BIAS if modality == "MR" else 0.0, **look)


def write_phantom_sites(  # noqa: PLR0913 - the options of a command line
    out_dir: PathLike,
    *,
    organs: Sequence[str],
    patients_per_site: int = 8,
    num_outside: int = 4,
    size: Size = (64, 64, 64),
    seed: int = 0,
    modality: str = "CT",
    anatomy: Anatomy = ABDOMEN,
    num_support: int = 0,
) -> dict[str, Path]:
    """Write one partially labelled synthetic site an organ, and one fully labelled outside site.

    Sites differ in contrast, offset, noise, voxel size and orientation. The site of ``organs[i]``
    is ``out_dir/sites/site-<organ>`` and labels that organ only (value ``i + 1``); a quarter of
    its patients, at least one, validates. ``out_dir/outside`` labels every organ, for test only.

    Args:
        out_dir: Folder to write into; made if missing.
        organs: Organs in the order of their label values.
        patients_per_site: Training and validation patients of each site, at least 2.
        num_outside: Test patients of the outside site, at least 1.
        size: Voxels along right, front and head; sites with coarser voxels have fewer.
        seed: Seed of everything random.
        modality: ``CT`` or ``MR``.
        anatomy: Part of the body, one of `ANATOMIES`.
        num_support: Support scans of one-shot segmentation at every site, beside its patients; with
            any, every site labels all organs.

    Returns:
        Site name, or ``outside``, to its prepared folder.

    Raises:
        UserError: When an organ is unknown, a folder exists, or a number is too small.
    """
    if patients_per_site < 2:
        raise UserError(f"patients_per_site is {patients_per_site}; at least 2 (one validates)")
    num_validation = max(1, patients_per_site // 4)
    sections = {
        SUPPORT: num_support,
        "training": patients_per_site - num_validation,
        "validation": num_validation,
    }
    names = [f"site-{organ.replace(' ', '-')}" for organ in organs]
    for folder in [Path(out_dir) / OUTSIDE, *(Path(out_dir) / SITES_FOLDER / n for n in names)]:
        if folder.exists():  # before anything is written: no mixture of two sets
            raise UserError(f"{folder} exists; choose another folder")
    folders = {}
    for index, (organ, site) in enumerate(zip(organs, names, strict=True)):
        scanner = site_scanner(index, modality=modality)
        recipe = Recipe(tuple(organs), size, anatomy, scanner, (seed, index))
        folder = Path(out_dir) / SITES_FOLDER / site
        annotated = organs if num_support else [organ]
        folders[site] = _write_prepared(folder, recipe, sections, site=site, annotated=annotated)
    scanner = site_scanner(None, modality=modality)
    recipe = Recipe(tuple(organs), size, anatomy, scanner, (seed, len(organs)))
    folder = Path(out_dir) / OUTSIDE
    counts = {SUPPORT: num_support, "test": num_outside}
    folders[OUTSIDE] = _write_prepared(folder, recipe, counts, site=OUTSIDE)
    return folders


def write_phantom_dataset(
    out_dir: PathLike,
    *,
    organs: Sequence[str],
    counts: Mapping[str, int],
    size: Size = (64, 64, 64),
    seed: int = 0,
    scanner: Scanner | None = None,
    anatomy: Anatomy = ABDOMEN,
) -> Path:
    """Write one fully labelled prepared data set of synthetic patients.

    Args:
        out_dir: Folder to make.
        organs: Organs in the order of their label values.
        counts: Number of patients of each section, for example ``{"training": 4, "test": 1}``, and
            of ``support`` scans, which stand among the training cases and are never trained on.
        size: Voxels along right, front and head at coarseness 1; ``(64, 64, 8)`` of `CARDIAC` gives
            a stack of few thick slices.
        seed: Seed of everything random.
        scanner: Look of the images; a neutral CT if None.
        anatomy: Part of the body, one of `ANATOMIES`.

    Returns:
        The folder.

    Raises:
        UserError: When an organ or section is unknown, the folder exists, or there is no patient.
    """
    recipe = Recipe(tuple(organs), size, anatomy, scanner or Scanner(), (seed,))
    return _write_prepared(Path(out_dir), recipe, counts)


def write_phantom_raw(
    out_dir: PathLike,
    *,
    organs: Sequence[str],
    num_patients: int,
    size: Size = (64, 64, 64),
    seed: int = 0,
    scanner: Scanner | None = None,
    anatomy: Anatomy = ABDOMEN,
) -> Path:
    """Write synthetic patients as a raw data set in the MSD layout, with its manifest.

    Args:
        out_dir: Folder to make: ``imagesTr``, ``labelsTr`` and ``manifest.yaml``.
        organs: Organs in the order of their label values.
        num_patients: Number of patients, at least 3; a fifth validates and a fifth is for test.
        size: Voxels along right, front and head at coarseness 1.
        seed: Seed of everything random.
        scanner: Look of the images; a neutral CT if None.
        anatomy: Part of the body, one of `ANATOMIES`.

    Returns:
        Path of the manifest, for ``medseg data prepare MANIFEST --source OUT_DIR``.

    Raises:
        UserError: When an organ is unknown, the folder exists, or there are too few patients.
    """
    if num_patients < 3:
        raise UserError(f"num_patients is {num_patients}; at least 3 fill all sections")
    folder = _new_folder(Path(out_dir), "imagesTr", "labelsTr")
    recipe = Recipe(tuple(organs), size, anatomy, scanner or Scanner(), (seed,))
    for index in range(num_patients):
        phantom = recipe.draw(index)
        save_volume(phantom.image, folder / "imagesTr" / f"phantom_{index:03d}.nii.gz")
        save_volume(phantom.label, folder / "labelsTr" / f"phantom_{index:03d}.nii.gz")
    path = folder / "manifest.yaml"
    manifest = raw_manifest(recipe, num_patients)
    path.write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    return path


def _write_prepared(
    folder: Path,
    recipe: Recipe,
    counts: Mapping[str, int],
    *,
    site: str | None = None,
    annotated: Sequence[str] | None = None,
) -> Path:
    kinds = (SUPPORT, *SECTIONS)
    if set(counts) - set(kinds) or sum(counts.values()) < 1 or min(counts.values()) < 0:
        raise UserError(f"counts {dict(counts)} must name patients of {', '.join(kinds)}")
    _new_folder(folder, "images", "labels")
    name = f"synthetic_{site or recipe.anatomy.name.replace(' ', '_')}"
    names = [kind for kind in kinds for _ in range(counts.get(kind, 0))]
    cases: dict[str, list[dict[str, Any]]] = {section: [] for section in SECTIONS}
    sums: dict[str, str] = {}
    for index, kind in enumerate(names):
        section, support = ("training", {SUPPORT: True}) if kind == SUPPORT else (kind, {})
        subject = f"{name}_{index:03d}"
        files = {key: f"{key}s/{subject}{NIFTI_SUFFIX}" for key in ("image", "label")}
        phantom = recipe.draw(index, annotated)
        save_volume(phantom.image, folder / files["image"])
        save_volume(phantom.label, folder / files["label"])
        cases[section].append({**files, "subject": subject, "site": site, **support})
        sums |= {file: file_sha256(folder / file) for file in files.values()}
    content = {
        "schema": SCHEMA_VERSION,
        "name": name,
        **recipe.header,
        "labels": recipe.labels,
        "annotated": list(recipe.organs if annotated is None else annotated),
        "site": site,
        **cases,
        "sha256": dict(sorted(sums.items())),
    }
    write_datalist(folder, content)
    return folder


def _new_folder(folder: Path, *subfolders: str) -> Path:
    if folder.exists():
        raise UserError(f"{folder} exists; choose another folder or remove it")
    for name in subfolders:
        (folder / name).mkdir(parents=True)
    return folder
