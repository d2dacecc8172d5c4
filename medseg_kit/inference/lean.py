"""From a stored volume to the network's input, as `VolumePreprocessing` does it, but lean.

The result equals that of the transforms bit for bit; only copies and temporary volumes are saved.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys

from medseg_kit.inference.grid import Grid, make_grid, resample
from medseg_kit.inference.reading import Volume
from medseg_kit.transforms.pipelines import INTENSITIES, VolumePreprocessing

# These types hold every value in float32, through which MONAI's reader goes.
_EXACT_TYPES = (np.int8, np.uint8, np.int16, np.uint16, np.float32)


def prepare(volume: Volume, preprocessing: VolumePreprocessing) -> tuple[MetaTensor, Grid]:
    """Return the network's input ``(1, H, W, D)`` float32 and its place in the file's grid.

    Args:
        volume: What was read.
        preprocessing: Its parameters are used, not its transforms.
    """
    grid = make_grid(
        volume.array.shape,
        volume.affine,
        orientation=preprocessing.orientation,
        spacing=preprocessing.spacing,
    )
    oriented = grid.orient(_tensor(volume.array))
    if grid.forward is None:
        image = oriented.to(torch.float32).contiguous()
    else:
        image = resample(oriented, grid.forward, grid.shape)
    image = _scale(image[None], preprocessing)
    meta = {"original_affine": volume.affine, "spatial_shape": np.asarray(grid.stored_shape)}
    return MetaTensor(image, affine=torch.as_tensor(grid.affine), meta=meta), grid


def _tensor(array: np.ndarray) -> torch.Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype not in _EXACT_TYPES:
        native = native.astype(np.float32)
    if not native.flags.writeable:
        native = native.copy(order="K")
    # the file's first axis is the fastest: the transposed array is contiguous
    return torch.from_numpy(native.T).permute(2, 1, 0)


def _scale(image: torch.Tensor, preprocessing: VolumePreprocessing) -> torch.Tensor:
    if preprocessing.window is None:
        step = INTENSITIES[preprocessing.intensity]
        scaled = step({CommonKeys.IMAGE: image})[CommonKeys.IMAGE]
        return torch.as_tensor(scaled).as_subclass(torch.Tensor)
    low, high = preprocessing.window
    return image.sub_(low).div_(high - low).clamp_(0.0, 1.0)
