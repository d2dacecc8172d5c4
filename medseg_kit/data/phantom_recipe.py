"""What all synthetic patients of one data set share, and how the data set describes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medseg_kit.data.phantom_anatomy import Anatomy
from medseg_kit.data.phantom_image import Phantom, Scanner, draw_phantom
from medseg_kit.data.volumes import Volume, relabel

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Recipe:
    """What all patients of one data set have in common."""

    organs: tuple[str, ...]
    size: Size
    anatomy: Anatomy
    scanner: Scanner
    seed: tuple[int, ...]

    def draw(self, index: int, annotated: Sequence[str] | None = None) -> Phantom:
        """Draw patient `index`, labelled with the `annotated` organs (all if None)."""
        phantom = draw_phantom(
            self.anatomy,
            self.scanner,
            organs=self.organs,
            size=self.size,
            seed=(*self.seed, index),
        )
        if annotated is None:
            return phantom
        kept = {v: v for v, organ in enumerate(self.organs, start=1) if organ in annotated}
        label = relabel(phantom.label.array, kept)
        return Phantom(phantom.image, Volume(label, phantom.label.affine))

    @property
    def header(self) -> dict[str, Any]:
        """What datalist and manifest say about the data set."""
        modality = self.scanner.modality
        return {
            "description": f"Synthetic {modality} of the {self.anatomy.name}; no patients",
            "licence": "Apache-2.0 (synthetic)",
            "citation": "made by medseg_kit.data.phantoms",
            "modality": modality,
            "intensity": "HU" if modality == "CT" else "arbitrary",
            "spacing": "valid",
        }

    @property
    def labels(self) -> dict[str, str]:
        """Label value (as a string) to name."""
        names = ("background", *self.organs)
        return {str(value): name for value, name in enumerate(names)}


def raw_manifest(recipe: Recipe, num_patients: int) -> dict[str, Any]:
    """Build the manifest of a raw phantom data set; a fifth validates, a fifth is for test."""
    view = {v: {"name": o, "raw": [v]} for v, o in enumerate(recipe.organs, start=1)}
    header = recipe.header
    fifth = max(1, num_patients // 5)
    split = {"source": "synthetic", "rule": "last_sorted", "validation": fifth, "test": fifth}
    return {
        "schema": 1,
        "kind": "dataset",
        "name": "phantoms",
        "title": header.pop("description"),
        "source": header["citation"],
        **header,
        "layout": "msd",
        "folders": [],
        "num_subjects": num_patients,
        "stored_intensity": {"slope": 1, "intercept": 0},
        "labels": {int(value): name for value, name in recipe.labels.items()},
        "views": {"phantoms": view},
        "default_view": "phantoms",
        "splits": {"last": split},
        "default_split": "last",
        "sites": {},
    }
