"""Reading volumes: NIfTI, everything ITK reads, and DICOM series, with their exact geometry."""

from __future__ import annotations

import gzip
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
import torch
from monai.data import MetaTensor
from monai.data.utils import correct_nifti_header_if_necessary
from monai.transforms import LoadImage, Orientation
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medseg_kit.inference.cases import NIFTI_SUFFIXES, Case
from medseg_kit.transforms.pipelines import AXIS_NAMES
from medseg_kit.typing import UserError

# ITK's world axes are left, posterior, superior; NIfTI's and MONAI's are right, anterior, superior.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Largest difference of the distances between DICOM slices that is not reported, in mm.
_SLICE_TOLERANCE_MM = 0.05
# Sideways drift of the whole stack that is taken for rounding, in mm.
_DRIFT_TOLERANCE_MM = 0.5


@dataclass
class Volume:
    """An image as stored, and where it lies.

    Attributes:
        array: Voxels ``(H, W, D)`` in the order of the file's axes.
        affine: ``(4, 4)`` from voxel indices to millimetres (RAS), as MONAI reads it.
        header: Header for a NIfTI file on the same grid; None if the image is not NIfTI.
        digest: SHA-256 of the files' content.
        warnings: What the user should know about the image.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header | None
    digest: str
    warnings: list[str] = field(default_factory=list)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000


def digest_of(files: Sequence[Path]) -> str:
    """Return the SHA-256 of the content of files, in the given order."""
    if len(files) == 1:
        return hashlib.sha256(files[0].read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def read_label(case: Case, image: torch.Tensor) -> torch.Tensor:
    """Return the ground truth ``(1, H, W, D)`` of a case, turned as its prepared image is.

    Args:
        case: From a datalist.
        image: The network's input ``(C, H, W, D)``; a `MetaTensor` tells its axes.

    Raises:
        UserError: If the case has no label, or image and label differ in size.
    """
    if case.label is None:
        raise UserError("its ground truth is needed; give a prepared data set with labels")
    label = LoadImage(ensure_channel_first=True, image_only=True)(str(case.label))
    if isinstance(image, MetaTensor):
        codes = "".join(nib.aff2axcodes(image.affine.numpy()))
        label = Orientation(codes, labels=AXIS_NAMES)(label)
    if label.shape[1:] != image.shape[1:]:
        raise UserError(
            f"its label has size {tuple(label.shape[1:])}, the prepared image"
            f" {tuple(image.shape[1:])}; slices are compared on the grid of the file"
        )
    plain: torch.Tensor = label.as_tensor()
    return plain


def read_volume(case: Case, digest: str) -> Volume:
    """Return the case's volume, checked: three axes, finite, not constant.

    Args:
        case: What to read.
        digest: The content's digest, see `digest_of`.

    Raises:
        UserError: If the image is not a 3-D volume of finite, differing numbers.
        OSError, RuntimeError: If the file is damaged; by the library that reads it.
    """
    if case.is_series:
        volume = _read_series(case.files, digest)
    elif case.files[0].name.lower().endswith(NIFTI_SUFFIXES):
        volume = _read_nifti(case.files[0], digest)
    else:
        volume = _from_itk(SimpleITK.ReadImage(str(case.files[0])), digest)
    _check(volume)
    return volume


def _read_nifti(path: Path, digest: str) -> Volume:
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = _decompress(raw)
    if not raw:
        raise UserError("the file is empty")
    kind = nib.Nifti2Image if raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
    try:
        image = kind.from_stream(io.BytesIO(raw))
    except (HeaderDataError, ImageFileError, WrapStructError) as error:
        raise UserError("the file is no NIfTI image, or its header is damaged") from error
    if len(image.shape) > 3 and set(image.shape[3:]) == {1}:
        image = image.slicer[(slice(None),) * 3 + (0,) * (len(image.shape) - 3)]
    array = np.asanyarray(image.dataobj)
    header = image.header.copy()
    corrected = correct_nifti_header_if_necessary(image)
    return Volume(array, np.array(corrected.affine, dtype=np.float64), header, digest)


def _decompress(raw: bytes) -> bytes:
    try:  # one member, or several (bgzip)
        content = gzip.GzipFile(fileobj=io.BytesIO(raw)).read()
    except EOFError as error:
        raise UserError("the compressed file ends early; copy it again") from error
    return content


def _read_series(files: Sequence[Path], digest: str) -> Volume:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in files])
    volume = _from_itk(reader.Execute(), digest)
    steps, normal = _slice_steps(files)
    gaps = np.abs(steps @ normal)
    if steps.size:
        sideways = float(np.linalg.norm((steps - np.outer(steps @ normal, normal)).sum(axis=0)))
        if sideways > _DRIFT_TOLERANCE_MM:
            angle = math.degrees(math.atan2(sideways, float(gaps.sum())))
            raise UserError(
                f"the slices are tilted by {angle:.0f} degrees against their stack (gantry tilt),"
                " which a label map's grid cannot show; resample the series to a straight grid"
            )
    if gaps.size and float(np.ptp(gaps)) > _SLICE_TOLERANCE_MM:
        raise UserError(
            f"the distance between slices varies from {gaps.min():.2f} to {gaps.max():.2f} mm; "
            "a slice is missing or the series holds several stacks"
        )
    return volume


def _slice_steps(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps between neighbouring slices and the slices' normal.

    Returns:
        ``(n - 1, 3)`` in mm, none where the files tell no position, and ``(3,)``.
    """
    positions, normal = [], np.zeros(3)
    reader = SimpleITK.ImageFileReader()
    for file in files:
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        if not reader.HasMetaDataKey("0020|0032"):
            return np.zeros((0, 3)), normal
        positions.append([float(part) for part in reader.GetMetaData("0020|0032").split("\\")])
        normal = np.asarray(reader.GetDirection()).reshape(-1, 3)[:, 2][:3]
    return np.diff(np.asarray(positions), axis=0), normal


def _from_itk(image: SimpleITK.Image, digest: str) -> Volume:
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(
            f"{image.GetNumberOfComponentsPerPixel()} values a voxel; a grey image has one"
        )
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        image = image[:, :, :, 0]
    array = SimpleITK.GetArrayFromImage(image).T
    affine = np.eye(4)
    if image.GetDimension() == 3:
        direction = np.asarray(image.GetDirection()).reshape(3, 3)
        affine[:3, :3] = direction @ np.diag(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
    return Volume(array, _LPS_TO_RAS @ affine, None, digest)


def _check(volume: Volume) -> None:
    array = volume.array
    if array.ndim != 3:
        series = "; save each time frame as its own file" if array.ndim > 3 else ""
        raise UserError(
            f"{array.ndim}-D image of shape {array.shape}; a 3-D volume is needed{series}"
        )
    if array.dtype.names or np.iscomplexobj(array):
        raise UserError(f"voxels of type {array.dtype}; a grey image has one real number each")
    if not array.size:
        raise UserError(f"no voxels, shape {array.shape}")
    if not np.isfinite(volume.affine).all() or not volume.voxel_ml > 0:
        raise UserError(f"the affine {volume.affine[:3].tolist()} has no inverse; mend the header")
    low, high = array.min(), array.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("some voxels are NaN or infinite; mend the image")
    if low == high:
        raise UserError(f"all voxels are {low}; the image is empty")
