"""The volumes of a prepared data set and the ordered pairs of them that are registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg_kit.data.budgets import Budget, case_key, labelled_flags
from medseg_kit.data.datalist import SECTIONS, read_datalist
from medseg_kit.typing import PathLike, UserError


@dataclass(frozen=True)
class RegistrationCase:
    """One volume.

    Attributes:
        key: ``<subject>`` or ``<subject>_<frame>``.
        image: Absolute path.
        label: Absolute path, or None.
        frame: Only volumes of one frame are registered with each other.
        labelled: Whether its label may be used.
        section: Section of the datalist.
    """

    key: str
    image: Path
    label: Path | None
    frame: str
    labelled: bool
    section: str


@dataclass(frozen=True)
class RegistrationData:
    """The volumes of a data set and how to read them."""

    cases: tuple[RegistrationCase, ...]
    modality: str
    nominal_spacing: bool

    def training(self) -> list[RegistrationCase]:
        """Return the volumes of the training section."""
        return [case for case in self.cases if case.section == "training"]


def read_cases(dataset_dir: PathLike, *, labelled: Budget = None) -> RegistrationData:
    """Return the volumes of a prepared data set.

    Args:
        dataset_dir: Prepared data set.
        labelled: Label budget of the training section, see `labelled_flags`.

    Raises:
        UserError: If there is no datalist, the budget does not fit, or two volumes share a key.
    """
    folder = Path(dataset_dir).absolute()
    content = read_datalist(folder)
    found = []
    for section in SECTIONS:
        cases = content[section]
        flags = labelled_flags(cases, labelled if section == "training" else None)
        for case, flag in zip(cases, flags, strict=True):
            label = folder / case["label"] if "label" in case else None
            image = folder / case["image"]
            found.append(
                RegistrationCase(case_key(case), image, label, case.get("frame", ""), flag, section)
            )
    keys = [case.key for case in found]
    if len(set(keys)) < len(keys):
        twice = sorted({key for key in keys if keys.count(key) > 1})
        raise UserError(f"{folder}: volumes share the names {twice[:5]}; give cases a `frame`")
    return RegistrationData(tuple(found), content["modality"], content["spacing"] == "lost")


def ordered_pairs(
    cases: Sequence[RegistrationCase], *, which: str = "needed"
) -> list[tuple[RegistrationCase, RegistrationCase]]:
    """Return ordered pairs (fixed, moving) of volumes of one frame, both directions apart.

    Args:
        cases: Volumes.
        which: "needed": labelled with all others, both directions; "all": every ordered pair.

    Raises:
        UserError: For another ``which``, or when no pair is left.
    """
    if which not in ("needed", "all"):
        raise UserError(f"pairs is {which!r}; choose needed or all")
    pairs = [
        (fixed, moving)
        for fixed in cases
        for moving in cases
        if fixed.key != moving.key
        and fixed.frame == moving.frame
        and (which == "all" or fixed.labelled or moving.labelled)
    ]
    if not pairs:
        raise UserError(
            f"no pair to register among {len(cases)} volumes: at least two of one frame are needed,"
            " and with `--pairs needed` one of them labelled"
        )
    return pairs
