"""The models of a demonstration: SegViz's federation, single sites, averaging, pooling."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from tqdm import tqdm

from medseg_kit.bundle.config import load_config
from medseg_kit.data.datalist import annotated_organs
from medseg_kit.fl.plan import Options
from medseg_kit.fl.simulation import simulate
from medseg_kit.report.ledger import metric_curves, read_ledger
from medseg_kit.study.demo.data import DemoData
from medseg_kit.study.demo.settings import Settings

FEDERATION, SINGLE_SITE = "SegViz federation", "single-site models"
AVERAGING, POOLED = "conventional averaging", "pooled training"
MEAN_PANEL = "mean over sites"
PLAIN_NETWORK = "methods/plain_network.yaml"

Points = list[list[float]]


@dataclass(frozen=True)
class Model:
    """A trained model, ready for prediction.

    Attributes:
        name: Row of the table; single-site models share one.
        weights: The deployed weights.
        organs: What it segments.
        overlay: Overlay on inference.yaml, or None.
        overrides: Further values by id for inference.
        curves: Panel (a site, or the mean) to [round, validation Dice] points.
    """

    name: str
    weights: Path
    organs: tuple[str, ...]
    overlay: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Points] = field(default_factory=dict)


@dataclass(frozen=True)
class Trainer:
    """Trains the models of a demonstration; each call returns what it trained.

    Args:
        settings: The demonstration.
        data: Its patients.
        out: Folder for the models, one sub-folder each.
        seed: Seed of everything random.
        progress: Show progress bars.
    """

    settings: Settings
    data: DemoData
    out: Path
    seed: int = 0
    progress: bool = False

    @property
    def organs(self) -> tuple[str, ...]:
        """All organs, in label order."""
        parser = load_config(self.settings.bundle, overrides=self.settings.inference_overrides())
        return tuple(parser.get_parsed_content("organs"))

    def federation(self) -> Model:
        """Train SegViz: the representation is averaged, heads belong to their sites."""
        return self._federate(FEDERATION, self.out / "segviz", method=None, overlay=None)

    def averaging(self) -> Model:
        """Train one ordinary network by federated averaging, other organs as background."""
        return self._federate(
            AVERAGING, self.out / "conventional", method="conventional", overlay=PLAIN_NETWORK
        )

    def single_sites(self) -> list[Model]:
        """Train SegViz's network at each site alone, for the organs that the site labels."""
        return [self._single_site(site, folder) for site, folder in self.data.sites.items()]

    def pooled(self) -> Model:
        """Train one ordinary network on all sites' patients together, with all sites' steps."""
        folder = self.out / "pooled"
        steps = self.settings.local_steps * self.settings.num_sites
        overrides = {"dataset_dir": str(self.data.sites_dir), "steps_per_epoch": steps}
        points = self._train_locally(
            ["train.yaml", "methods/central.yaml"], folder, overrides, name="pooled"
        )
        return Model(
            POOLED,
            folder / "model.pt",
            self.organs,
            overlay=PLAIN_NETWORK,
            curves={MEAN_PANEL: points},
        )

    def _federate(
        self, name: str, folder: Path, *, method: str | None, overlay: str | None
    ) -> Model:
        options = Options(
            rounds=self.settings.rounds,
            method=method,
            seed=self.seed,
            overrides=self.settings.training_overrides(),
            min_cases=self.settings.min_cases,
        )
        with quiet_training():
            simulate(
                self.settings.bundle,
                self.data.sites_dir,
                folder,
                options=options,
                progress=self.progress,
            )
        curves = {
            curve["panel"]: curve["points"]
            for curve in metric_curves(read_ledger(folder))
            if curve["series"] == "federated"
        }
        return Model(
            name, folder / "global" / "model.pt", self.organs, overlay=overlay, curves=curves
        )

    def _single_site(self, site: str, folder: Path) -> Model:
        organs = annotated_organs(folder, self.organs)
        out = self.out / "single" / site
        overrides = {"dataset_dir": str(folder), "site": site}
        points = self._train_locally(["train.yaml"], out, overrides, name=site)
        return Model(
            SINGLE_SITE,
            out / "model.pt",
            tuple(organs),
            overrides={"network_def#heads": organs},
            curves={site: points},
        )

    def _train_locally(
        self, files: Sequence[str], out: Path, overrides: Mapping[str, Any], *, name: str
    ) -> Points:
        """Train by the bundle's own train.yaml; return [epoch, validation Dice] points."""
        values = {
            **self.settings.training_overrides(),
            "train#trainer#max_epochs": self.settings.rounds,
            "output_dir": str(out),
            "seed": self.seed,
            **overrides,
        }
        points: Points = []

        def note(evaluator: Engine) -> None:
            state: Any = evaluator.state  # MONAI adds the key metric to ignite's state
            points.append([state.epoch, float(state.metrics[state.key_metric_name])])

        with quiet_training():
            parser = load_config(self.settings.bundle, files, overrides=values)
            parser.get_parsed_content("initialize")
            trainer = parser.get_parsed_content("train#trainer")
            parser.get_parsed_content("validate#evaluator").add_event_handler(
                Events.COMPLETED, note
            )
            with tqdm(
                total=self.settings.rounds, unit="epoch", desc=name, disable=not self.progress
            ) as bar:
                trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _engine: bar.update())
                trainer.run()
        return points


def all_curves(models: Sequence[Model]) -> list[dict[str, Any]]:
    """Return the validation curves of all models, one panel a site and one for their mean.

    Args:
        models: The models; single-site ones are averaged for the panel of the mean.
    """
    single = [model for model in models if model.name == SINGLE_SITE]
    panels = list(dict.fromkeys(panel for model in models for panel in model.curves))
    panels = [*sorted(set(panels) - {MEAN_PANEL}), MEAN_PANEL]
    curves = [
        {"panel": panel, "series": model.name, "points": model.curves[panel], "ylabel": "Dice"}
        for panel in panels
        for model in models
        if model.curves.get(panel)
    ]
    per_site = [points for model in single for points in model.curves.values()]
    means = [
        [together[0][0], sum(value for _, value in together) / len(together)]
        for together in zip(*per_site, strict=False)
    ]
    return [
        *curves,
        {"panel": MEAN_PANEL, "series": SINGLE_SITE, "points": means, "ylabel": "Dice"},
    ]


@contextmanager
def quiet_training() -> Iterator[None]:
    """Leave the screen to the progress bars: MONAI's engines log every epoch as INFO."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the effective log level of", UserWarning)
        logging.disable(logging.INFO)
        try:
            yield
        finally:
            logging.disable(before)
