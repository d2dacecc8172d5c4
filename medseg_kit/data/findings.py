"""What the data checks can find: kinds, severities and the exception that lists them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from medseg_kit.typing import UserError

# kind -> what it means; each is an error.
FATAL = {
    "missing-file": "an image or a label is not there",
    "unreadable": "a file cannot be read to its end",
    "not-3d": "an array has not three axes",
    "bad-geometry": "an affine is singular, sheared or not finite",
    "grid-shape": "image and label have different sizes",
    "non-finite": "NaN or infinity among the values",
    "label-values": "a label value is not in the label map, or no whole number",
    "sha256": "a file is not the one that was prepared",
    "datalist": "datalist.json is missing, invalid or names a missing file",
    "site-overlap": "a subject stands at two sites",
}
# Errors that `--allow KIND`, or a manifest with a reason, turns into warnings.
ALLOWABLE = {
    "grid-affine": "affines of image and label differ; allowed: the image's is taken",
    "orientation-conflict": "sform and qform of a file disagree; allowed: the sform is taken",
    "laterality": "an organ of the right side lies left of its partner: mirrored data",
    "stored-range": "intensities cannot be what the manifest says",
    "constant-image": "all voxels are equal",
    "duplicate-image": "two subjects of a section have the same voxel values",
    "leaked-image": "two subjects of different sections have the same voxel values",
    "missing-label": "a training case has no label; allowed: it is prepared without one",
    "missing-subject": "a subject that a split or a site lists is not there",
}
WARNING = {
    "empty-label": "a label without foreground",
    "no-orientation": "a file states no orientation; its stored axes are taken as they are",
    "incomplete-set": "fewer or more subjects than the published set has",
    "unlisted-subject": "a subject that the split does not use",
    "lost-spacing": "a header holds what stands for a lost voxel size; mm and ml are unknown",
    "extra-file": "a file that the datalist does not name",
}


@dataclass(frozen=True, order=True)
class Finding:
    """One problem of one file.

    Attributes:
        file: Path relative to the data set's folder, or the name of what is concerned.
        kind: Key of `FATAL`, `ALLOWABLE` or `WARNING`.
        message: The value that is wrong, and the fix.
    """

    file: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"[{self.kind}] {self.file}: {self.message}"


class DataProblemsError(UserError):
    """Data that must not be used; `findings` lists every error, the message too.

    `warnings` holds what was found beside the errors and does not forbid the data.
    """

    def __init__(
        self, title: str, findings: Iterable[Finding], warnings: Iterable[Finding] = ()
    ) -> None:
        self.title = title
        self.findings = tuple(findings)
        self.warnings = tuple(warnings)
        lines = [f"{title}: {len(self.findings)} problem(s)", *map(str, self.findings)]
        super().__init__("\n  ".join(lines))


def check_allowed(kinds: Iterable[str]) -> frozenset[str]:
    """Check the kinds that a user wants to allow.

    Args:
        kinds: Kinds of findings.

    Returns:
        The same kinds.

    Raises:
        UserError: When a kind is unknown or cannot be allowed.
    """
    chosen = frozenset(kinds)
    if wrong := sorted(chosen - set(ALLOWABLE) - set(WARNING)):
        raise UserError(f"cannot allow {', '.join(wrong)}; can be allowed: {', '.join(ALLOWABLE)}")
    return chosen


def separate(
    findings: Iterable[Finding], allowed: Collection[str] = ()
) -> tuple[list[Finding], list[Finding]]:
    """Divide findings into errors and warnings, each sorted by file.

    Args:
        findings: Findings in any order; repeated ones are listed once.
        allowed: Kinds of `ALLOWABLE` that count as warnings.

    Returns:
        Errors and warnings.
    """
    ordered = sorted(set(findings))
    warnings = [f for f in ordered if f.kind in WARNING or f.kind in allowed]
    return [f for f in ordered if f not in warnings], warnings


def unusable(findings: Iterable[Finding]) -> bool:
    """Whether a finding leaves nothing that could be written, whatever the user allows."""
    return any(finding.kind in FATAL for finding in findings)
