"""One case on its way through the predictor, and the record that stays of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg_kit.inference.cases import Case
from medseg_kit.inference.reading import Volume
from medseg_kit.inference.routes import Answer
from medseg_kit.typing import UserError

logger = logging.getLogger(__name__)

SCHEMA = 1


@dataclass
class Job:
    """A case with what its stages have produced so far.

    Attributes:
        case: The case.
        hashes: Digests of input, weights and options.
        error: Why the case failed, None while it has not.
        is_finished: An earlier run has finished the case with the same hashes.
        volume: The image.
        image: The network's input ``(C, H, W, D)``.
        label: Ground truth ``(1, H, W, D)`` on the network's grid, for an inferer that takes it.
        state: What the route needs for the way back.
        logits: The network's answer ``(C, H, W, D)``.
        warnings: What the inferer says about its answer.
        seconds: Time by stage.
        findings: Volumes, confidence, flags of the result.
    """

    case: Case
    hashes: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    is_finished: bool = False
    volume: Volume | None = None
    image: torch.Tensor | None = None
    label: torch.Tensor | None = None
    state: Any = None
    logits: torch.Tensor | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; an error in it is recorded as this case's failure and goes no further.

        Args:
            name: Key in ``seconds``.
        """
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            message = str(error).strip() or type(error).__name__
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            self.error = f"{name}: {kind}{message}"
            logger.error("%s failed: %s", self.case.name, self.error)
            logger.debug("%s", self.case.image, exc_info=error)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 4)

    def release(self) -> None:
        """Forget the volumes, so that memory does not depend on the number of cases."""
        self.volume = self.image = self.label = self.state = self.logits = None

    def record(
        self, *, prediction: Path | None, route: str, device: torch.device
    ) -> dict[str, Any]:
        """Return what is written as the case's JSON file.

        Args:
            prediction: The label map that was written.
            route: Name of the route.
            device: Where the network ran.
        """
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "case": self.case.name,
            "status": "done" if self.error is None else "failed",
            "image": str(self.case.image),
            "prediction": None if prediction is None else f"{self.case.name}.nii.gz",
            "prediction_bytes": None if prediction is None else prediction.stat().st_size,
        }
        if self.error is not None:
            record["error"] = self.error
        return record | {
            **self.findings,
            "seconds": self.seconds,
            "route": route,
            "device": str(device),
            "hashes": self.hashes,
        }


def findings_of(
    labels: np.ndarray, answer: Answer, volume: Volume, names: Sequence[str], *, spacing_lost: bool
) -> dict[str, Any]:
    """Return volumes, confidence and flags of a label map.

    The confidence of a label is the mean, over its voxels on the network's grid, of the probability
    of the label against the runner-up; 0.5 is a coin toss.

    Args:
        labels: ``(H, W, D)`` uint8 on the file's grid.
        answer: The network's answer.
        volume: The image.
        names: Names of the labels 1, 2, ...
        spacing_lost: Voxel size unknown: no volumes in ml.
    """
    counts = _counts(labels, len(names))
    faces = [labels.swapaxes(0, axis)[index] for axis in range(3) for index in (0, -1)]
    at_border = _counts(np.concatenate([face.ravel() for face in faces]), len(names))
    present = answer.labels > 0
    confidence = torch.sigmoid(answer.leads[present]).double().cpu().numpy()
    values = answer.labels[present].cpu().numpy()
    number = np.bincount(values, minlength=len(names) + 1)[1:]
    total = np.bincount(values, weights=confidence, minlength=len(names) + 1)[1:]
    warnings = list(volume.warnings)
    if spacing_lost:
        warnings.append("the voxel size is not known: no volumes in ml")
    return {
        "labels": {str(value): name for value, name in enumerate(names, start=1)},
        "volumes_ml": {}
        if spacing_lost
        else {
            name: round(float(count) * volume.voxel_ml, 4)
            for name, count in zip(names, counts, strict=True)
        },
        "voxels": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "confidence": {
            name: round(float(part / count), 4) if count else None
            for name, part, count in zip(names, total, number, strict=True)
        },
        "flags": {
            "empty": [name for name, count in zip(names, counts, strict=True) if not count],
            "touches_border": [name for name, count in zip(names, at_border, strict=True) if count],
        },
        "warnings": warnings,
    }


def _counts(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Return the number of voxels of the labels 1, 2, ..."""
    flat = labels.ravel(order="K")
    present = flat[flat > 0]
    counts = np.zeros(num_labels + 1, dtype=np.int64)
    for start in range(0, present.size, 1 << 20):  # bincount turns its input into 8-byte integers
        counts += np.bincount(present[start : start + (1 << 20)], minlength=num_labels + 1)
    return counts[1:]
