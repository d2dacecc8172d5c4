"""Label maps and probabilities as NIfTI files with the geometry of their image."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np

from medseg_kit.files import replacing
from medseg_kit.inference.reading import Volume

_FAST_GZIP = 1
_GZIP_FORMAT = 31


def write_labels(path: Path, labels: np.ndarray, volume: Volume) -> None:
    """Write a label map as uint8 ``.nii.gz`` with exactly the geometry of its image.

    Args:
        path: Ends in ``.nii.gz``.
        labels: ``(H, W, D)`` uint8 on the image's grid.
        volume: The image.
    """
    header = _header(volume, labels.shape, np.dtype(np.uint8))
    with replacing(path) as file, file.open("wb") as stream, _gzip(stream) as compressed:
        compressed(header)
        compressed(labels.tobytes(order="F"))


def write_probabilities(
    path: Path, classes: Iterator[np.ndarray], volume: Volume, *, count: int
) -> None:
    """Write class probabilities as a 4-D float32 ``.nii.gz``, one class in memory at a time.

    Args:
        path: Ends in ``.nii.gz``.
        classes: One ``(H, W, D)`` volume per class, background first.
        volume: The image.
        count: Number of classes.
    """
    header = _header(volume, (*volume.array.shape, count), np.dtype(np.float32))
    with replacing(path) as file, file.open("wb") as stream, _gzip(stream) as compressed:
        compressed(header)
        for probability in classes:
            compressed(probability.astype("<f4", copy=False).tobytes(order="F"))


@contextmanager
def _gzip(stream: IO[bytes]) -> Iterator[Any]:
    compressor = zlib.compressobj(_FAST_GZIP, wbits=_GZIP_FORMAT)
    yield lambda data: stream.write(compressor.compress(data))
    stream.write(compressor.flush())


def _header(volume: Volume, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Return a single-file NIfTI header up to the voxels, in the image's own coordinate codes."""
    if volume.header is None:
        header = nib.Nifti1Image(np.zeros((1, 1, 1), dtype), volume.affine).header
    else:
        header = nib.Nifti1Header.from_header(volume.header, check=False).as_byteswapped("<")
        header.extensions.clear()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    header["magic"] = b"n+1"
    header["vox_offset"] = 0
    header.set_data_offset(352)
    return bytes(header.binaryblock) + b"\0\0\0\0"
