"""Changes of intensity for a whole batch of slices: what differs between scanners and sequences."""

from __future__ import annotations

import torch
from torch.nn import functional

BLUR_TAPS = 7
FIELD_KNOTS = 4


def vary_intensity(
    image: torch.Tensor, strength: float, *, generator: torch.Generator
) -> torch.Tensor:
    """Return images with varied gamma, contrast, brightness, shading, sharpness and noise.

    Each change applies to half of the images (blur and noise: a quarter); values stay in [0, 1].

    Args:
        image: ``(B, 1, H, W)`` float32 with values in [0, 1].
        strength: 0 for none, 1 for strong: gamma between exp(-1) and exp(1), contrast and shading
            by up to 1 (multiplied by exp(-0.5) to exp(0.5)), brightness by 0.25, a blur of up to
            2 pixels, noise with an SD of up to 0.1.
        generator: Of the CPU.
    """
    if len(image) == 0:
        return image
    device = image.device

    def amounts(limit: float, share: float) -> torch.Tensor:
        """Return one number an image between -limit and limit, 0 for those left out."""
        value = (2 * torch.rand(len(image), generator=generator) - 1) * limit * strength
        used = torch.rand(len(image), generator=generator) < share
        return (value * used)[:, None, None, None].to(device)

    changed = image.clamp(0, 1) ** torch.exp(amounts(1.0, 0.5))
    mean = changed.mean(dim=(2, 3), keepdim=True)
    changed = (changed - mean) * torch.exp(amounts(0.5, 0.5)) + mean + amounts(0.25, 0.5)
    changed = changed * _shading(image, amounts(0.5, 0.5), generator)
    changed = _blur(changed, amounts(2.0, 0.25).abs())
    noise = torch.Generator(device).manual_seed(_seed(generator))
    sd = amounts(0.1, 0.25).abs()
    changed = changed + sd * torch.randn(image.shape, generator=noise, device=device)
    return changed.clamp_(0, 1)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(0, 2**62, (1,), generator=generator))


def _shading(image: torch.Tensor, amount: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a smooth positive field ``(B, 1, H, W)``, as of a coil close to one side."""
    knots = torch.rand(len(image), 1, FIELD_KNOTS, FIELD_KNOTS, generator=generator) * 2 - 1
    field = functional.interpolate(
        knots.to(image.device), image.shape[-2:], mode="bicubic", align_corners=True
    )
    return torch.exp(field * amount)


def _blur(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return each image blurred by its own Gaussian, ``sigma`` ``(B, 1, 1, 1)`` in pixels."""
    taps = torch.arange(BLUR_TAPS, device=image.device) - BLUR_TAPS // 2
    kernel = torch.exp(-0.5 * (taps / sigma.reshape(-1, 1).clamp_min(1e-3)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True))[:, None, None, :]
    # one group an image: (1, B, H, W) with kernels (B, 1, 1, taps)
    flat, half = image.transpose(0, 1), BLUR_TAPS // 2
    padded = functional.pad(flat, (half, half, half, half), mode="replicate")
    with torch.autocast(image.device.type, enabled=False):  # a method may call this in its step
        rows = functional.conv2d(padded, kernel, groups=len(image))
        blurred = functional.conv2d(rows, kernel.transpose(2, 3), groups=len(image))
    return blurred.transpose(0, 1)
