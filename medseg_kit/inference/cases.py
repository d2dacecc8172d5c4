"""What to predict: the images of a folder, a datalist or a glob as cases with distinct names."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import SimpleITK

from medseg_kit.data.datalist import SUPPORT, cases_of
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)

DATALIST_NAMES = ("datalist.json", "dataset.json")
NIFTI_SUFFIXES = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
_DICOM_SUFFIXES = (".dcm", ".ima", "")
_HEADER_BYTES = 1 << 16
_SECTIONS = ("training", "validation", "test")


@dataclass(frozen=True)
class Case:
    """One image to predict.

    Attributes:
        name: Distinct and stable; the prediction is ``<name>.nii.gz``. May contain ``/``.
        image: The file, or the folder of a DICOM series; what the user recognises.
        files: The files that are read; several for a DICOM series.
        spacing_lost: The voxel size is not known: volumes in ml are not reported.
        label: Its ground truth, where a datalist names one.
    """

    name: str
    image: Path
    files: tuple[Path, ...]
    spacing_lost: bool = False
    label: Path | None = None

    @property
    def is_series(self) -> bool:
        """Whether the case is a DICOM series."""
        return self.image.is_dir()


def find_cases(
    source: PathLike, *, section: str | None = None, exclude: PathLike | None = None
) -> list[Case]:
    """Return the cases below a folder, in a datalist, or matching a glob, sorted by name.

    A folder with a ``datalist.json`` (or MSD ``dataset.json``) stands for that list, without the
    support scans of one-shot segmentation, which are the section ``support``. Any other
    folder is searched with its sub-folders for images and DICOM series; hidden files and label
    folders (``labels``, ``labelsTr``) are left out. A name is the path below the folder, so equal
    file names in different folders stay apart.

    Args:
        source: Folder, image file, datalist (``.json``), or pattern with ``*``.
        section: Section of a datalist; all of them if None.
        exclude: Folder that is not searched, such as the one for the predictions.

    Raises:
        UserError: If nothing is there or the list cannot be read.
    """
    path = Path(source).expanduser()
    skip = None if exclude is None else Path(os.path.realpath(exclude))
    if path.is_file() and path.suffix == ".json":
        cases = _from_datalist(path, section)
    elif path.is_dir():
        listed = [path / name for name in DATALIST_NAMES if (path / name).is_file()]
        if section is not None and not listed:
            raise UserError(
                f"{source} has no sections, so there is no {section!r}: leave the section out, or"
                " give a prepared data set"
            )
        cases = _from_datalist(listed[0], section) if listed else _from_folder(path, skip)
    elif path.is_file():
        cases = _named(path.parent, [path])
    elif glob.has_magic(str(source)):
        cases = _from_pattern(str(path), skip)
    else:
        raise UserError(f"{source} does not exist; give a folder, a datalist or a glob of images")
    if not cases:
        formats = ", ".join(IMAGE_SUFFIXES)
        raise UserError(f"{source} holds no images; looked for {formats} and DICOM series")
    return sorted(cases, key=lambda case: case.name)


def list_images(source: PathLike) -> list[dict[str, str]]:
    """Return the cases as a MONAI data list ``[{"image": path}, ...]``.

    Args:
        source: As in `find_cases`.
    """
    return [{"image": str(case.image)} for case in find_cases(source)]


def _from_datalist(path: Path, section: str | None) -> list[Case]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}")
        wanted = [section] if section is not None else [s for s in _SECTIONS if s in content]
        if missing := [name for name in wanted if name not in (*content, SUPPORT)]:
            raise KeyError(missing[0])
        entries: list[Any] = [entry for name in wanted for entry in cases_of(content, name)]
        images = [entry if isinstance(entry, str) else entry["image"] for entry in entries]
        if wrong := [image for image in images if not isinstance(image, str)]:
            raise TypeError(f"an image is one path, not {wrong[0]!r}")
    except KeyError as error:
        known = [name for name in _SECTIONS if name in content]
        raise UserError(f"{path}: {error} is missing; sections: {', '.join(known)}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a datalist: {error}") from error
    if not images:
        filled = [name for name in _SECTIONS if content.get(name)]
        raise UserError(
            f"{path} has no {section or 'image'} cases; filled are {', '.join(filled) or 'none'}"
        )
    root = path.parent
    files = [root / image for image in dict.fromkeys(images)]
    labels = {
        root / entry["image"]: root / entry["label"]
        for entry in entries
        if isinstance(entry, dict) and entry.get("label")
    }
    cases = _named(root, files, spacing_lost=content.get("spacing") == "lost")
    return [replace(case, label=labels.get(case.image)) for case in cases]


def _from_folder(root: Path, skip: Path | None) -> list[Case]:
    if skip is not None and os.path.realpath(root) == os.path.realpath(skip):
        raise UserError(
            f"{root} is searched for images, so results cannot go there; give another output folder"
        )
    files: list[Path] = []
    series: list[Case] = []
    visited: set[str] = set()  # links may lead back to a folder above
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        if os.path.realpath(folder) in visited:
            folders.clear()
            continue
        visited.add(os.path.realpath(folder))
        folders[:] = sorted(name for name in folders if _is_searched(here / name, skip))
        visible = [here / name for name in sorted(names) if not name.startswith(".")]
        files += [file for file in visible if _suffix(file) is not None]
        if any(_is_dicom(file) for file in visible):
            series += _series(root, here)
    return _named(root, files) + series


def _is_searched(folder: Path, skip: Path | None) -> bool:
    if folder.name.startswith(".") or Path(os.path.realpath(folder)) == skip:
        return False
    is_labels = folder.name.lower() in ("labels", "labelstr", "labelsts")
    if is_labels:
        logger.info("%s: taken for reference labels, not searched for images", folder)
    return not is_labels


def _from_pattern(pattern: str, skip: Path | None) -> list[Case]:
    found = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    matches = [Path(match) for match in sorted(found)]
    fixed = Path(re.split(r"[*?\[]", pattern, maxsplit=1)[0])
    root = fixed if fixed.is_dir() else fixed.parent
    files = [match for match in matches if match.is_file() and _suffix(match) is not None]
    if skip is not None:
        files = [file for file in files if skip not in Path(os.path.realpath(file)).parents]
    folders = [match for match in matches if match.is_dir()]
    return _named(root, files) + [case for folder in folders for case in _series(root, folder)]


def _series(root: Path, folder: Path) -> list[Case]:
    """Return one case per DICOM series in a folder; several are told apart by their UID's hash."""
    found = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    relative = folder.relative_to(root).as_posix()
    base = folder.absolute().name if relative == "." else relative
    cases = []
    for uid in found:
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        digest = hashlib.sha256(uid.encode()).hexdigest()[:8]
        name = base if len(found) == 1 else f"{base}_{digest}"
        cases.append(Case(name=name, image=folder, files=tuple(Path(file) for file in files)))
    return cases


