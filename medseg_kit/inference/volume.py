"""Sliding-window inference for volumes, equal to MONAI's `SlidingWindowInferer` in full precision.

The windows, their order and their blending are MONAI's; what differs is how they run: window
batches sized for the device, channels-last memory on the CPU, no multiplication by constant
weights, and a way out when GPU memory runs out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import Inferer
from monai.utils import BlendMode, fall_back_tuple
from torch.nn import functional

from medseg_kit.inference.body import body_mask
from medseg_kit.inference.memory import is_out_of_memory
from medseg_kit.inference.precision import fast_precision
from medseg_kit.inference.stitch import Stitch, Window

logger = logging.getLogger(__name__)

Network = Callable[..., torch.Tensor]

# Batch and channels in an index.
_ALL: Window = (slice(None), slice(None))


class VolumeInferer(Inferer):
    """Runs a network over overlapping windows of a volume and blends the answers.

    In full precision the result is that of ``monai.inferers.SlidingWindowInferer`` with the same
    ``roi_size``, ``overlap`` and ``mode``: bit for bit when window batch and memory format agree,
    otherwise within 1e-4 of the logits' range, because convolution kernels round differently.

    Memory on a GPU: windows run in batches of ``sw_batch_size`` and are stitched on the GPU; a
    volume whose stitched answer needs more than half of the free memory is stitched on the CPU.
    When memory runs out the batch is halved, at one window stitching moves to the CPU, and when
    that does not help either the error is raised. Each step is logged.

    Args:
        roi_size: Window in voxels; an entry that is not positive stands for the volume's size.
        overlap: Share of a window that overlaps the next one, in ``[0, 1)``.
        mode: ``"constant"`` or ``"gaussian"`` weights of a window's voxels.
        sw_batch_size: Windows a batch on a GPU.
        cpu_batch_size: Windows a batch on the CPU, where larger ones only cost memory.
        stitch_device: Where windows are put together: ``"auto"`` or the name of a device.
        fast: bfloat16 autocast, and windows without any part of the body are not run: their
            voxels become background. Labels differ slightly from those of full precision.
        full_precision: Sub-modules of the network that keep float32 in fast mode, such as its
            heads: most of bfloat16's error arises in the last layers.

    Raises:
        ValueError: If ``overlap`` is outside ``[0, 1)`` or a batch size is not positive.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        *,
        overlap: float = 0.25,
        mode: str = "constant",
        sw_batch_size: int = 8,
        cpu_batch_size: int = 2,
        stitch_device: str = "auto",
        fast: bool = False,
        full_precision: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {overlap}; 0.25 is usual")
        if min(sw_batch_size, cpu_batch_size) < 1:
            raise ValueError(
                f"a window batch holds at least 1 window, got {sw_batch_size} (GPU) and "
                f"{cpu_batch_size} (CPU)"
            )
        self.roi_size = roi_size
        self.overlap = overlap
        self.mode = BlendMode(mode)
        self.sw_batch_size = sw_batch_size
        self.cpu_batch_size = cpu_batch_size
        self.stitch_device = stitch_device
        self.fast = fast
        self.full_precision = tuple(full_precision)

    def __call__(
        self, inputs: torch.Tensor, network: Network, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the blended answer of ``network``, ``(B, C, H, W[, D])`` float32.

        The answer is a plain tensor, on the device of ``inputs`` or on the CPU if it did not fit.

        Args:
            inputs: Volumes ``(B, channels, H, W[, D])`` on the network's device.
            network: Maps windows ``(N, channels, *roi)`` to ``(N, C, *roi)``.
            *args: Passed on to the network.
            **kwargs: Passed on to the network.

        Raises:
            ValueError: If the network's answer has another size than its window.
        """
        images = inputs.as_subclass(torch.Tensor)
        precision = fast_precision(
            network, images.device, fast=self.fast, full_precision=self.full_precision
        )
        with precision:
            results = [
                self._infer(image[None], lambda windows: network(windows, *args, **kwargs))
                for image in images
            ]
        return results[0] if len(results) == 1 else torch.cat(results)

    def _infer(self, image: torch.Tensor, network: Network) -> torch.Tensor:
        size = tuple(image.shape[2:])
        roi = fall_back_tuple(self.roi_size, size)
        image, inner = _pad(image, roi)
        windows = self._windows(tuple(image.shape[2:]), roi)
        chosen = self._inside_body(image, windows) if self.fast else windows
        weights = None
        if self.mode != BlendMode.CONSTANT:
            weights = compute_importance_map(roi, mode=self.mode, device=image.device)
        # where no body is found, one window still tells the number of channels
        stitched = self._run(image, network, chosen or windows[:1], weights)
        return stitched[_ALL + inner]

    def _windows(self, size: tuple[int, ...], roi: tuple[int, ...]) -> list[Window]:
        """Return MONAI's windows in MONAI's order."""
        steps = tuple(
            side if side == whole else max(int(side * (1 - self.overlap)), 1)
            for side, whole in zip(roi, size, strict=True)
        )
        return list(dense_patch_slices(size, roi, steps))

    def _inside_body(self, image: torch.Tensor, windows: list[Window]) -> list[Window]:
        body = body_mask(image[0])
        chosen = [window for window in windows if bool(body[window].any())]
        logger.info("fast mode runs %d of %d windows", len(chosen), len(windows))
        return chosen

    def _run(
        self,
        image: torch.Tensor,
        network: Network,
        windows: list[Window],
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        on_cpu = image.device.type == "cpu"
        batch_size = self.cpu_batch_size if on_cpu else self.sw_batch_size
        stitch: Stitch | None = None
        start = 0
        while start < len(windows):
            batch = windows[start : start + batch_size]
            try:
                answer = self._predict(image, network, batch)
                if stitch is None:
                    stitch = Stitch.like(answer, image, self.stitch_device)
                stitch.add(answer, batch, weights)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                answer = None
                batch_size = _make_room(batch_size, stitch, error)
                continue
            start += len(batch)
        if stitch is None:
            raise ValueError("no window to run")
        return stitch.result(fill=self.fast)

    def _predict(
        self, image: torch.Tensor, network: Network, windows: list[Window]
    ) -> torch.Tensor:
        batch = torch.cat([image[_ALL + window] for window in windows])
        if batch.device.type == "cpu" and batch.dim() == 5:
            batch = batch.contiguous(memory_format=torch.channels_last_3d)
        answer = network(batch)
        got = tuple(getattr(answer, "shape", ()))[2:] or type(answer).__name__
        if got != tuple(batch.shape[2:]):
            raise ValueError(
                f"the network answered a window of {tuple(batch.shape[2:])} with {got}; a deployed "
                "network in evaluation mode returns one tensor of the window's size"
            )
        return answer


def _pad(image: torch.Tensor, roi: Sequence[int]) -> tuple[torch.Tensor, Window]:
    """Return the image padded with zeros to at least a window, and where it lies in that."""
    missing = [max(side - whole, 0) for side, whole in zip(roi, image.shape[2:], strict=True)]
    inner = tuple(
        slice(extra // 2, extra // 2 + whole)
        for extra, whole in zip(missing, image.shape[2:], strict=True)
    )
    if not any(missing):
        return image, inner
    sides = [side for extra in reversed(missing) for side in (extra // 2, extra - extra // 2)]
    return functional.pad(image, sides), inner


def _make_room(batch_size: int, stitch: Stitch | None, error: RuntimeError) -> int:
    """Return a smaller batch, or move the stitching to the CPU; raise when both are done."""
    torch.cuda.empty_cache()
    if batch_size > 1:
        logger.warning("GPU memory ran out: %d windows a batch from here on", batch_size // 2)
        return batch_size // 2
    if stitch is not None and stitch.total.device.type != "cpu":
        logger.warning("GPU memory ran out: stitching continues on the CPU")
        stitch.to_cpu()
        return batch_size
    raise error
