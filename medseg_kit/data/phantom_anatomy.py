"""Where the structures of synthetic patients lie, how large they are and how bright.

Coordinates are fractions of half the field of view in RAS: x = +1 right, y = +1 front, z = +1 head.
A phantom is a teaching and testing device; it says nothing about real anatomy or real accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Structure:
    """An ellipsoid, or a cylinder where a radius is infinite.

    Attributes:
        centre: Position in the field of view.
        radii: Half lengths along its own axes.
        ct: Mean value in Hounsfield units.
        mr: Mean signal, muscle being about 1.
        organ: Name in the label, or None for what is never labelled.
        tilt: Rotation about x, y and z in degrees.
        variation: Spread of position (same units) between patients; size varies by three times it.
    """

    centre: Triple
    radii: Triple
    ct: float
    mr: float
    organ: str | None = None
    tilt: Triple = (0, 0, 0)
    variation: float = 0.03


@dataclass(frozen=True)
class Anatomy:
    """A part of the body as a list of structures; later ones cover earlier ones.

    Attributes:
        name: Part of the body.
        field_mm: Field of view in mm along right, front and head.
        structures: What lies in it.
        distractors: Number of unlabelled blobs that have the brightness of organs.
        surrounding: CT and MR value outside all structures.
        warp: Size of the smooth deformation, a fraction of half the field of view.
    """

    name: str
    field_mm: Triple
    structures: tuple[Structure, ...]
    distractors: int
    surrounding: tuple[float, float]
    warp: float = 0.05

    @property
    def organs(self) -> tuple[str, ...]:
        """Names that labels can have, in the order of the structures."""
        return tuple(dict.fromkeys(s.organ for s in self.structures if s.organ))


def _ribs() -> list[Structure]:
    """Spots of bone around the trunk."""
    angles = [math.radians(a) for a in (20, 60, 120, 160, 200, 340)]
    return [
        Structure((0.80 * math.cos(a), 0.62 * math.sin(a), z), (0.06, 0.05, 0.07), 350, 0.3)
        for a in angles
        for z in (0.1, 0.6)
    ]


ABDOMEN = Anatomy(
    name="abdomen",
    field_mm=(360, 290, 256),
    structures=(
        Structure((0, 0, 0), (0.92, 0.86, math.inf), -100, 2.2, variation=0.02),  # fat
        Structure((0, 0, 0), (0.82, 0.74, math.inf), 55, 1.0, variation=0.02),  # wall
        Structure((0, 0.06, 0), (0.74, 0.64, math.inf), -20, 1.5, variation=0.02),  # mesentery
        *_ribs(),
        Structure((0, -0.50, 0), (0.15, 0.13, math.inf), 300, 0.5),  # spine
        Structure((-0.03, -0.30, 0), (0.06, 0.06, math.inf), 150, 0.3),  # aorta
        Structure((0.09, -0.28, 0), (0.06, 0.05, math.inf), 125, 0.4),  # vena cava
        Structure((-0.33, 0.28, 0.38), (0.24, 0.20, 0.26), 85, 1.9),  # stomach
        Structure((0.34, 0.06, 0.36), (0.42, 0.50, 0.52), 105, 1.1, "liver", (0, -12, 0), 0.04),
        Structure((-0.54, -0.16, 0.36), (0.18, 0.28, 0.34), 115, 1.7, "spleen", (0, 0, 20), 0.04),
        Structure((0.36, -0.30, -0.30), (0.16, 0.17, 0.34), 150, 1.9, "kidneys", (0, 12, 0)),
        Structure((-0.37, -0.30, -0.20), (0.16, 0.17, 0.34), 150, 1.9, "kidneys", (0, -12, 0)),
        Structure((-0.08, 0.02, -0.06), (0.38, 0.15, 0.15), 95, 1.3, "pancreas", (0, 18, -12)),
    ),
    distractors=7,
    surrounding=(-1000, 0.0),
)

# The same abdomen with more names: both kidneys apart, the vessel, the stomach and a gallbladder.
_NAMES = {
    (-0.03, -0.30, 0): "aorta",
    (-0.33, 0.28, 0.38): "stomach",
    (0.36, -0.30, -0.30): "right kidney",
    (-0.37, -0.30, -0.20): "left kidney",
}
ABDOMEN_PARTS = replace(
    ABDOMEN,
    name="abdomen, eight organs",
    structures=(
        *(replace(s, organ=_NAMES.get(s.centre, s.organ)) for s in ABDOMEN.structures),
        Structure((0.22, 0.34, 0.02), (0.10, 0.12, 0.15), 15, 2.4, "gallbladder"),
    ),
)

PELVIS = Anatomy(
    name="pelvis",
    field_mm=(280, 280, 180),
    structures=(
        Structure((0, 0, 0), (0.94, 0.80, math.inf), -100, 2.2, variation=0.02),
        Structure((0, 0, 0), (0.80, 0.66, math.inf), 50, 1.0, variation=0.02),
        Structure((0, -0.58, 0), (0.18, 0.12, math.inf), 250, 0.5),
        Structure((0.62, 0.0, -0.25), (0.16, 0.17, 0.30), 280, 1.7, "femoral head"),
        Structure((-0.62, 0.0, -0.25), (0.16, 0.17, 0.30), 280, 1.7, "femoral head"),
        Structure((0, -0.34, -0.2), (0.13, 0.12, 0.70), 30, 1.4, "rectum", (-8, 0, 0)),
        Structure((-0.16, -0.06, 0.50), (0.30, 0.12, 0.14), 25, 1.5, "sigmoid colon", (0, 20, 30)),
        Structure((0, 0.24, -0.05), (0.30, 0.24, 0.34), 5, 3.0, "bladder"),
    ),
    distractors=3,
    surrounding=(-1000, 0.0),
)

CARDIAC = Anatomy(
    name="cardiac short axis",
    field_mm=(240, 240, 90),
    structures=(
        Structure((0, 0, 0), (0.94, 0.80, math.inf), 40, 1.2, variation=0.02),
        Structure((0.55, 0, 0), (0.32, 0.55, math.inf), -800, 0.1),
        Structure((-0.62, -0.1, 0), (0.26, 0.5, math.inf), -800, 0.1),
        Structure((0.14, 0.10, 0.05), (0.30, 0.24, 1.15), 180, 3.0, "right ventricle", (0, 0, 25)),
        Structure((-0.16, 0.0, 0.0), (0.27, 0.27, 1.15), 90, 0.9, "myocardium", (0, 0, 0), 0.02),
        Structure(
            (-0.16, 0.0, 0.05), (0.17, 0.17, 1.05), 180, 3.1, "left ventricle", (0, 0, 0), 0.02
        ),
    ),
    distractors=3,
    surrounding=(-1000, 0.0),
)

HIPPOCAMPUS = Anatomy(
    name="hippocampus crop",
    field_mm=(36, 50, 36),
    structures=(
        Structure((0.5, 0.3, 0.5), (0.5, 0.8, 0.4), 30, 1.3, variation=0.08),
        Structure((-0.5, -0.4, 0.6), (0.3, 0.5, 0.3), 10, 0.4, variation=0.08),
        Structure((0.05, -0.30, 0.05), (0.26, 0.48, 0.22), 35, 1.05, "posterior", (-14, 0, 10)),
        Structure((-0.05, 0.32, -0.08), (0.36, 0.34, 0.28), 35, 1.05, "anterior", (-10, 0, 10)),
    ),
    distractors=4,
    surrounding=(25, 0.8),
    warp=0.08,
)
