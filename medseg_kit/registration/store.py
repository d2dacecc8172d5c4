"""Where the transform and the record of a pair lie, and whether they still hold."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import SimpleITK

from medseg_kit.data.volumes import file_sha256
from medseg_kit.files import replacing, write_json
from medseg_kit.registration.cases import RegistrationCase
from medseg_kit.registration.settings import Settings

FOLDER = "pairs"
ALGORITHM = 1  # raise it when the same settings give other transforms than before


@dataclass(frozen=True)
class PairStore:
    """The registered pairs below a folder: ``pairs/<fixed>__<moving>.h5`` and ``.json``.

    A record counts only while images, spacing and settings are those it was made with.

    Attributes:
        folder: Output folder of ``medseg register``.
        modality: "MR" or "CT".
        settings: How pairs are registered.
    """

    folder: Path
    modality: str
    settings: Settings

    def record(self, fixed: RegistrationCase, moving: RegistrationCase) -> dict[str, Any] | None:
        """Return the record of a pair that has been registered with success; else None."""
        record_file, transform_file = self._files(fixed, moving)
        if not record_file.is_file() or not transform_file.is_file():
            return None
        record: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
        valid = record["success"] and record["fingerprint"] == self.fingerprint(fixed, moving)
        return record if valid else None

    def transform(
        self, fixed: RegistrationCase, moving: RegistrationCase
    ) -> SimpleITK.Transform | None:
        """Return A(fixed, moving), physical points to physical points; None if there is none."""
        if self.record(fixed, moving) is None:
            return None
        transform: SimpleITK.Transform = SimpleITK.ReadTransform(str(self._files(fixed, moving)[1]))
        return transform

    def save(
        self,
        fixed: RegistrationCase,
        moving: RegistrationCase,
        record: dict[str, Any],
        transform: SimpleITK.Transform | None,
    ) -> dict[str, Any]:
        """Write a pair atomically, transform first; return its record with names and fingerprint.

        Args:
            fixed: Fixed volume.
            moving: Moving volume.
            record: What is known of it.
            transform: A(fixed, moving); None for a failure.
        """
        record_file, transform_file = self._files(fixed, moving)
        if transform is not None:
            with replacing(transform_file) as file:
                temporary = file.with_suffix(".h5")  # SimpleITK chooses the format by the ending
                try:
                    SimpleITK.WriteTransform(transform, str(temporary))
                    temporary.replace(file)
                finally:
                    temporary.unlink(missing_ok=True)
        whole = {
            "fixed": fixed.source[0],
            "moving": moving.source[0],
            "method": self.settings.method,
            "fingerprint": self.fingerprint(fixed, moving),
            **record,
        }
        write_json(record_file, whole)
        return whole

    def fingerprint(self, fixed: RegistrationCase, moving: RegistrationCase) -> str:
        """Return a digest of everything that a transform depends on."""
        described = [
            ALGORITHM,
            self.modality,
            asdict(self.settings),
            *[
                [_sha256(case.source[1], case.source[1].stat().st_mtime_ns), case.spacing]
                for case in (fixed, moving)
            ],
        ]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def _files(self, fixed: RegistrationCase, moving: RegistrationCase) -> tuple[Path, Path]:
        stem = f"{fixed.source[0]}__{moving.source[0]}"
        folder = self.folder / FOLDER
        return folder / f"{stem}.json", folder / f"{stem}.h5"


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, changed: int) -> str:
    del changed  # a file that was written again is read again
    return file_sha256(path)
