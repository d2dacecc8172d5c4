"""What a prediction leaves beside its label maps: which cases are finished, and the summary."""

from __future__ import annotations

import gzip
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from medseg_kit.files import write_json
from medseg_kit.inference.cases import Case
from medseg_kit.inference.job import SCHEMA
from medseg_kit.typing import UserError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
SUMMARY_NAME = "summary.json"
_SHARED = ("case", "status", "prediction", "error", "volumes_ml", "flags", "warnings")


class Outputs:
    """The files of a prediction in one folder.

    Args:
        folder: Made when results can be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def labels(self, case: Case) -> Path:
        """Return the path of a case's label map."""
        return self.folder / f"{case.name}.nii.gz"

    def probabilities(self, case: Case) -> Path:
        """Return the path of a case's class probabilities."""
        return self.folder / f"{case.name}.probabilities.nii.gz"

    def record(self, case: Case) -> Path:
        """Return the path of a case's record."""
        return self.folder / f"{case.name}.json"

    def check_writable(self) -> None:
        """Stop before any work when results cannot be written.

        Raises:
            UserError: Names the folder and the reason.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}); give another output folder"
            ) from error

    def check_distinct(self, cases: Sequence[Case]) -> None:
        """Stop when two results would have one path, or a result that of an image or its label.

        Args:
            cases: All cases.

        Raises:
            UserError: Names the path and both images, or the file that would be lost.
        """
        inputs = {
            os.path.realpath(file)
            for case in cases
            for file in (*case.files, *((case.label,) if case.label else ()))
        }
        seen: dict[Path, Path] = {self.folder / SUMMARY_NAME: Path("the summary")}
        for case in cases:
            for path in (self.labels(case), self.probabilities(case), self.record(case)):
                if os.path.realpath(path) in inputs:
                    raise UserError(
                        f"{path} is an input and would be overwritten; give another output folder"
                    )
                other = seen.setdefault(path, case.image)
                if other != case.image:
                    raise UserError(
                        f"{path} would be written for {other} and for {case.image}; rename one"
                    )

    def is_finished(
        self, case: Case, hashes: Mapping[str, str], *, save_probabilities: bool
    ) -> bool:
        """Return whether the case's results are there, whole, and made from the same things.

        A label map that somebody has changed since counts as finished, with a warning: corrections
        are not lost.

        Args:
            case: The case.
            hashes: Digests that the results must have been made with.
            save_probabilities: Whether the class probabilities belong to the results.
        """
        record = read_record(self.record(case))
        path = self.labels(case)
        if (
            record.get("status") != "done"
            or record.get("hashes") != hashes
            or not path.is_file()
            or (save_probabilities and not self.probabilities(case).is_file())
        ):
            return False
        if path.stat().st_size == record.get("prediction_bytes"):
            return True
        if not _is_whole(path):
            return False
        logger.warning(
            "%s was changed since it was predicted and is kept; --overwrite predicts it anew", path
        )
        return True

    def is_done(self, case: Case) -> bool:
        """Return whether an earlier run has left a result of the case, made from whatever."""
        done = read_record(self.record(case)).get("status") == "done"
        return done and self.labels(case).is_file()

    def discard(self, case: Case) -> None:
        """Remove a case's results: of a failed case nothing older may be taken for its answer."""
        for path in (self.labels(case), self.probabilities(case)):
            path.unlink(missing_ok=True)

    def write_summary(self, cases: Sequence[Case], this_run: Mapping[str, Any]) -> dict[str, Any]:
        """Write and return the summary over all cases, also those of other parts.

        Args:
            cases: All cases of all parts.
            this_run: What this process did.
        """
        with _locked(self.folder):
            records = [read_record(self.record(case)) for case in cases]
            results = [
                {key: record[key] for key in _SHARED if key in record}
                if record
                else {"case": case.name, "status": "pending"}
                for case, record in zip(cases, records, strict=True)
            ]
            states = [result["status"] for result in results]
            summary = {
                "schema": SCHEMA,
                "cases": len(cases),
                **{state: states.count(state) for state in ("done", "failed", "pending")},
                "this_run": dict(this_run),
                "results": results,
            }
            write_json(self.folder / SUMMARY_NAME, summary)
        return summary


def read_record(path: Path) -> dict[str, Any]:
    """Return a case's record; empty if there is none or it is damaged, which means: do it again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_whole(path: Path) -> bool:
    """Return whether a compressed file can be read to its end."""
    try:
        with gzip.open(path) as stream:
            while stream.read(_CHUNK):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time summarise, so that the last one sees the records of all."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".summary.lock").open("w") as stream:
        try:
            import fcntl
        except ImportError:  # not on Windows, where several processes rarely share a folder
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
