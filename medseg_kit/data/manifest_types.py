"""The parts of a data set manifest; `medseg_kit.data.manifest` reads and validates them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg_kit.typing import UserError

SPACING_TOLERANCE_MM = 1e-4


@dataclass(frozen=True)
class View:
    """A numbering of organs in the prepared label files.

    Attributes:
        organs: Organ of value 1, of value 2, ...
        raw: Raw label values that make up each organ; empty where the data set lacks the organ.
    """

    organs: tuple[str, ...]
    raw: tuple[tuple[int, ...], ...]

    @property
    def annotated(self) -> tuple[str, ...]:
        """Organs that the data set annotates."""
        return tuple(o for o, raw in zip(self.organs, self.raw, strict=True) if raw)

    def mapping(self, organs: Sequence[str]) -> dict[int, int]:
        """Map raw values to prepared values, for the named organs only."""
        return {
            value: index
            for index, (organ, raw) in enumerate(zip(self.organs, self.raw, strict=True), start=1)
            for value in raw
            if organ in organs
        }


@dataclass(frozen=True)
class Split:
    """How subjects are divided; see `medseg_kit.data.splits`.

    Attributes:
        rule: Name of the rule.
        sections: Subjects by section, where they are listed.
        others: Whether those that no list names train.
        counts: Number of validation and test subjects, where they are not.
        seed: Seed of the rule.
        support: Number of training subjects, the first that are there, that are support scans of
            one-shot segmentation: known by their label, never trained on.
    """

    rule: str
    sections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    others: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    support: int = 0


@dataclass(frozen=True)
class SiteRule:
    """What one site annotates, and its subjects where they are listed.

    Attributes:
        organs: Organs that its labels annotate.
        sections: Subjects by section, or None where the sites are blocks of equal size.
        labelled: Number of training subjects, from the first, that the site has labelled; all of
            them if None.
        support: Number of its training subjects, the first that are there, that are support scans.
    """

    organs: tuple[str, ...]
    sections: Mapping[str, tuple[str, ...]] | None
    labelled: int | None = None
    support: int = 0


@dataclass(frozen=True)
class SiteSetting:
    """A named division of one data set among sites."""

    view: str
    split: str
    members: Mapping[str, SiteRule]


@dataclass(frozen=True)
class StoredIntensity:
    """What the stored numbers mean: ``value = stored * slope + intercept``.

    Attributes:
        slope: Factor to the unit of the manifest.
        intercept: Offset to the unit of the manifest.
        limits: Smallest and largest stored value that can occur, or None.
        reaches_below: A stored value that every image falls below (air, in HU), or None.
    """

    slope: float
    intercept: float
    limits: tuple[float, float] | None
    reaches_below: float | None

    @property
    def is_identity(self) -> bool:
        """Whether the stored numbers are used as they are."""
        return self.slope == 1 and self.intercept == 0


@dataclass(frozen=True)
class Manifest:
    """One public data set: where it is from, how it is stored, and how it is divided."""

    name: str
    title: str
    source: str
    licence: str
    citation: str
    modality: str
    intensity: str
    spacing: str
    spacing_unknown: tuple[float, float, float] | None
    layout: str
    folders: tuple[str, ...]
    num_subjects: int
    stored_intensity: StoredIntensity
    labels: Mapping[int, str]
    laterality: tuple[tuple[int, int], ...]
    views: Mapping[str, View]
    default_view: str
    splits: Mapping[str, Split]
    default_split: str
    sites: Mapping[str, SiteSetting]
    allow: Mapping[str, str]

    def knows_spacing(self, spacing: Sequence[float]) -> bool:
        """Whether a header's voxel size is the real one, not what stands for a lost one."""
        unknown = self.spacing_unknown
        lost = unknown is not None and all(
            abs(size - nominal) < SPACING_TOLERANCE_MM
            for size, nominal in zip(spacing, unknown, strict=True)
        )
        return self.spacing == "valid" and not lost


@dataclass(frozen=True)
class Member:
    """A data set that is one site of a collection."""

    dataset: str
    split: str
    organs: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """A federation whose sites are whole data sets."""

    name: str
    title: str
    source: str
    view: str
    members: Mapping[str, Member]
    sites: Mapping[str, tuple[str, ...]]
    default_sites: str


def choose(kind: str, name: str, known: Mapping[str, Any], source: str) -> Any:
    """Look a name up, or say which names there are.

    Args:
        kind: What the name names, for the message.
        name: The name to look up.
        known: What there is.
        source: Where it should be, for the message.

    Raises:
        UserError: When the name is unknown.
    """
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    names = ", ".join(known) or "none"
    raise UserError(f"{source} has no {kind} {name!r}, known are: {names}{hint}")