def _named(root: Path, files: Sequence[Path], *, spacing_lost: bool = False) -> list[Case]:
    """Return cases whose names are distinct also where only the file type differs."""
    names = [_case_name(root, file) for file in files]
    taken = {name for name, file in zip(names, files, strict=True) if _is_nifti(file)}
    cases = []
    seen: set[str] = set()
    for name, file in zip(names, files, strict=True):
        shared = names.count(name) > 1 and (name in seen or (name in taken and not _is_nifti(file)))
        distinct = f"{name}{_suffix(file) or file.suffix}" if shared else name
        seen.add(name)
        cases.append(Case(distinct, file, (file, *_voxel_file(file)), spacing_lost))
    return cases


def _voxel_file(header: Path) -> tuple[Path, ...]:
    """Return the file that holds the voxels of a header alone (``.mhd``, ``.nhdr``)."""
    if header.suffix.lower() not in (".mhd", ".nhdr") or not header.is_file():
        return ()
    with header.open("rb") as stream:
        text = stream.read(_HEADER_BYTES).decode("latin-1")
    named = re.search(r"(?im)^\s*(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", text)
    voxels = header.parent / named[1] if named else header
    return (voxels,) if voxels != header and voxels.is_file() else ()


def _case_name(root: Path, file: Path) -> str:
    try:
        relative = file.absolute().relative_to(root.absolute())
        if relative.parts[0] == "images":
            relative = Path(*relative.parts[1:])
    except ValueError:  # a datalist may name files elsewhere
        digest = hashlib.sha256(str(file.absolute().parent).encode()).hexdigest()[:8]
        relative = Path(digest) / file.name
    suffix = _suffix(file) or file.suffix
    text = relative.as_posix()
    return text[: len(text) - len(suffix)] if suffix else text


def _suffix(file: Path) -> str | None:
    """Return the image suffix of a file, None when it is no image."""
    lower = file.name.lower()
    return next((suffix for suffix in IMAGE_SUFFIXES if lower.endswith(suffix)), None)


def _is_nifti(file: Path) -> bool:
    return _suffix(file) in NIFTI_SUFFIXES


def _is_dicom(file: Path) -> bool:
    if file.suffix.lower() not in _DICOM_SUFFIXES and not file.suffix[1:].isdigit():
        return False
    if file.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with file.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError as error:  # a link to nowhere among the images
        logger.info("%s is left out: %s", file, error.strerror)
        return False
