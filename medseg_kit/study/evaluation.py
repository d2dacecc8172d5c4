"""Compare a folder of predicted label maps with references on the native grid."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import SimpleITK
from nibabel.filebasedimages import ImageFileError

from medseg_kit.inference.cases import IMAGE_SUFFIXES, NIFTI_SUFFIXES
from medseg_kit.inference.records import read_record
from medseg_kit.metrics.policy import check_policy
from medseg_kit.metrics.table import CaseRecord, score_label_maps
from medseg_kit.study.references import Reference, label_files
from medseg_kit.transforms.grids import shift_in_voxels
from medseg_kit.typing import PathLike, UserError

if TYPE_CHECKING:
    import numpy.typing as npt

logger = logging.getLogger(__name__)

# Headers store the affine in float32; a label map whose corners lie this near to the reference's is
# on its grid.
GRID_TOLERANCE_VOXELS = 1e-2
MAX_NAMES = 5


def evaluate_predictions(
    pred_dir: PathLike,
    references: Sequence[Reference],
    *,
    policy: str = "strict",
) -> list[CaseRecord]:
    """Score every reference against its prediction, one record per case and structure.

    Args:
        pred_dir: Folder with `<case>.nii.gz` (or another image ending) for every reference.
        references: Cases, from `medseg_kit.study.references.find_references`.
        policy: Empty-mask policy, "strict" or "reference".

    Raises:
        UserError: If a prediction is missing, a file cannot be read or holds no label map, or the
            grids differ.
        ValueError: If the policy is unknown.
    """
    records, problems = score_predictions(pred_dir, references, policy=policy)
    if problems:
        raise UserError(in_short(problems))
    return records


def in_short(problems: Mapping[str, str]) -> str:
    """Return the first problems of many as one line."""
    more = f"; and {len(problems) - MAX_NAMES} more" if len(problems) > MAX_NAMES else ""
    return "; ".join(list(problems.values())[:MAX_NAMES]) + more


def score_predictions(
    pred_dir: PathLike, references: Sequence[Reference], *, policy: str = "strict"
) -> tuple[list[CaseRecord], dict[str, str]]:
    """Score what can be scored; also return why a case could not.

    Args:
        pred_dir: As in `evaluate_predictions`.
        references: As in `evaluate_predictions`.
        policy: As in `evaluate_predictions`.

    Returns:
        One record per case and structure, and case -> message.

    Raises:
        UserError: If a prediction is missing.
        ValueError: If the policy is unknown.
    """
    check_policy(policy)
    predictions = find_predictions(pred_dir, references)
    records: list[CaseRecord] = []
    problems: dict[str, str] = {}
    for reference in references:
        try:
            records += score_case(predictions[reference.case], reference, policy=policy)
        except UserError as error:  # noqa: PERF203 - a case that fails costs only itself
            problems[reference.case] = str(error)
    return records, problems


def predicted(
    pred_dir: PathLike, references: Sequence[Reference]
) -> tuple[list[Reference], list[str]]:
    """Return the references that have a prediction, and the names of the cases that have none.

    Raises:
        UserError: If the folder does not exist, or has no prediction for any case.
    """
    folder = Path(pred_dir)
    found = label_files(folder) if folder.is_dir() else {}
    present = [reference for reference in references if reference.case in found]
    if not present:
        find_predictions(pred_dir, references)
    return present, [each.case for each in references if each.case not in found]


def find_predictions(pred_dir: PathLike, references: Iterable[Reference]) -> dict[str, Path]:
    """Return case -> prediction file.

    Raises:
        UserError: If the folder does not exist, or any case has no prediction or two (named).
    """
    folder = Path(pred_dir)
    if not folder.is_dir():
        raise UserError(f"prediction folder {folder} does not exist; run `medseg predict` first")
    found = label_files(folder)
    wanted = [reference.case for reference in references]
    if missing := [name for name in wanted if name not in found]:
        more = f" and {len(missing) - MAX_NAMES} more" if len(missing) > MAX_NAMES else ""
        raise UserError(
            f"{folder} has no prediction for {len(missing)} of {len(wanted)} cases: "
            f"{', '.join(missing[:MAX_NAMES])}{more};"
            " predict them, or choose the cases with --section or --site"
        )
    if unused := sorted(set(found) - set(wanted)):
        logger.warning("%d predictions have no reference and are not scored", len(unused))
    return found


def score_case(pred_path: Path, reference: Reference, *, policy: str) -> list[CaseRecord]:
    """Return the records of one case.

    Structures are matched by name where a record beside the prediction names its label values, as
    `medseg predict` writes it; else by value.

    Raises:
        UserError: If a file cannot be read or holds no label map, the grids differ, or the
            prediction does not know a structure of the reference.
    """
    pred, pred_affine = load_label_map(pred_path)
    label, affine = load_label_map(reference.label_path)
    check_same_grid(
        (pred_path, pred.shape, pred_affine), (reference.label_path, label.shape, affine)
    )
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0).tolist() if reference.spacing_known else None
    return score_label_maps(
        pred,
        label,
        labels=_values_by_name(pred_path, reference),
        case={"case": reference.case, "subject": reference.subject, "site": reference.site},
        spacing=spacing,
        policy=policy,
    )


def _values_by_name(pred_path: Path, reference: Reference) -> dict[str, tuple[int, int]]:
    """Return structure -> its value in the prediction and in the reference."""
    name = pred_path.name
    stem = next((name[: -len(end)] for end in IMAGE_SUFFIXES if name.lower().endswith(end)), name)
    named = read_record(pred_path.with_name(f"{stem}.json")).get("labels")
    values = {
        organ: int(value)
        for value, organ in (named.items() if isinstance(named, dict) else ())
        if isinstance(organ, str) and value.isdigit()
    }
    if not values.keys() & reference.values.keys():
        return {organ: (value, value) for organ, value in reference.values.items()}
    if unknown := [organ for organ in reference.values if organ not in values]:
        raise UserError(
            f"{pred_path} has no {', '.join(unknown)}, only {', '.join(values)}; choose the"
            " structures to score with --organs"
        )
    return {organ: (values[organ], value) for organ, value in reference.values.items()}


def load_label_map(path: Path) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Return label values, shape (H, W[, D]), and the affine of voxel indices to mm.

    Raises:
        UserError: If the file is missing, cannot be read or holds values that are no label values.
    """
    if not path.is_file():
        raise UserError(f"label file {path} does not exist; prepare or predict it again")
    try:
        array, affine = _read_nifti(path) if _is_nifti(path) else _read_itk(path)
    except (RuntimeError, OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); replace it") from error
    values = array.astype(np.int32)
    if array.dtype.kind == "f" and not np.array_equal(values, array):
        raise UserError(f"{path} holds values that are no whole numbers; give a label map")
    dims = values.ndim
    return values, affine[np.ix_([*range(dims), -1], [*range(dims), -1])]


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def _read_nifti(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    image = nib.nifti1.Nifti1Image.from_filename(path)
    array = np.asanyarray(image.dataobj)
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array, np.asarray(image.affine, dtype=float)


def _read_itk(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Return array and affine through SimpleITK; MONAI's `ITKReader` beside it ends the process."""
    image = SimpleITK.ReadImage(str(path))
    dims = image.GetDimension()
    affine = np.eye(4)
    direction = np.asarray(image.GetDirection()).reshape(dims, dims)
    affine[:dims, :dims] = direction @ np.diag(image.GetSpacing())
    affine[:dims, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def check_same_grid(
    pred: tuple[Path, tuple[int, ...], npt.NDArray[np.float64]],
    reference: tuple[Path, tuple[int, ...], npt.NDArray[np.float64]],
) -> None:
    """Refuse a prediction that is not on its reference's grid.

    Args:
        pred: File, shape and affine of the prediction.
        reference: File, shape and affine of the reference.

    Raises:
        UserError: If the shapes differ, or a corner lies elsewhere by more than 1 % of a voxel;
            names both files.
    """
    if pred[1] == reference[1]:
        shift = shift_in_voxels(reference[1], reference[2], pred[2])
        if shift <= GRID_TOLERANCE_VOXELS:
            return
    raise UserError(
        f"the grids differ: prediction {_describe(*pred)}; reference {_describe(*reference)};"
        " predict on the original image, or compare with its own labels"
    )


def _describe(path: Path, shape: tuple[int, ...], affine: npt.NDArray[np.float64]) -> str:
    rows: list[Any] = np.round(affine[:-1], 4).tolist()
    return f"{path} has shape {shape}, affine {rows}"
