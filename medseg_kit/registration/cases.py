"""The volumes of a prepared data set and the ordered pairs of them that are registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg_kit.data.budgets import Budget, case_key, labelled_flags
from medseg_kit.data.datalist import MIXED, SECTIONS, read_datalist
from medseg_kit.transforms.planes import through_plane
from medseg_kit.typing import PathLike, UserError

Spacing = tuple[float, float, float]
# Cine cardiac MR whose headers have lost the spacing
IN_PLANE_MM, THICK_MM, THIN_MM, MANY_SLICES = 1.5, 10.0, 5.0, 12
_CARDIAC = ("ventricle", "myocardium")


@dataclass(frozen=True)
class RegistrationCase:
    """One volume.

    Attributes:
        key: ``<subject>`` or ``<subject>_<frame>``.
        image: Absolute path.
        label: Absolute path, or None.
        frame: Only volumes of one frame are registered with each other; "" fits any.
        subject: Patient.
        labelled: Whether its label may be used.
        section: Section of the datalist.
        spacing: Voxel size in mm that stands for the header's where that is lost.
        source: Key and path of the volume whose registrations serve this one: itself, or the
            subject's first frame.
    """

    key: str
    image: Path
    label: Path | None
    frame: str
    subject: str
    labelled: bool
    section: str
    spacing: Spacing | None
    source: tuple[str, Path]

    def matches(self, other: RegistrationCase) -> bool:
        """Return whether two volumes are to be registered: two subjects, the same frame."""
        frames = {self.frame, other.frame} - {""}
        return self.subject != other.subject and len(frames) < 2


Pair = tuple[RegistrationCase, RegistrationCase]


@dataclass(frozen=True)
class RegistrationData:
    """The volumes of a data set and how to read them."""

    cases: tuple[RegistrationCase, ...]
    modality: str

    def section(self, name: str = "training") -> list[RegistrationCase]:
        """Return the volumes of one section of the datalist."""
        return [case for case in self.cases if case.section == name]

    def candidates(self) -> list[RegistrationCase]:
        """Return the training volumes whose label may be used.

        Raises:
            UserError: If there is none.
        """
        found = [case for case in self.section() if case.labelled and case.label is not None]
        if not found:
            raise UserError("no labelled training volume: give --labelled N, or labels in the data")
        return found


def read_cases(
    dataset_dir: PathLike,
    *,
    labelled: Budget = None,
    per_case: bool = False,
    nominal_spacing: Sequence[float] | None = None,
) -> RegistrationData:
    """Return the volumes of a prepared data set.

    Args:
        dataset_dir: Prepared data set.
        labelled: Label budget of the training section, see `labelled_flags`.
        per_case: Register the first frame of each subject and use its transforms for the others
            too (as the cost statement of the thesis has it).
        nominal_spacing: Voxel size in mm along the stored axes, where the data set has lost it.

    Raises:
        UserError: If there is no datalist, the budget does not fit, an image is missing, two
            volumes share a key, frames of a subject differ in size, or the spacing is lost and no
            nominal one is known.
    """
    folder = Path(dataset_dir).absolute()
    content = read_datalist(folder)
    if content["modality"] == MIXED:
        raise UserError(
            f"{folder} mixes CT and MR; register the data set of one modality at a time"
        )
    lost = content["spacing"] == "lost"
    if nominal_spacing is not None and not lost:
        raise UserError(f"{folder}: the spacing is valid, so --nominal_spacing has no meaning")
    if lost and nominal_spacing is None and not _is_cardiac(content["labels"]):
        raise UserError(
            f"{folder} has lost its voxel spacing, and registration on a wrong one fails; give"
            " --nominal_spacing X,Y,Z in mm along the stored axes (a guess within 20 % serves)"
        )
    found = []
    for section in SECTIONS:
        cases = content[section]
        flags = labelled_flags(cases, labelled if section == "training" else None)
        for case, flag in zip(cases, flags, strict=True):
            found.append(_case(folder, case, flag, section))
    _check_keys(folder, [case.key for case in found])
    if per_case:
        found = [replace(case, source=_first_frame(case, found)) for case in found]
    if lost:
        found = [replace(c, spacing=nominal(_size(c.image), nominal_spacing)) for c in found]
    return RegistrationData(tuple(found), content["modality"])


def nominal(size: Sequence[int], given: Sequence[float] | None = None) -> Spacing:
    """Return the nominal spacing of a volume that has lost its own.

    Args:
        size: Voxels along the stored axes.
        given: The user's; else that of cine cardiac MR.

    Raises:
        UserError: If `given` is not three positive numbers.

    >>> nominal((256, 216, 10))
    (1.5, 1.5, 10.0)
    """
    if given is not None:
        if len(given) != 3 or min(given) <= 0:
            raise UserError(f"nominal_spacing is {list(given)}; give three positive numbers in mm")
        return (float(given[0]), float(given[1]), float(given[2]))
    across = through_plane(size, [1.0] * 3)
    thickness = THIN_MM if size[across] > MANY_SLICES else THICK_MM
    axes = [thickness if axis == across else IN_PLANE_MM for axis in range(3)]
    return (axes[0], axes[1], axes[2])


def ordered_pairs(cases: Sequence[RegistrationCase], *, which: str = "needed") -> list[Pair]:
    """Return ordered pairs (fixed, moving) of volumes of one frame, both directions apart.

    Args:
        cases: Volumes.
        which: "needed": labelled with all others, both directions; "all": every ordered pair.

    Raises:
        UserError: For another ``which``, or when no pair is left.
    """
    if which not in ("needed", "all"):
        raise UserError(f"pairs is {which!r}; choose needed or all")
    pairs: dict[tuple[str, str], Pair] = {}
    for fixed in cases:
        for moving in cases:
            if fixed.matches(moving) and (which == "all" or fixed.labelled or moving.labelled):
                # frames that share a registration are registered once
                pairs.setdefault((fixed.source[0], moving.source[0]), (fixed, moving))
    if not pairs:
        raise UserError(
            f"no pair to register among {len(cases)} volumes: two subjects with one frame are"
            " needed, and with `--pairs needed` one of them labelled"
        )
    return list(pairs.values())


def _case(folder: Path, case: dict[str, Any], labelled: bool, section: str) -> RegistrationCase:
    image = folder / case["image"]
    label = folder / case["label"] if "label" in case else None
    for path in (image, label):
        if path is not None and not path.is_file():
            raise UserError(f"{path} does not exist; prepare the data again")
    key = case_key(case)
    return RegistrationCase(
        key=key,
        image=image,
        label=label,
        frame=case.get("frame", ""),
        subject=case["subject"],
        labelled=labelled,
        section=section,
        spacing=None,
        source=(key, image),
    )


def _is_cardiac(labels: dict[str, str]) -> bool:
    return any(word in organ for organ in labels.values() for word in _CARDIAC)


def _check_keys(folder: Path, keys: list[str]) -> None:
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise UserError(f"{folder}: volumes share the names {twice[:5]}; give cases a `frame`")


def _first_frame(case: RegistrationCase, cases: Sequence[RegistrationCase]) -> tuple[str, Path]:
    first = next(other for other in cases if other.subject == case.subject)
    one, other = (nib.nifti1.Nifti1Image.from_filename(c.image) for c in (first, case))
    if one.shape != other.shape or not np.allclose(one.affine, other.affine, atol=1e-3):
        raise UserError(
            f"{case.image} and {first.image} lie on different grids, so one cannot use the other's"
            " registrations; leave out --per_case"
        )
    return first.key, first.image


def _size(image: Path) -> tuple[int, ...]:
    return tuple(nib.nifti1.Nifti1Image.from_filename(image).shape[:3])
