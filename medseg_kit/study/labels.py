"""Label budgets: a view of a data set in which only some training patients are labelled."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from medseg_kit.data.datalist import DATALIST_NAME, SITE_FILE, read_datalist, write_datalist
from medseg_kit.data.splits import seeded_order
from medseg_kit.typing import PathLike, UserError


def limit_labels(
    dataset_dir: PathLike,
    out: PathLike,
    *,
    num_subjects: int,
    keep_unlabelled: bool,
    seed: int | None = None,
) -> Path:
    """Write a data set whose training labels are those of `num_subjects` patients; return it.

    Images, labels and ``site.yaml`` are links to the original files. Growing budgets hold nested
    patients.

    Args:
        dataset_dir: Prepared data set.
        out: Folder to write.
        num_subjects: Labelled training patients to keep.
        keep_unlabelled: Keep the other training cases without their labels, else leave them out.
        seed: As in `labelled_subjects`.

    Raises:
        UserError: If the data set has fewer labelled training patients.
    """
    source, folder = Path(dataset_dir).resolve(), Path(out)
    content = read_datalist(source)
    chosen = set(labelled_subjects(source, num_subjects, seed=seed))
    training = [_limited(case, case["subject"] in chosen) for case in content["training"]]
    content["training"] = [case for case in training if keep_unlabelled or "label" in case]
    folder.mkdir(parents=True, exist_ok=True)
    for child in source.iterdir():
        link = folder / child.name
        if (child.is_dir() or child.name == SITE_FILE) and not link.exists():
            link.symlink_to(child, target_is_directory=child.is_dir())
    write_datalist(folder, content)
    return folder


def labelled_subjects(
    dataset_dir: PathLike, num_subjects: int, *, seed: int | None = None
) -> list[str]:
    """Return the labelled training patients of a budget.

    Args:
        dataset_dir: Prepared data set.
        num_subjects: How many.
        seed: Draws them; the first ones of the data set's own list (the published order) if None.

    Raises:
        UserError: If the data set has fewer labelled training patients.
    """
    training = read_datalist(dataset_dir)["training"]
    subjects = list(dict.fromkeys(case["subject"] for case in training if "label" in case))
    if not 1 <= num_subjects <= len(subjects):
        raise UserError(
            f"label budget {num_subjects} does not fit {dataset_dir}: "
            f"it has {len(subjects)} labelled training patients"
        )
    ordered = subjects if seed is None else seeded_order(subjects, seed=seed)
    return ordered[:num_subjects]


def data_digest(folder: PathLike) -> str:
    """Return the sha256 of a data set's datalist (it holds the files' sums), or of its sites'.

    The ``site.yaml`` beside a list counts as well.

    Args:
        folder: Prepared data set, or folder of site folders.

    Raises:
        UserError: If there is no datalist.
    """
    path = Path(folder)
    lists = (
        [path / DATALIST_NAME]
        if (path / DATALIST_NAME).is_file()
        else sorted(path.glob(f"*/{DATALIST_NAME}"))
    )
    if not lists:
        raise UserError(
            f"{path} holds no {DATALIST_NAME}; prepare the data with `medseg data prepare`"
        )
    digest = hashlib.sha256()
    own = [item.with_name(SITE_FILE) for item in lists]
    for item in [*lists, *(file for file in own if file.is_file())]:
        digest.update(item.relative_to(path).as_posix().encode() + b"\0" + item.read_bytes())
    return digest.hexdigest()


def _limited(case: dict[str, Any], is_labelled: bool) -> dict[str, Any]:
    if is_labelled or "label" not in case:
        return case
    return {
        **{key: value for key, value in case.items() if key not in ("label", "annotated")},
        "labelled": False,
    }
