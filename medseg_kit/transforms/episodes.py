"""Two views of one slice for an episode: the distortions of ALPNet, on a whole batch at once.

Ouyang et al. 2020, https://arxiv.org/abs/2007.09886: rotation, shift, shear, size, an elastic
deformation, and gamma of the image.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from medseg_kit.transforms.slices import sampling_grid

_TRUNCATE = 4  # SDs at which a Gaussian ends
_EPSILON = 1e-5
Range = tuple[float, float]


class EpisodeAugmentation:
    """Distorts slices and their masks, each in its own way.

    Args:
        rotation_deg: Largest rotation in degrees.
        shift_px: Largest shift in pixels.
        shear_deg: Largest shear in degrees.
        size: Smallest and largest factor of the size.
        elastic: Factor on the displacement, noise in [-1, 1] smoothed by `elastic_sigma`, in
            pixels; 0 for none.
        elastic_sigma: SD of the smoothing in pixels.
        gamma: Smallest and largest exponent of the intensity between the slice's extremes.
    """

    def __init__(
        self,
        *,
        rotation_deg: float = 5.0,
        shift_px: float = 5.0,
        shear_deg: float = 5.0,
        size: Range = (0.9, 1.2),
        elastic: float = 10.0,
        elastic_sigma: float = 5.0,
        gamma: Range = (0.5, 1.5),
    ) -> None:
        self.rotation_deg = rotation_deg
        self.shift_px = shift_px
        self.shear_deg = shear_deg
        self.size = (float(size[0]), float(size[1]))
        self.elastic = elastic
        self.elastic_sigma = elastic_sigma
        self.gamma = (float(gamma[0]), float(gamma[1]))

    def __call__(
        self, image: torch.Tensor, mask: torch.Tensor, *, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return distorted slices and masks.

        Args:
            image: ``(B, 1, H, W)``; what comes from outside repeats the border.
            mask: ``(B, 1, H, W)`` uint8, 0 or 1; outside is 0.
            generator: Of the CPU, for all that is random.
        """
        size = image.shape[-2:]
        grid = sampling_grid(self._matrices(len(image), size, generator).to(image.device), size)
        if self.elastic:
            grid = grid + self._displacement(len(image), size, generator).to(image.device)
        moved = functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
        inside = functional.grid_sample(mask.float(), grid, align_corners=False).round()
        return self._with_gamma(moved, generator), inside.to(torch.uint8)

    def _matrices(self, number: int, size: torch.Size, generator: torch.Generator) -> torch.Tensor:
        """Return matrices ``(B, 2, 3)`` from pixels of the result to those of the source."""
        angle = _between((number,), math.radians(self.rotation_deg), generator)
        shear = torch.tan(_between((number,), math.radians(self.shear_deg), generator))
        factor = _range((number,), self.size, generator)
        cos, sin = torch.cos(angle), torch.sin(angle)
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        slant = torch.eye(2).repeat(number, 1, 1)
        slant[:, 0, 1] = shear
        linear = turn @ slant / factor[:, None, None]
        centre = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2])
        offset = centre - linear @ centre + _between((number, 2), self.shift_px, generator)
        return torch.cat([linear, offset[:, :, None]], dim=2)

    def _displacement(
        self, number: int, size: torch.Size, generator: torch.Generator
    ) -> torch.Tensor:
        """Return displacements ``(B, H, W, 2)`` in units of `grid_sample`."""
        radius = math.ceil(_TRUNCATE * self.elastic_sigma)
        taps = torch.arange(-radius, radius + 1) / self.elastic_sigma
        kernel = torch.exp(-0.5 * taps.square())
        kernel = kernel / kernel.sum()
        noise = _between((2 * number, 1, size[0] + 2 * radius, size[1] + 2 * radius), 1, generator)
        smooth = functional.conv2d(noise, kernel[None, None, None])
        smooth = functional.conv2d(smooth, kernel[None, None, :, None])
        pixels = self.elastic * smooth.reshape(number, 2, *size).movedim(1, -1)
        return 2 * pixels / torch.tensor([size[1], size[0]])

    def _with_gamma(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        gamma = _range((len(image), 1, 1, 1), self.gamma, generator).to(image.device)
        low = image.amin(dim=(2, 3), keepdim=True)
        extent = image.amax(dim=(2, 3), keepdim=True) - low + _EPSILON
        return extent * ((image - low) / extent).clamp_min(0) ** gamma + low


def _range(size: tuple[int, ...], limits: Range, generator: torch.Generator) -> torch.Tensor:
    low, high = limits
    return low + (high - low) * torch.rand(size, generator=generator)


def _between(size: tuple[int, ...], limit: float, generator: torch.Generator) -> torch.Tensor:
    return _range(size, (-limit, limit), generator)
