"""What predictions are compared with: label files, their values and what they annotate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_kit.data.datalist import DATALIST_NAME, cases_of, organ_names, read_datalist
from medseg_kit.inference.cases import IMAGE_SUFFIXES, find_cases
from medseg_kit.typing import PathLike, UserError


@dataclass(frozen=True)
class Reference:
    """One case with a reference label file.

    Attributes:
        case: Name that the prediction has, without its ending.
        label_path: Reference label map.
        subject: Patient.
        site: Where the case comes from, or "".
        values: Annotated structure -> its value in the label map; what is not annotated is absent.
        spacing_known: False where the data set lost its voxel size; distances in mm are empty then.
    """

    case: str
    label_path: Path
    subject: str
    site: str
    values: Mapping[str, int]
    spacing_known: bool = True


def label_files(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder and its sub-folders by their path without ending.

    Args:
        folder: Folder of label maps; hidden files are left out.

    Raises:
        UserError: If two files differ in their ending only.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        suffix = next((end for end in IMAGE_SUFFIXES if path.name.lower().endswith(end)), None)
        if suffix is None or path.name.startswith("."):
            continue
        name = path.relative_to(folder).as_posix()[: -len(suffix)]
        other = found.setdefault(name, path)
        if other != path:
            raise UserError(f"{other} and {path} have one name; remove or rename one of them")
    return found


def find_references(
    source: PathLike,
    *,
    section: str = "test",
    organs: Sequence[str] | None = None,
    site: str | None = None,
) -> list[Reference]:
    """List the cases of a prepared data set, of a datalist file or of a folder of label files.

    Args:
        source: Prepared data set (folder with datalist.json), a JSON list of image and label pairs
            in the Medical Segmentation Decathlon's form, or a folder of label files named like the
            predictions.
        section: Section of the datalist; a folder of label files has none.
        organs: With a datalist, the organs to score (default: all that are annotated). With a
            folder of label files, the names of the values 1, 2, ... in this order (default: "label
            1", ...).
        site: Score the cases of this site only; names the site of a folder of label files.

    Raises:
        UserError: If the source is missing or unusable, the section is empty, an organ is unknown
            or annotated nowhere, or two cases have one name.
    """
    path = Path(source)
    if path.is_file():
        references = _from_datalist(_read_json(path), path, section=section)
    elif (path / DATALIST_NAME).is_file():
        references = _from_datalist(read_datalist(path), path / DATALIST_NAME, section=section)
    elif path.is_dir():
        return _check_unique(_from_label_folder(path, organs=organs, site=site or ""), path)
    else:
        raise UserError(f"reference {path} does not exist; give a data set folder or a datalist")
    if site is not None:
        sites = sorted({reference.site for reference in references})
        references = [reference for reference in references if reference.site == site]
        if not references:
            raise UserError(f"{path} has no {section} case of site {site!r}; its sites are {sites}")
    if organs is not None:
        references = _select_organs(references, organs, path)
    return _check_unique(references, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid JSON ({error}); give a datalist") from error
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise UserError(f'{path} has no "labels" (value -> organ); give a datalist with one')
    return content


def _from_datalist(content: Mapping[str, Any], path: Path, *, section: str) -> list[Reference]:
    organs = organ_names(content["labels"], source=str(path))
    cases = cases_of(content, section)
    labelled = [case for case in cases if "label" in case]
    if not labelled:
        raise UserError(
            f"{path} has no labelled case in section {section!r}; choose the section with --section"
        )
    everywhere = content.get("annotated", organs)
    names = {case.image: case.name for case in find_cases(path, section=section)}
    references = []
    for case in labelled:
        known = set(case.get("annotated", everywhere))
        name = names[path.parent / case["image"]]
        references.append(
            Reference(
                case=name,
                label_path=path.parent / case["label"],
                subject=str(case.get("subject", name)),
                site=case.get("site") or content.get("site") or "",
                values={organ: value for value, organ in enumerate(organs, 1) if organ in known},
                spacing_known=content.get("spacing", "valid") != "lost",
            )
        )
    return references


def _from_label_folder(folder: Path, *, organs: Sequence[str] | None, site: str) -> list[Reference]:
    files = label_files(folder)
    if not files:
        raise UserError(
            f"{folder} holds neither {DATALIST_NAME} nor label files ({', '.join(IMAGE_SUFFIXES)})"
        )
    if organs is None:
        raise UserError(
            f"{folder} has no {DATALIST_NAME} that names its label values; "
            "add --organs with the names of the values 1, 2, ..."
        )
    values = {organ: value for value, organ in enumerate(organs, 1)}
    return [
        Reference(name, path, subject=name, site=site, values=values)
        for name, path in files.items()
    ]


def _select_organs(
    references: Sequence[Reference], organs: Sequence[str], path: Path
) -> list[Reference]:
    annotated = {organ for reference in references for organ in reference.values}
    if unknown := [organ for organ in organs if organ not in annotated]:
        raise UserError(f"{path} annotates {sorted(annotated)}, not {unknown}; correct --organs")
    return [
        Reference(**{**vars(item), "values": {o: v for o, v in item.values.items() if o in organs}})
        for item in references
    ]


def _check_unique(references: list[Reference], path: Path) -> list[Reference]:
    counts = Counter(reference.case for reference in references)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(
            f"{path}: several images are called {twice[:5]}, "
            "so predictions cannot be told apart; rename them"
        )
    return references
