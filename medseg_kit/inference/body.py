"""Where the body is in an image: the region that fast inference looks at."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

_COARSE = 4
# Share of the image's range above its minimum that counts as body; in a CT window that starts at
# -175 HU this is about -130 HU, below fat.
_THRESHOLD = 0.1


def body_mask(image: torch.Tensor) -> torch.Tensor:
    """Return the largest connected bright region of a volume, filled and a little enlarged.

    The mask is found on a grid four times coarser, from the mean of each block, so noise and the
    table's thin structures do not count.

    Args:
        image: ``(C, H, W[, D])``; the first channel is looked at.

    Returns:
        ``(H, W[, D])`` bool on the device of ``image``; empty if the image is constant.
    """
    size = image.shape[1:]
    pool = functional.avg_pool3d if len(size) == 3 else functional.avg_pool2d
    kernel = [min(_COARSE, side) for side in size]
    coarse = pool(image[None, :1].float(), kernel, ceil_mode=True)[0, 0].cpu().numpy()
    low, high = float(coarse.min()), float(coarse.max())
    if high <= low:
        return torch.zeros(size, dtype=torch.bool, device=image.device)
    regions, count = ndimage.label(coarse > low + _THRESHOLD * (high - low))
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    sizes[0] = 0
    mask = ndimage.binary_fill_holes(ndimage.binary_dilation(regions == sizes.argmax()))
    fine = torch.from_numpy(np.asarray(mask)).to(image.device)
    for axis, step in enumerate(kernel):
        fine = fine.repeat_interleave(step, dim=axis).narrow(axis, 0, size[axis])
    return fine
