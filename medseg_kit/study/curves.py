"""Curves of a training: validation and, where labels are hidden, the pseudo-labels' quality.

They stand in a file that is written while training runs, so a training that was stopped and
continued has them whole.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from medseg_kit.data.datalist import read_datalist
from medseg_kit.data.slices import SliceDataset
from medseg_kit.engines.pseudo_labels import HiddenSlices
from medseg_kit.engines.step import TrainStep
from medseg_kit.files import write_json
from medseg_kit.typing import PathLike

VALIDATION, PSEUDO_LABELS = "validation", "pseudo_labels"
NUM_HIDDEN = 48
"""Slices that are scored: with one teacher beside the student 1 % of the compact profile's time."""
Points = dict[str, list[list[float]]]


class Curves:
    """Points by kind and series, and what the training took so far.

    Args:
        path: File; its points are taken up if it is there.

    Attributes:
        seconds_before: What processes before this one spent on epochs that are complete.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: dict[str, Points] = {VALIDATION: {}, PSEUDO_LABELS: {}}
        self.seconds_before = 0.0
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            self.seconds_before = content.pop("seconds", 0.0)
            self.points |= content
        self._started = time.perf_counter()

    def write(self) -> None:
        """Write the file: the points, and the seconds spent so far."""
        seconds = self.seconds_before + time.perf_counter() - self._started
        write_json(self.path, {**self.points, "seconds": round(seconds, 3)})

    def add(self, kind: str, values: dict[str, float], *, epoch: int) -> None:
        """Add a point to some series and write the file; points from this epoch on are replaced.

        Args:
            kind: `VALIDATION` or `PSEUDO_LABELS`.
            values: Series to value.
            epoch: Where the points lie.
        """
        found = self.points[kind]
        for name, value in values.items():
            before = [point for point in found.get(name, []) if point[0] < epoch]
            found[name] = [*before, [float(epoch), value]]
        self.write()

    def outcome(self) -> dict[str, list[dict[str, Any]]]:
        """Return the curves as a record holds them."""
        return {
            "curves": [
                {"panel": VALIDATION, "series": name, "points": points}
                for name, points in self.points[VALIDATION].items()
            ],
            "pseudo_labels": [
                {"branch": name, "points": points}
                for name, points in self.points[PSEUDO_LABELS].items()
            ],
        }


def record_curves(parser: Any, path: Path, *, data: PathLike) -> Curves:
    """Record validation, and the pseudo-labels of slice-wise training with hidden labels.

    Args:
        parser: A composed train.yaml, initialised but not run.
        path: File of the curves.
        data: The prepared data set that has the labels of all cases.
    """
    curves = Curves(path)
    trainer = parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, curves.write)
    record_validation(curves, trainer, parser.get_parsed_content("validate#evaluator"))
    dataset = trainer.data_loader.dataset
    hidden = hidden_slices(dataset, data) if isinstance(dataset, SliceDataset) else None
    if hidden is not None:
        step = parser.get_parsed_content("train#step")
        interval = int(parser.get_parsed_content("val_interval"))
        record_pseudo_labels(curves, trainer, step, hidden, interval=interval)
    return curves


def record_validation(curves: Curves, trainer: Engine, evaluator: Engine) -> None:
    """Add the validation metrics of each run of the evaluator."""

    def note() -> None:
        found = evaluator.state.metrics.items()
        values = {k: v for k, v in found if isinstance(v, float) and math.isfinite(v)}
        curves.add(VALIDATION, values, epoch=trainer.state.epoch)

    evaluator.add_event_handler(Events.COMPLETED, note)


def record_pseudo_labels(
    curves: Curves, trainer: Engine, step: TrainStep, hidden: HiddenSlices, *, interval: int
) -> None:
    """Add the Dice of each branch's pseudo-labels at intervals.

    Args:
        curves: Where they go.
        trainer: A supervised trainer.
        step: Its training step.
        hidden: What is scored.
        interval: Epochs between two points.
    """

    def note(engine: Any) -> None:
        scores = hidden.score(engine.network, step)
        curves.add(PSEUDO_LABELS, scores, epoch=engine.state.epoch)

    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=interval), note)


def hidden_slices(
    dataset: SliceDataset, source: PathLike, *, count: int = NUM_HIDDEN, seed: int = 0
) -> HiddenSlices | None:
    """Return some unlabelled training slices with their labels; None where there are none.

    They are the same for all methods and seeds that share the labelled patients.

    Args:
        dataset: The slices, of which a budget hides labels.
        source: The prepared data set that has the labels of all cases.
        count: Most slices.
        seed: Draws them.

    Raises:
        UserError: If there is no datalist, or a label does not fit.
    """
    store, labels = dataset.store, _all_labels(dataset, Path(source))
    known = torch.tensor([label is not None for label in labels])
    indices = (~dataset.labelled & known[store.volume]).nonzero()[:, 0]
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    chosen = indices[order[:count]].sort().values
    truth = store.labels[chosen].clone()
    for number in store.volume[chosen].unique().tolist():
        if not dataset.cases[number].get("label"):  # trained on a view without this label
            here = store.volume[chosen] == number
            whole = dataset.slicing.cut({**dataset.cases[number], "label": labels[number]})[1]
            truth[here] = whole[store.index[chosen[here]]]
    return HiddenSlices(store.images[chosen].clone(), truth) if bool(truth.any()) else None


def _all_labels(dataset: SliceDataset, source: Path) -> list[Path | None]:
    """Return the label file of each case, if it annotates all that the data set annotates."""
    content = read_datalist(source)
    files = {
        (source / case["image"]).resolve(): source / case["label"]
        for case in content["training"]
        if "label" in case
        and set(case.get("annotated", content["annotated"])) >= set(content["annotated"])
    }
    return [files.get(Path(case["image"]).resolve()) for case in dataset.cases]
