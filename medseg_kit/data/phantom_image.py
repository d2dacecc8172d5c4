"""Drawing one synthetic patient: image, label and affine from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from medseg_kit.data.phantom_anatomy import Anatomy, Structure
from medseg_kit.data.volumes import Volume
from medseg_kit.typing import UserError

Array = NDArray[Any]
Field = NDArray[np.float32]
MR_SCALE = 300.0  # grey values of a signal of 1
ENHANCED_ABOVE = 50.0  # HU; contrast agent brightens what lies above
BONE_HU = 250.0
SMALLEST_SIDE = 4


@dataclass(frozen=True)
class Scanner:
    """How a site's images look.

    Attributes:
        modality: ``CT`` (Hounsfield units) or ``MR`` (arbitrary units).
        gain: Contrast agent in soft tissue (CT) or overall scale (MR); 1 is neutral.
        shift: Added to the body, in HU (CT) or in hundredths of muscle's signal (MR).
        noise: Standard deviation, same unit as `shift`.
        bias: Size of the smooth multiplicative field, 0 for none.
        coarseness: Voxel size relative to the nominal one, along right, front and head.
        orientation: Directions of the stored axes, for example ``LPS``.
    """

    modality: str = "CT"
    gain: float = 1.0
    shift: float = 0.0
    noise: float = 15.0
    bias: float = 0.0
    coarseness: tuple[float, float, float] = (1, 1, 1)
    orientation: str = "RAS"


@dataclass(frozen=True)
class Phantom:
    """One synthetic patient; image and label share a grid."""

    image: Volume
    label: Volume


def draw_phantom(
    anatomy: Anatomy,
    scanner: Scanner,
    *,
    organs: Sequence[str],
    size: tuple[int, int, int],
    seed: int | Sequence[int],
) -> Phantom:
    """Draw one synthetic patient.

    Organs are smoothly deformed ellipsoids at anatomical positions in a body with fat, wall,
    bone, vessels and unlabelled blobs as bright as the organs: no threshold finds them.

    Args:
        anatomy: Part of the body.
        scanner: Look of the image.
        organs: Organs to label; value ``i + 1`` is ``organs[i]``. The others are drawn as well.
        size: Voxels along right, front and head at coarseness 1, each at least 4.
        seed: Seed of everything random; same seed, same patient.

    Returns:
        Image (int16) and label (uint8).

    Raises:
        UserError: When an organ is not in the anatomy, or the size is too small.
    """
    if unknown := sorted(set(organs) - set(anatomy.organs)):
        raise UserError(f"{anatomy.name} phantoms have no {unknown}; choose {list(anatomy.organs)}")
    shape = [round(n / c) for n, c in zip(size, scanner.coarseness, strict=True)]
    if min(shape) < SMALLEST_SIDE:
        raise UserError(f"size {tuple(shape)} is too small; at least {SMALLEST_SIDE} voxels a side")
    rng = np.random.default_rng(seed)
    grid = _grid(shape)
    warped = [axis + anatomy.warp * _smooth_field(grid, rng) for axis in grid]
    signal, label = _paint(anatomy, scanner, organs, warped, rng)
    image = _acquire(signal, grid, scanner, rng)
    # Patients differ in size: the same grid covers a field of view of 90 to 110 %.
    field = np.array(anatomy.field_mm) * rng.uniform(0.9, 1.1)
    affine = np.diag([*(field / shape), 1.0])
    affine[:3, 3] = -field / 2 + rng.uniform(-20, 20, 3)
    image, turned = _orient(image, affine, scanner.orientation)
    label, _ = _orient(label, affine, scanner.orientation)
    return Phantom(Volume(image, turned), Volume(label, turned))


def _grid(shape: Sequence[int]) -> list[Field]:
    """Coordinates from -1 to 1 of the voxel centres, three arrays that broadcast to `shape`."""
    axes = [(np.arange(n, dtype=np.float32) + 0.5) * np.float32(2 / n) - 1 for n in shape]
    return [axis.reshape([-1 if i == j else 1 for j in range(3)]) for i, axis in enumerate(axes)]


def _smooth_field(grid: Sequence[Field], rng: np.random.Generator, waves: float = 1.5) -> Field:
    """A random field of the grid's shape, about -1 to 1: a sum of products of waves."""
    field: Any = np.float32(0)
    for _ in range(3):
        frequency = rng.uniform(0.3, 1.0, 3) * waves * np.pi
        phase = rng.uniform(0, 2 * np.pi, 3)
        x, y, z = (
            np.sin(np.float32(f) * axis + np.float32(p))
            for f, axis, p in zip(frequency, grid, phase, strict=True)
        )
        field = field + x * y * z
    return np.asarray(field, dtype=np.float32)


