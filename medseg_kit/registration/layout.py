"""Where ``medseg register`` writes the registered labels of a budget, and training finds them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medseg_kit.data.budgets import Budget, labelled_flags, subject_of
from medseg_kit.registration.mapping import MAPS_NAME
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)

BEST = "best"
SELECTION = "selection.json"


def labelled_folder(registration: PathLike, number: int, choice: str = BEST) -> Path:
    """Return the folder of the labels that `number` labelled subjects lend to the others.

    >>> labelled_folder("reg", 7).as_posix(), labelled_folder("reg", 7, "random").as_posix()
    ('reg/labelled_7', 'reg/labelled_7_random')
    """
    name = f"labelled_{number}" if choice == BEST else f"labelled_{number}_{choice}"
    return Path(registration) / name


def registration_digest(registration: PathLike, number: int | None) -> str:
    """Return a digest of what a training with a registration depends on.

    That is, of the registered labels of a budget, the settings and the images of all registrations
    that were looked at, which of them succeeded, and the rule by which one was chosen; and which
    pairs have a point map, those of other budgets included: CCT-R looks at all of them.

    Args:
        registration: Output folder of ``medseg register``.
        number: Number of labelled subjects; None for the labels of every budget in the folder.
    """
    folders = [labelled_folder(registration, number)] if number else Path(registration).glob("*_*")
    files = sorted(folder / SELECTION for folder in folders if (folder / SELECTION).is_file())
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    made = sorted(f"{row['case']} {row['inputs']}" for row in rows)
    maps = Path(registration) / MAPS_NAME
    if maps.is_file():
        content = torch.load(maps, map_location="cpu", weights_only=True, mmap=True)
        keys = content["keys"]
        made += sorted(f"{keys[one]} {keys[other]}" for one, other in content["pairs"].tolist())
    return hashlib.sha256("\n".join(made).encode()).hexdigest()


def registered_labels(
    registration: PathLike | None,
    data: Sequence[Mapping[str, Any]],
    labelled: Budget = None,
    *,
    choice: str = BEST,
) -> Path | None:
    """Return the registered labels that belong to a training list and its label budget.

    Args:
        registration: Output folder of ``medseg register``; None trains without it. Where every case
            is labelled there is nothing to lend: None as well, with a warning.
        data: The training list (see `load_datalist`).
        labelled: Label budget: None (what the list says) or a number of subjects, as
            ``medseg register --labelled`` takes them.
        choice: "best", or "random" where ``medseg register --choice random`` wrote the labels.

    Raises:
        UserError: For a budget that names subjects: registered labels are kept by number, so
            those of other subjects would be taken.
    """
    if registration is None:
        return None
    flags = labelled_flags(data, labelled)
    if all(flags):
        logger.warning(
            "every training case is labelled, so the registrations in %s are not used; a label"
            " budget (--labelled N) hides labels",
            registration,
        )
        return None
    if labelled is not None and (isinstance(labelled, bool) or not isinstance(labelled, int)):
        raise UserError(
            f"labelled is {labelled!r}, but `medseg register` keeps registered labels by the number"
            " of labelled subjects; give a number, or mark the subjects as labelled in the data set"
        )
    subjects = {subject_of(case) for case, flag in zip(data, flags, strict=True) if flag}
    return labelled_folder(registration, len(subjects), choice)
