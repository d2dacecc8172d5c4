"""The demonstration from patients to page, in the order in which a reader follows it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from medseg_kit.files import write_json
from medseg_kit.metrics.table import CaseRecord
from medseg_kit.report.evaluation import write_evaluation
from medseg_kit.report.page import write_federation_page
from medseg_kit.study.demo import results
from medseg_kit.study.demo.data import DemoData, make_data
from medseg_kit.study.demo.models import FEDERATION, SINGLE_SITE, Model, Trainer, all_curves
from medseg_kit.study.demo.notes import make_notes
from medseg_kit.study.demo.settings import Settings
from medseg_kit.typing import PathLike, UserError

RECORD_NAME, PAGE_NAME, SEGMENTATIONS = "demo.json", "report.html", "segmentations"
NUM_STAGES = 7

Say = Callable[[str], None]


class Demo:
    """One demonstration; `run` does everything.

    Args:
        out: Folder for everything; an earlier demonstration in it is replaced.
        settings: Data, sizes and rounds.
        source: Folder of the real data, None for synthetic patients.
        seed: Seed of everything random.
        progress: Show progress bars.
        say: Receives headings and results, line by line.

    Raises:
        UserError: If the folder holds something else.
    """

    def __init__(
        self,
        out: PathLike,
        *,
        settings: Settings,
        source: Path | None = None,
        seed: int = 0,
        progress: bool = False,
        say: Say = lambda _line: None,
    ) -> None:
        self.out = Path(out).absolute()
        check_folder(self.out)
        self.settings = settings
        self.source = source
        self.seed = seed
        self.progress = progress
        self.say = say
        self.seconds: dict[str, float] = {}

    def run(self) -> Path:
        """Make the patients, train, compare, segment, report; return the page.

        Raises:
            UserError: If the data fail their checks or a training fails.
        """
        if self.out.is_dir():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True)
        self._write_record(complete=False)
        with self._stage(f"The {self.settings.patients}: no site labels more than one organ"):
            data = make_data(self.settings, self.out / "data", self.source, self.seed)
            for line in data.describe():
                self.say(f"  {line}")
        models = self._train(data)
        with self._stage("Every model segments the outside patients and is scored"):
            folders, scores = self._segment(models, data)
        with self._stage("Table, evaluation and page"):
            page = self._report(models, data, folders, scores)
        self._write_record(complete=True)
        return page

    def _train(self, data: DemoData) -> list[Model]:
        settings = self.settings
        trainer = Trainer(settings, data, self.out / "models", self.seed, self.progress)
        budget = f"{settings.rounds} rounds x {settings.local_steps} steps a site"
        with self._stage(f"SegViz federation through MONAI's client hooks: {budget}"):
            models = [trainer.federation()]
        with self._stage(f"Each site alone: {settings.site_steps} steps"):
            models += trainer.single_sites()
        with self._stage(f"Conventional federated averaging: {budget}"):
            models.append(trainer.averaging())
        with self._stage("Pooled training: all images in one place, the steps of all sites"):
            models.append(trainer.pooled())
        return models

    def _segment(
        self, models: Sequence[Model], data: DemoData
    ) -> tuple[dict[str, Path], dict[str, list[CaseRecord]]]:
        """Return each whole model's label maps and each row's scores."""
        folders: dict[str, Path] = {}
        scores: dict[str, list[CaseRecord]] = {}
        for model in models:
            folder = model.weights.parent / "predictions"
            if model.name == FEDERATION:
                folder = self.out / SEGMENTATIONS
            results.predict(model, data.outside_dir, folder, self.settings, progress=self.progress)
            scores.setdefault(model.name, []).extend(results.score(model, data.outside_dir, folder))
            if model.name != SINGLE_SITE:
                folders[model.name] = folder
        return folders, scores

    def _report(
        self,
        models: Sequence[Model],
        data: DemoData,
        folders: dict[str, Path],
        scores: dict[str, list[CaseRecord]],
    ) -> Path:
        rows = results.dice_rows(scores)
        self.say("")
        self.say(results.write_tables(rows, self.out))
        self.say("")
        write_evaluation(self.out / "evaluation", scores[FEDERATION], policy="strict")
        return write_federation_page(
            self.out / "models" / "segviz",
            self.out / PAGE_NAME,
            title=self.settings.title,
            dice_table=[{**row, "highlight": row["model"] == FEDERATION} for row in rows],
            curves=all_curves(models),
            overlays=results.pictures(folders, data.outside_dir, models[0].organs, self.settings),
            notes=make_notes(self.settings, data, seed=self.seed),
        )

    @contextmanager
    def _stage(self, title: str) -> Iterator[None]:
        """Announce a stage and note its seconds."""
        self.say(f"\n[{len(self.seconds) + 1}/{NUM_STAGES}] {title}")
        start = time.perf_counter()
        yield
        self.seconds[title] = round(time.perf_counter() - start, 1)
        self.say(f"  {self.seconds[title]:.0f} s")

    def _write_record(self, *, complete: bool) -> None:
        content = {
            "schema": 1,
            "complete": complete,
            "seed": self.seed,
            "settings": asdict(self.settings),
            "seconds": self.seconds,
        }
        write_json(self.out / RECORD_NAME, content)


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier demonstration.

    Args:
        folder: Folder that a demonstration will replace.

    Raises:
        UserError: If replacing the folder would remove something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    record = folder / RECORD_NAME
    known = record.is_file() and "settings" in json.loads(record.read_text(encoding="utf-8"))
    if any(folder.iterdir()) and not known:
        raise UserError(
            f"--out {folder} is not empty and holds no earlier demo; choose another folder"
        )
