"""Augmentation of a whole batch of slices at once: one resampling, on the device of the batch.

The rules of the papers (SSL4MIS, Luo et al. 2022, https://github.com/HiLab-git/SSL4MIS; also
Swin-Unet and MCSC) and a stronger one of our own for images of other scanners.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.utils.enums import CommonKeys
from torch.nn import functional

from medseg_kit.transforms.intensity import vary_intensity
from medseg_kit.typing import UserError

# (number of images, generator, the augmentation) -> (B, 2, 2): see `_linear_parts`
_Rule = Callable[[int, torch.Generator, "SliceAugmentation"], torch.Tensor]


class SliceAugmentation:
    """Moves, turns and scales the slices of a batch, each on its own, and varies their intensity.

    Args:
        rule: "rot_flip", the papers' rule: half of the images are turned by a random multiple of
            90 degrees and then mirrored along a random axis; half of the others are rotated by a
            whole number of degrees from -20 to 19; a quarter is untouched. "rot_flip_always": the
            newer code, which rotates all of the others. "rotate": half of the images are rotated
            by -20 to 19 degrees; no turns, no mirroring. "affine": ours, every image is rotated,
            scaled and moved. "none".
        rotation_deg: Largest rotation of "affine" in degrees.
        scaling: Largest relative change of size of "affine", and half of it between the axes.
        translation: Largest shift of "affine" as a share of the image's side.
        mirroring: Let "affine" turn by 90 degrees and mirror, each with probability 1/2. Not for
            paired organs, unless their labels are exchanged.
        exchanged_labels: Pairs of label values (left and right of an organ) that change places
            in a mirrored image.
        crop: Share of the image's side that a random window keeps, at most 1; it fills the image
            after the rule. Whole slices if None, as in the papers' code (the thesis speaks of
            random cropping).
        intensity: Strength of the changes of intensity, 0 for none; see `vary_intensity`.
        interpolation: How images are sampled, "bilinear" or "nearest" (the papers' code). Labels
            are sampled by the nearest pixel. What comes from outside is 0.

    Raises:
        ValueError: For an unknown ``rule`` or ``interpolation``, ``mirroring`` with a rule that
            does not look at it, or a ``crop`` outside (0, 1].
    """

    def __init__(  # noqa: PLR0913 - the names of a configuration, all by keyword
        self,
        rule: str = "rot_flip",
        *,
        rotation_deg: float = 20.0,
        scaling: float = 0.2,
        translation: float = 0.1,
        mirroring: bool = False,
        exchanged_labels: Sequence[Sequence[int]] = (),
        crop: float | None = None,
        intensity: float = 0.0,
        interpolation: str = "bilinear",
    ) -> None:
        if rule not in _RULES:
            raise ValueError(f"rule must be one of {list(_RULES)}, got {rule!r}")
        if mirroring and rule != "affine":
            raise ValueError(f"mirroring belongs to the rule 'affine'; the rule is {rule!r}")
        if interpolation not in ("bilinear", "nearest"):
            raise ValueError(f"interpolation must be bilinear or nearest, got {interpolation!r}")
        if crop is not None and not 0 < crop <= 1:
            raise ValueError(f"crop is a share of the image's side in (0, 1], got {crop}")
        self.rule = rule
        self.crop = crop
        self.rotation_deg = rotation_deg
        self.scaling = scaling
        self.translation = translation
        self.mirroring = mirroring
        self.exchanged_labels = [(int(first), int(second)) for first, second in exchanged_labels]
        self.intensity = intensity
        self.interpolation = interpolation

    def __call__(
        self, batch: dict[str, Any], *, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        """Return the batch with ``image`` and all labels augmented, and with ``matrix``.

        Args:
            batch: ``image`` ``(B, 1, H, W)`` with values in [0, 1], ``label`` and perhaps
                ``registered_label`` ``(B, 1, H, W)`` uint8; the rest is passed on.
            generator: Of the CPU, for all that is random; torch's global one if None.
        """
        image = batch[CommonKeys.IMAGE]
        generator = torch.default_generator if generator is None else generator
        matrix = self.matrices(len(image), image.shape[-2:], generator).to(image.device)
        labels = [key for key in (CommonKeys.LABEL, "registered_label") if key in batch]
        result = {**batch, "matrix": matrix}
        if self.rule != "none" or self.crop is not None:
            grid = sampling_grid(matrix, image.shape[-2:])
            result[CommonKeys.IMAGE] = _sample(image, grid, self.interpolation)
            moved = _sample(
                torch.cat([batch[key] for key in labels], dim=1).float(), grid, "nearest"
            )
            moved = self._exchange(moved.to(torch.uint8), matrix)
            result.update(zip(labels, moved.split(1, dim=1), strict=True))
        if self.intensity:
            result[CommonKeys.IMAGE] = vary_intensity(
                result[CommonKeys.IMAGE], self.intensity, generator=generator
            )
        return result

    def matrices(
        self, num_images: int, size: Sequence[int], generator: torch.Generator
    ) -> torch.Tensor:
        """Draw the matrices ``(B, 2, 3)`` from augmented pixels (column, row, 1) to original ones.

        Args:
            num_images: B.
            size: Height and width of the images.
            generator: Of the CPU.

        Raises:
            UserError: If the rule turns images by 90 degrees and they are not square.
        """
        if size[0] != size[1] and (self.mirroring or self.rule in _TURNING):
            raise UserError(
                f"slices of {size[0]} x {size[1]} pixels cannot be turned by 90 degrees, as"
                f" augmentation with rule {self.rule!r} does; take square slices, or rule 'rotate'"
                " or 'affine' without mirroring"
            )
        linear = _RULES[self.rule](num_images, generator, self)
        if self.crop is not None:
            linear = self.crop * linear
        centre = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2])
        sides = torch.tensor([float(size[1]), float(size[0])])
        offset = centre - linear @ centre
        if self.crop is not None:
            offset = offset + _uniform((num_images, 2), (1 - self.crop) / 2, generator) * sides
        if self.rule == "affine":
            offset = offset + _uniform((num_images, 2), self.translation, generator) * sides
        return torch.cat([linear, offset[:, :, None]], dim=2)

    def _exchange(self, labels: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        if not self.exchanged_labels:
            return labels
        table = torch.arange(256, dtype=torch.uint8, device=labels.device)
        for first, second in self.exchanged_labels:
            table[first], table[second] = second, first
        mirrored = torch.linalg.det(matrix[:, :, :2]) < 0
        return torch.where(mirrored[:, None, None, None], table[labels.long()], labels)


def sampling_grid(matrix: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return the grid for `torch.nn.functional.grid_sample` (``align_corners=False``).

    Args:
        matrix: ``(B, 2, 3)`` from pixels (column, row, 1) of the result to pixels of the source.
        size: Height and width of result and source.

    Returns:
        ``(B, H, W, 2)``.
    """
    height, width = size
    columns = torch.arange(width, dtype=torch.float32, device=matrix.device)
    rows = torch.arange(height, dtype=torch.float32, device=matrix.device)
    along_row = _as_complex(matrix[:, :, :1] * columns)
    along_column = _as_complex(matrix[:, :, 1:2] * rows + matrix[:, :, 2:])
    # one addition of complex numbers for both coordinates writes the grid in its memory order
    grid = torch.view_as_real(along_row[:, None, :] + along_column[:, :, None])
    # pixel centres in [-1, 1]: (2 p + 1) / side - 1; in place: temporaries cost more than that
    grid.mul_(2).add_(1)
    sides = width if width == height else torch.tensor([width, height], device=matrix.device)
    return grid.div_(sides).sub_(1)


def _as_complex(coordinates: torch.Tensor) -> torch.Tensor:
    """Return coordinates ``(B, 2, N)`` as complex numbers ``(B, N)``."""
    return torch.view_as_complex(coordinates.movedim(1, -1).contiguous())


def _sample(pixels: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.grid_sample(
        pixels, grid, mode=mode, padding_mode="zeros", align_corners=False
    )


def _uniform(size: Sequence[int], limit: float, generator: torch.Generator) -> torch.Tensor:
    return (2 * torch.rand(tuple(size), generator=generator) - 1) * limit


def _chosen(num_images: int, generator: torch.Generator) -> torch.Tensor:
    """Return which images a step with probability 1/2 applies to, ``(B, 1, 1)``."""
    return (torch.rand(num_images, generator=generator) < 0.5)[:, None, None]


def _rotations(angle: torch.Tensor) -> torch.Tensor:
    """Return rotation matrices ``(B, 2, 2)`` of angles ``(B,)`` in radians."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], dim=-2)


def _turned_and_mirrored(num_images: int, generator: torch.Generator) -> torch.Tensor:
    """Return a random multiple of 90 degrees followed by mirroring along a random axis."""
    quarter = torch.randint(0, 4, (num_images,), generator=generator)
    axis = torch.randint(0, 2, (num_images,), generator=generator)
    turns = _rotations(quarter * (math.pi / 2)).round()
    mirror = torch.where(axis[:, None] == torch.arange(2), -1.0, 1.0)
    return turns * mirror[:, None, :]


def _slightly_rotated(num_images: int, generator: torch.Generator) -> torch.Tensor:
    degrees = torch.randint(-20, 20, (num_images,), generator=generator)
    return _rotations(torch.deg2rad(degrees.float()))


def _rot_flip(num_images: int, generator: torch.Generator, own: SliceAugmentation) -> torch.Tensor:
    others = _rotate(num_images, generator, own)
    turned = _turned_and_mirrored(num_images, generator)
    return torch.where(_chosen(num_images, generator), turned, others)


def _rot_flip_always(
    num_images: int, generator: torch.Generator, own: SliceAugmentation
) -> torch.Tensor:
    del own
    others = _slightly_rotated(num_images, generator)
    turned = _turned_and_mirrored(num_images, generator)
    return torch.where(_chosen(num_images, generator), turned, others)


def _rotate(num_images: int, generator: torch.Generator, own: SliceAugmentation) -> torch.Tensor:
    del own
    rotated = _slightly_rotated(num_images, generator)
    return torch.where(_chosen(num_images, generator), rotated, torch.eye(2))


def _affine(num_images: int, generator: torch.Generator, own: SliceAugmentation) -> torch.Tensor:
    angle = _uniform((num_images,), math.radians(own.rotation_deg), generator)
    size = torch.log1p(torch.tensor(own.scaling))
    common = _uniform((num_images, 1), float(size), generator)
    single = _uniform((num_images, 2), float(size) / 4, generator)
    linear = _rotations(angle) * torch.exp(common + single)[:, None, :]
    if own.mirroring:
        turned = _turned_and_mirrored(num_images, generator)
        linear = torch.where(_chosen(num_images, generator), linear @ turned, linear)
    return linear


def _none(num_images: int, generator: torch.Generator, own: SliceAugmentation) -> torch.Tensor:
    del generator, own
    return torch.eye(2).repeat(num_images, 1, 1)


_TURNING = ("rot_flip", "rot_flip_always")
_RULES: dict[str, _Rule] = {
    "rot_flip": _rot_flip,
    "rot_flip_always": _rot_flip_always,
    "rotate": _rotate,
    "affine": _affine,
    "none": _none,
}