def _paint(
    anatomy: Anatomy,
    scanner: Scanner,
    organs: Sequence[str],
    warped: Sequence[Field],
    rng: np.random.Generator,
) -> tuple[Field, Array]:
    """Draw the structures one over the other; gives the noise-free signal and the label."""
    is_ct = scanner.modality == "CT"
    shape = np.broadcast_shapes(*(axis.shape for axis in warped))
    signal = np.full(shape, anatomy.surrounding[0 if is_ct else 1], np.float32)
    label = np.zeros(shape, np.uint8)
    value_of = {organ: value for value, organ in enumerate(organs, start=1)}
    for structure in _patient(anatomy, rng):
        inside = _inside(structure, warped)
        mean = structure.ct if is_ct else structure.mr
        if is_ct and ENHANCED_ABOVE < mean < BONE_HU:
            mean = ENHANCED_ABOVE + scanner.gain * (mean - ENHANCED_ABOVE)
        signal[inside] = mean * rng.uniform(0.93, 1.07)
        # What is not asked for covers organs below it as well.
        label[inside] = value_of.get(structure.organ or "", 0)
    return signal, label


def _patient(anatomy: Anatomy, rng: np.random.Generator) -> list[Structure]:
    """Vary the structures for one patient and hide organ-like blobs behind the organs."""
    organs = [s for s in anatomy.structures if s.organ]
    others = [s for s in anatomy.structures if not s.organ]
    blobs = []
    for _ in range(anatomy.distractors):
        like = organs[int(rng.integers(len(organs)))]
        x, y, z = (float(c) for c in rng.uniform((-0.55, -0.3, -0.95), (0.55, 0.5, 0.3)))
        a, b, c = (float(r) for r in rng.uniform(0.07, 0.2, 3))
        blobs.append(Structure((x, y, z), (a, b, c), like.ct, like.mr))
    return [_vary(structure, rng) for structure in (*others, *blobs, *organs)]


def _vary(structure: Structure, rng: np.random.Generator) -> Structure:
    x, y, z = (float(v) for v in structure.centre + rng.normal(0, structure.variation, 3))
    a, b, c = (
        float(v) for v in structure.radii * rng.normal(1, 3 * structure.variation, 3).clip(0.7, 1.3)
    )
    i, j, k = (float(v) for v in structure.tilt + rng.normal(0, 100 * structure.variation, 3))
    return Structure((x, y, z), (a, b, c), structure.ct, structure.mr, structure.organ, (i, j, k))


def _inside(structure: Structure, warped: Sequence[Field]) -> NDArray[np.bool_]:
    """Mark the voxels of an ellipsoid (or cylinder) in deformed coordinates."""
    upright = np.isinf(structure.radii).any()  # a cylinder stays parallel to the body
    turn = np.eye(3) if upright else Rotation.from_euler("xyz", structure.tilt, True).as_matrix().T
    rows = (turn / np.array(structure.radii)[:, None]).astype(np.float32)
    offset = [axis - np.float32(c) for axis, c in zip(warped, structure.centre, strict=True)]
    distance: Any = np.float32(0)
    for row in rows[np.any(rows != 0, axis=1)]:
        along: Any = np.float32(0)
        for weight, axis in zip(row, offset, strict=True):
            if weight != 0:
                along = along + weight * axis
        distance = distance + along * along
    return np.asarray(distance < 1)


def _acquire(
    signal: Field, grid: Sequence[Field], scanner: Scanner, rng: np.random.Generator
) -> Array:
    """Turn the signal into an image: partial volume, texture, shift, bias field, noise."""
    is_ct = scanner.modality == "CT"
    unit = 1.0 if is_ct else 0.01
    blurred = gaussian_filter(signal, 0.5, mode="nearest")
    body = (blurred > -500) if is_ct else (blurred > 0.05)
    texture = _smooth_field(grid, rng, waves=6) * np.float32(8 * unit)
    image = blurred + np.where(body, texture + np.float32(scanner.shift * unit), np.float32(0))
    if scanner.bias:
        image = image * np.exp(np.float32(scanner.bias) * _smooth_field(grid, rng))
    noise = rng.standard_normal(signal.shape, np.float32) * np.float32(scanner.noise * unit)
    if is_ct:
        # Reconstruction kernels correlate CT noise between neighbours; 1.95 restores its size.
        image = image + gaussian_filter(noise, 0.5, mode="wrap") * np.float32(1.95)
        limits = (-1024, 3071)
    else:
        other = rng.standard_normal(signal.shape, np.float32) * np.float32(scanner.noise * unit)
        # Rician noise: the length of a complex signal with noise in both parts.
        image = np.hypot(image + noise, other) * np.float32(MR_SCALE * scanner.gain)
        limits = (0, np.iinfo(np.int16).max)
    stored: Array = np.rint(image).clip(*limits).astype(np.int16)
    return stored


def _orient(array: Array, affine: Array, orientation: str) -> tuple[Array, Array]:
    """Store a RAS array along other axes without moving it in space."""
    start = nib.orientations.axcodes2ornt("RAS")
    change = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(orientation))
    turned = nib.orientations.apply_orientation(array, change)
    return (
        np.ascontiguousarray(turned),
        affine @ nib.orientations.inv_ornt_aff(change, array.shape),
    )
