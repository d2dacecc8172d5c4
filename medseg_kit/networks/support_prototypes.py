"""What a one-shot network keeps of its support scans: prototypes, and where the organs lie in them.

The file derives from a patient and is never shipped with a bundle. It holds tensors, numbers and
text only, so it is read with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medseg_kit.files import replacing
from medseg_kit.typing import PathLike, UserError

NUM_PARTS = 3  # parts of an organ's extent, FedCoWPro section V-D
SCHEMA = 2
PROTOTYPES_SUFFIX = ".pt"
_NO_VALUE = "unknown"

Parts = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class SupportScan:
    """Where the slices and the organs of one support scan lie.

    Attributes:
        profile: One descriptor a slice, ``(D, P)``, by which scans are aligned; zeros for a slice
            without body.
        spacing: Distance of the slices in mm.
        field_of_view: Sides of a slice in mm.
        extents: First and last slice of each organ, ``(K, 2)``; NaN where the scan lacks it.
    """

    profile: torch.Tensor
    spacing: float
    field_of_view: tuple[float, float]
    extents: torch.Tensor


@dataclass(frozen=True)
class SupportPrototypes:
    """Prototypes of K organs from one or more support scans.

    Attributes:
        organs: Names of the organs, in the order of the label values.
        foreground: For each organ the prototypes ``(P, C)`` of its `NUM_PARTS` parts; none
            (``P = 0``) where no support scan has the organ.
        background: The same for what is not the organ, in the same slices.
        scans: The support scans.
        modality: ``"CT"``, ``"MR"`` or ``"unknown"``.
        weights: Digest of the network that made them; ``""`` if not known.
        settings: How the slices were cut and encoded; text, numbers and lists of them.
    """

    organs: tuple[str, ...]
    foreground: tuple[Parts, ...]
    background: tuple[Parts, ...]
    scans: tuple[SupportScan, ...]
    modality: str = _NO_VALUE
    weights: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """Organs that no support scan has."""
        pairs = zip(self.organs, self.foreground, strict=True)
        return tuple(organ for organ, parts in pairs if not sum(len(part) for part in parts))

    @property
    def short(self) -> dict[str, int]:
        """Slices of the organs that are marked in fewer slices than they have parts."""
        found = torch.stack([scan.extents[:, 1] - scan.extents[:, 0] for scan in self.scans]) + 1
        most = found.nan_to_num(0).amax(0).int().tolist()
        return {o: n for o, n in zip(self.organs, most, strict=True) if 0 < n < NUM_PARTS}

    @property
    def digest(self) -> str:
        """Short digest of everything that a prediction depends on."""
        digest = hashlib.sha256("|".join((*self.organs, self.modality)).encode())
        for value in _tensors(self.state()):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def state(self) -> dict[str, Any]:
        """Return the content of the file: tensors, numbers, text, and lists and dicts of them."""
        return {
            "organs": list(self.organs),
            "modality": self.modality,
            "weights": self.weights,
            "settings": dict(self.settings),
            "foreground": [list(parts) for parts in self.foreground],
            "background": [list(parts) for parts in self.background],
            "scans": [vars(scan) for scan in self.scans],
        }


def save_supports(path: PathLike, supports: Sequence[SupportPrototypes]) -> Path:
    """Write prototypes, of one modality or of several, atomically; returns the file.

    Args:
        path: ``support_prototypes.pt``.
        supports: What `load_supports` returns.
    """
    file = Path(path)
    with replacing(file) as temporary:
        content = {"schema": SCHEMA, "supports": [each.state() for each in supports]}
        torch.save(content, temporary)
    return file


def load_supports(path: PathLike) -> tuple[SupportPrototypes, ...]:
    """Read what `save_supports` wrote.

    Raises:
        UserError: If the file is missing, unreadable or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file} does not exist; make it with `medseg support`")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise UserError(
            f"{file} is not a readable weights-only file ({error}); make it again with"
            " `medseg support`"
        ) from error
    try:
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, this version reads {SCHEMA}")
        return tuple(_parse(state) for state in content["supports"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{file} holds no support prototypes ({error}); make it with `medseg support`"
        ) from error


def _parse(state: Mapping[str, Any]) -> SupportPrototypes:
    organs = tuple(str(organ) for organ in state["organs"])
    sides = []
    for side in ("foreground", "background"):
        parts = tuple(tuple(part.float() for part in organ) for organ in state[side])
        if len(parts) != len(organs) or any(len(organ) != NUM_PARTS for organ in parts):
            raise ValueError(f"{side} has not {NUM_PARTS} parts for each of {list(organs)}")
        if not all(bool(torch.isfinite(part).all()) for organ in parts for part in organ):
            raise ValueError(f"{side} holds values that are not finite")
        sides.append(parts)
    scans = tuple(
        SupportScan(
            profile=scan["profile"].float(),
            spacing=float(scan["spacing"]),
            field_of_view=_two_numbers(scan["field_of_view"]),
            extents=scan["extents"].float(),
        )
        for scan in state["scans"]
    )
    return SupportPrototypes(
        organs,
        sides[0],
        sides[1],
        scans,
        str(state["modality"]),
        str(state["weights"]),
        dict(state["settings"]),
    )


def _two_numbers(value: Any) -> tuple[float, float]:
    first, second = value
    return float(first), float(second)


def _tensors(content: Any) -> list[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return [content]
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [tensor for item in content for tensor in _tensors(item)]
    return [torch.tensor(float(content))] if isinstance(content, (int, float)) else []
