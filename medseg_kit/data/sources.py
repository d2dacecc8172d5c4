"""One raw data set found on the disk, compared with what its manifest lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg_kit.data.findings import Finding
from medseg_kit.data.manifest_types import Manifest
from medseg_kit.data.readers import RawCase, find_root, read_cases


@dataclass
class RawSource:
    """The cases of one raw data set, by subject, and what is missing among them.

    Attributes:
        root: Folder of the raw data set.
        manifest: Its manifest.
        cases: Cases of each subject.
        findings: What is missing.
    """

    root: Path
    manifest: Manifest
    cases: dict[str, list[RawCase]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def read(cls, manifest: Manifest, source: Path) -> RawSource:
        """List the cases of a data set at or below a folder."""
        result = cls(find_root(source, manifest.folders), manifest)
        for case in read_cases(result.root, manifest.layout):
            result.cases.setdefault(case.subject, []).append(case)
        found, published = len(result.cases), manifest.num_subjects
        if found != published:
            message = f"{found} subjects found, the published set has {published}"
            result.findings.append(Finding(manifest.name, "incomplete-set", message))
        return result

    def missing(self, subjects: Sequence[str], where: str) -> None:
        """Note the listed subjects that are not there."""
        self.findings += [
            Finding(f"{self.manifest.name}/{subject}", "missing-subject", f"{where} lists it")
            for subject in subjects
            if subject not in self.cases
        ]

    def unused(self, subjects: Sequence[str], where: str) -> None:
        """Note the subjects that are there and not used."""
        self.findings += [
            Finding(f"{self.manifest.name}/{subject}", "unlisted-subject", f"{where} leaves it out")
            for subject in sorted(set(self.cases) - set(subjects))
        ]
