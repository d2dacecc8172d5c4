"""Checking prepared data sets again: the files are those that were prepared, and still right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg_kit.data.checks import Expected, ImageContent, check_pair, duplicate_findings
from medseg_kit.data.datalist import DATALIST_NAME, SECTIONS, read_datalist
from medseg_kit.data.findings import Finding, check_allowed, separate
from medseg_kit.data.records import REPORT_NAME
from medseg_kit.data.volumes import content_hash, file_sha256
from medseg_kit.typing import PathLike, UserError

DATA_FOLDERS = ("images", "labels")


@dataclass
class _State:
    """What is known after some of the sets below a folder were checked."""

    root: Path
    findings: list[Finding] = field(default_factory=list)
    images: list[ImageContent] = field(default_factory=list)
    section_of: dict[str, tuple[str, str]] = field(default_factory=dict)
    site_of: dict[str, str] = field(default_factory=dict)

    def add(self, path: Path, kind: str, message: str) -> None:
        self.findings.append(Finding(path.relative_to(self.root).as_posix(), kind, message))


def verify_dataset(
    folder: PathLike, *, allow: Iterable[str] = (), progress: bool = False
) -> tuple[list[Finding], list[Finding]]:
    """Repeat the checks of `prepare_dataset` on everything prepared below a folder.

    Covers the set of the folder itself and the sites below it (``sites/<name>`` and ``<name>``):
    the datalist, the sha256 sum of every file, every image with its label, images that two subjects
    share, subjects at two sites, and subjects whose section differs between a site and the set.

    Args:
        folder: A prepared data set, a folder of sites, or a folder that holds both.
        allow: Kinds of errors to treat as warnings, beside those allowed when it was prepared.
        progress: Show a progress bar on stderr.

    Returns:
        Errors and warnings.

    Raises:
        UserError: When nothing prepared is there, or a kind cannot be allowed.
    """
    root = Path(folder)
    found = {p.parent for pattern in ("", "*/", "*/*/") for p in root.glob(pattern + DATALIST_NAME)}
    if not found:
        raise UserError(
            f"{root} holds no {DATALIST_NAME}, nor do its sub-folders; prepare the data with"
            " `medseg data prepare`"
        )
    allowed = check_allowed(allow) | _allowed_before(root)
    state = _State(root)
    for dataset in sorted(found):
        _verify_set(dataset, state, progress=progress)
    findings = [*state.findings, *duplicate_findings(state.images)]
    return separate(findings, allowed)


def _allowed_before(root: Path) -> frozenset[str]:
    path = root / REPORT_NAME
    if not path.is_file():
        return frozenset()
    try:
        return check_allowed(json.loads(path.read_text(encoding="utf-8"))["allowed"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); prepare the data again") from error


def _verify_set(dataset: Path, state: _State, *, progress: bool) -> None:
    try:
        datalist = read_datalist(dataset)
    except UserError as error:
        state.add(dataset / DATALIST_NAME, "datalist", str(error))
        return
    cases = [(section, case) for section in SECTIONS for case in datalist[section]]
    named = {case[key] for _, case in cases for key in ("image", "label") if key in case}
    _check_sums(dataset, datalist["sha256"], named, state)
    for section, case in tqdm(cases, unit="case", desc=dataset.name, disable=not progress):
        _check_subject(dataset, section, case, datalist.get("site"), state)
        _check_case(dataset, section, case, datalist, state)


def _check_sums(dataset: Path, sums: Mapping[str, str], named: set[str], state: _State) -> None:
    for name in sorted(named):
        if name not in sums:
            state.add(
                dataset / name, "sha256", f"{DATALIST_NAME} has no sum; prepare the data again"
            )
    for name, expected in sums.items():
        path = dataset / name
        if not path.is_file():
            if name not in named:
                state.add(path, "missing-file", "the file does not exist; prepare the data again")
        elif (found := file_sha256(path)) != expected:
            message = (
                f"sha256 is {found[:12]}..., prepared was {expected[:12]}...: the file changed"
            )
            state.add(path, "sha256", f"{message}; prepare the data again")
    there = {
        p.relative_to(dataset).as_posix() for d in DATA_FOLDERS for p in dataset.glob(f"{d}/*")
    }
    for name in sorted(there - named - set(sums)):
        state.add(dataset / name, "extra-file", f"{DATALIST_NAME} does not name it")


def _check_subject(
    dataset: Path, section: str, case: Mapping[str, Any], site: str | None, state: _State
) -> None:
    """Compare the subject's section and site with what the other sets say."""
    subject, here = case["subject"], dataset / DATALIST_NAME
    other_section, other = state.section_of.setdefault(subject, (section, str(dataset)))
    if other_section != section:
        message = f"{subject} stands in {section} here and in {other_section} of {other}"
        state.add(here, "site-overlap", message)
    if site and (other := state.site_of.setdefault(subject, site)) != site:
        state.add(here, "site-overlap", f"{subject} stands at {site} and at {other}")


def _check_case(
    dataset: Path, section: str, case: Mapping[str, Any], datalist: Mapping[str, Any], state: _State
) -> None:
    known = case.get("annotated", datalist["annotated"])
    labels = {int(v): o for v, o in datalist["labels"].items() if v == "0" or o in known}
    image = dataset / case["image"]
    label = dataset / case["label"] if "label" in case else None
    pair = check_pair(image, label, Expected(labels), root=state.root)
    state.findings += pair.findings
    content = content_hash(pair.image.array) if pair.image else None
    file = image.relative_to(state.root).as_posix()
    state.images.append(ImageContent(case["subject"], section, file, content))
