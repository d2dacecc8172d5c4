"""Raw label values of a copy that does not number its organs as the manifest says.

Processed copies of a data set circulate with other numbers (of TransUNet's Synapse files there are
conflicting accounts): the map is stated, and the check of left and right still applies to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from medseg_kit.data.manifest_types import Manifest, View, choose
from medseg_kit.typing import UserError


def parse_label_map(text: str) -> dict[int, str]:
    """Return the map of a command line's ``1:aorta,2:gallbladder``.

    Raises:
        UserError: When it does not read so.

    >>> parse_label_map("1:aorta, 3:left kidney")
    {1: 'aorta', 3: 'left kidney'}
    """
    pairs = [part.partition(":") for part in text.split(",")]
    if not all(value.strip().isdigit() and organ.strip() for value, _, organ in pairs):
        raise UserError(f"label map {text!r} must read VALUE:ORGAN,VALUE:ORGAN,...")
    return {int(value): organ.strip() for value, _, organ in pairs}


def with_label_map(manifest: Manifest, view: str, label_map: Mapping[int, str]) -> Manifest:
    """Return a manifest whose raw values mean what a map says.

    Args:
        manifest: Manifest of the data set.
        view: Name of the view; its numbering of the prepared labels stays.
        label_map: Raw value to organ of the view or of the manifest's labels. Organs of the view
            that it leaves out are not annotated.

    Raises:
        UserError: When an organ is unknown, the background is mapped, or no organ of the view is.
    """
    organs = manifest.views[view].organs
    known = dict.fromkeys([*organs, *manifest.labels.values()])
    for value, organ in label_map.items():
        choose("organ", organ, known, f"label map ({value}:{organ})")
        if value == 0:
            raise UserError("label map: value 0 is the background and cannot be an organ")
    raw = tuple(tuple(v for v, o in label_map.items() if o == organ) for organ in organs)
    if not any(raw):
        raise UserError(f"label map names no organ of view {view}: {', '.join(organs)}")
    sides = [(manifest.labels[right], manifest.labels[left]) for right, left in manifest.laterality]
    value_of = {organ: value for value, organ in label_map.items()}
    return replace(
        manifest,
        labels={0: manifest.labels[0], **label_map},
        laterality=tuple(
            (value_of[right], value_of[left])
            for right, left in sides
            if right in value_of and left in value_of
        ),
        views={**manifest.views, view: View(organs, raw)},
    )
