"""The study file: which configurations run with which seeds, and on whom they are compared."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medseg_kit.metrics.policy import EMPTY_MASK_SCORES
from medseg_kit.report.cost import COLUMNS
from medseg_kit.typing import PathLike, UserError

# What an entry holds, of the study or of a run: a list (or its only item), or a mapping with ...
LISTS = ("seeds", "label_budgets", "overlays", "command", "organs")
# ... these keys; with any where it names none.
MAPPINGS: Mapping[str, tuple[str, ...]] = {
    "test": ("data", "section"),
    "budget": ("local_steps",),
    "sweep": ("name", "values"),
    "inference": ("overlays", "overrides"),
    "overrides": (),
    "paths": (),
}
LABEL_ORDERS = ("listed", "seeded")
MODES = ("train", "federate", "evaluate", "command")
CHECKPOINT_RULES = ("best_validation", "last")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class RunSpec:
    """One configuration of a study.

    Attributes:
        name: Distinct; names the run's folder.
        mode: `train` (train.yaml on `data`), `federate` (federated.yaml on `sites`), `evaluate`
            (existing `weights`), or `command` (a program of its own that writes predictions).
        bundle: Path or name of the bundle.
        method: Row of the table; runs of one method complement each other, for example one
            single-organ model a site.
        data: Prepared data set for training.
        sites: Folder of site folders.
        overlays: Configuration files merged onto train.yaml, relative to the bundle's configs; a
            federation takes those of ``methods/``.
        overrides: Values by configuration id.
        paths: The same for files and folders, which lie relative to the study's file.
        rounds: Rounds of a federation; the bundle's own if None.
        min_cases: Fewest validation cases of a site whose mean may leave it.
        inference: `overlays` and `overrides` of inference.yaml.
        organs: Structures to score; all that the test set annotates if None.
        weights: Weights to evaluate; {seed} is replaced. The bundle's own if None.
        command: Words of a command; {predictions}, {run_dir}, {test}, {seed} and {label_budget} are
            replaced.
        unlabelled: With label budgets, whether the training cases beyond the budget stay, without
            label ("keep"), or go ("drop"). Bundles that learn from unlabelled images, those with an
            id `labelled`, always keep them.
    """

    name: str
    mode: str
    bundle: str | None = None
    method: str = ""
    data: str | None = None
    sites: str | None = None
    overlays: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    paths: Mapping[str, str] = field(default_factory=dict)
    rounds: int | None = None
    min_cases: int = 5
    inference: Mapping[str, Any] = field(default_factory=dict)
    organs: tuple[str, ...] | None = None
    weights: str | None = None
    command: tuple[str, ...] = ()
    unlabelled: str = "drop"


@dataclass(frozen=True)
class Study:
    """A study file; paths in it are relative to the file.

    Attributes:
        name: Title of the study.
        runs: Configurations.
        test: `data` (prepared data set) and `section` of the cases that decide.
        seeds: Every run is done once with each.
        label_budgets: Labelled training patients (of each site); None for all of them.
        label_order: Which patients those are: the first ones of the data set's list ("listed", the
            published order) or drawn with the run's seed ("seeded").
        budget: `local_steps` that every trained run must spend, or empty to check only that all
            spend the same.
        checkpoint_rule: Which weights are tested: `best_validation` or `last`.
        policy: Empty-mask policy of the scores.
        reference: Method that the others are compared with; the first one if None.
        printed: Numbers of papers to stand beside ours: `method`, `label` ("mean" for the mean of
            all structures), `dice`, `source`, and where they have one `label_budget`, `site` (of
            the test cases) and `hd95`; in the study file a list, or the name of a YAML file with
            one.
        printed_cost: Costs in papers, beside ours in the table of costs: `method`, `source` and
            some of the table's columns (`parameters`, `gflops`, `seconds_per_step`,
            `seconds_per_case`, ...); a list or the name of a YAML file with one.
        sweep: `name` of a setting and `values`, its value in each method, for a curve over it.
        folder: Where the study's file lies.
    """

    name: str
    runs: tuple[RunSpec, ...]
    test: Mapping[str, str]
    seeds: tuple[int, ...] = (0,)
    label_budgets: tuple[int | None, ...] = (None,)
    budget: Mapping[str, int] = field(default_factory=dict)
    checkpoint_rule: str = "best_validation"
    policy: str = "strict"
    reference: str | None = None
    label_order: str = "listed"
    printed: tuple[Mapping[str, Any], ...] = ()
    printed_cost: tuple[Mapping[str, Any], ...] = ()
    sweep: Mapping[str, Any] = field(default_factory=dict)
    folder: str = "."

    def portable(self, spec: RunSpec) -> dict[str, Any]:
        """Return a run's entries with paths as in the study's file, the same on every machine."""
        values = dataclasses.asdict(spec)
        for key in ("data", "sites", "weights"):
            values[key] = values[key] and self.relative(values[key])
        values["paths"] = {key: self.relative(path) for key, path in spec.paths.items()}
        return values

    def relative(self, path: str) -> str:
        """Return a path relative to the study's file."""
        return Path(os.path.relpath(path, self.folder)).as_posix()


@dataclass(frozen=True)
class Job:
    """One run of a study with its seed and label budget."""

    spec: RunSpec
    seed: int
    label_budget: int | None
    label_order: str = "listed"

    @property
    def weights(self) -> str | None:
        """The file of the weights to evaluate, of this job's seed."""
        return None if self.spec.weights is None else self.spec.weights.format(seed=self.seed)

    @property
    def name(self) -> str:
        """Return the name of the job's folder."""
        budget = "" if self.label_budget is None else f"_labels{self.label_budget}"
        return f"{self.spec.name}{budget}_seed{self.seed}"


def load_study(path: PathLike) -> Study:
    """Read and check a study file.

    Args:
        path: YAML file.

    Raises:
        UserError: If the file is missing or no YAML, or an entry is unknown, missing or wrong;
            names it.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"study file {file} does not exist")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold a mapping with `runs` and `test`")
    return _Reader(file).study(content)


def jobs(study: Study) -> list[Job]:
    """Return a study's jobs: all runs with the first budget and seed, then with the next seed.

    So a study that is stopped early has compared every method.
    """
    return [
        Job(spec, seed, budget, study.label_order)
        for budget in study.label_budgets
        for seed in study.seeds
        for spec in study.runs
    ]


class _Reader:
    """Turns the content of one study file into a `Study`; every message names the file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def study(self, content: Mapping[str, Any]) -> Study:
        bundle = content.get("bundle")
        values = {key: value for key, value in content.items() if key != "bundle"}
        self._check_keys(values, Study, "the study", hidden="folder")
        values = self._settled(values, "the study")
        entries = content["runs"] or ()
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f"{self.file}: `runs` must be a list of mappings with a `name`")
        runs = tuple(self.run(entry, bundle) for entry in entries)
        names = [run.name for run in runs]
        if not runs or len(set(names)) < len(names):
            raise UserError(
                f"{self.file}: `runs` needs at least one run, and distinct names: {names}"
            )
        if "data" not in content["test"]:
            raise UserError(f"{self.file}: `test` needs `data`, a prepared data set")
        test = {"section": "test", **content["test"], "data": self._path(content["test"]["data"])}
        self._whole_numbers("seeds", values.get("seeds", (0,)) or (None,))
        self._whole_numbers("label_budgets", values.get("label_budgets", ()), or_none=True)
        for key in ("printed", "printed_cost"):
            if isinstance(values.get(key), str):
                values[key] = self._rows(key, values[key])
            values[key] = tuple(values.get(key) or ())
        settled: dict[str, Any] = {"name": self.file.stem, **values}
        study = Study(
            **{**settled, "runs": runs, "test": test, "folder": str(self.file.parent.resolve())}
        )
        self._choice("checkpoint_rule", study.checkpoint_rule, CHECKPOINT_RULES)
        self._choice("policy", study.policy, tuple(EMPTY_MASK_SCORES))
        self._choice("label_order", study.label_order, LABEL_ORDERS)
        if study.reference is not None:
            self._choice("reference", study.reference, tuple({run.method for run in runs}))
        self._check_printed(study)
        return study

    def run(self, entry: Mapping[str, Any], bundle: str | None) -> RunSpec:
        name = str(entry.get("name", ""))
        if not NAME.fullmatch(name):
            raise UserError(
                f"{self.file}: a run needs a `name` of letters, digits, - and _, got {name!r}"
            )
        self._check_keys(entry, RunSpec, f"run {name}")
        values = {"bundle": bundle, "method": name, **self._settled(entry, f"run {name}")}
        for key in ("overlays", "command", "organs"):
            if values.get(key) is not None:
                values[key] = tuple(str(item) for item in values[key])
        for key in ("data", "sites", "weights"):
            if values.get(key) is not None:
                values[key] = self._path(values[key])
        values["paths"] = {key: self._path(value) for key, value in values.get("paths", {}).items()}
        run = RunSpec(**values)
        self._choice(f"mode of {name}", run.mode, MODES)
        self._choice(f"unlabelled of {name}", run.unlabelled, ("drop", "keep"))
        needed = {
            "train": ("bundle", "data"),
            "federate": ("bundle", "sites"),
            "evaluate": ("bundle",),
        }
        for key in needed.get(run.mode, ("command",)):
            if not getattr(run, key):
                raise UserError(f"{self.file}: run {name} of mode {run.mode} needs `{key}`")
        return run

    def _path(self, value: Any) -> str:
        # a link to the data stays one: it is the same place in the study on every machine
        return os.path.abspath(self.file.parent.resolve() / str(value))  # noqa: PTH100 - follows none

    def _settled(self, content: Mapping[str, Any], what: str) -> dict[str, Any]:
        """Return entries with single items as lists; refuse mappings that are none or unknown."""
        values = dict(content)
        for key, value in content.items():
            if key in LISTS and (value is not None or key == "label_budgets"):
                values[key] = tuple(value) if isinstance(value, list | tuple) else (value,)
            if key not in MAPPINGS:
                continue
            if not isinstance(value, dict):
                raise UserError(f"{self.file}: `{key}` of {what} must be a mapping, got {value!r}")
            known = MAPPINGS[key]
            if known and (unknown := sorted(set(value) - set(known))):
                raise UserError(
                    f"{self.file}: `{key}` of {what} has unknown entries {unknown}; known:"
                    f" {sorted(known)}"
                )
            values[key] = self._settled(value, f"{key} of {what}") if known else value
        return values

    def _whole_numbers(self, key: str, values: Sequence[Any], *, or_none: bool = False) -> None:
        for value in values:
            if (value is None and or_none) or (type(value) is int and value >= 0):
                continue
            raise UserError(f"{self.file}: `{key}` holds {value!r}; it takes whole numbers")

    def _choice(self, what: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            raise UserError(f"{self.file}: {what} is {value!r}; choose one of {sorted(choices)}")

    def _check_keys(
        self, content: Mapping[str, Any], kind: type[Any], what: str, *, hidden: str = ""
    ) -> None:
        known = {item.name: item for item in dataclasses.fields(kind) if item.name != hidden}
        if unknown := sorted(set(content) - set(known)):
            raise UserError(
                f"{self.file}: {what} has unknown entries {unknown}; known: {sorted(known)}"
            )
        needed = [
            name
            for name, item in known.items()
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        ]
        if missing := [name for name in needed if name not in content and name != "name"]:
            raise UserError(f"{self.file}: {what} lacks {missing}")

    def _rows(self, key: str, name: str) -> list[Any]:
        path = Path(self._path(name))
        if not path.is_file():
            raise UserError(f"{self.file}: `{key}` names {path}, which does not exist")
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise UserError(f"{path} must hold a list of printed numbers")
        return rows

    def _check_printed(self, study: Study) -> None:
        for row in study.printed:
            if not isinstance(row, dict) or not {"method", "label", "dice", "source"} <= set(row):
                raise UserError(
                    f"{self.file}: a row of `printed` needs method, label, dice and source: {row}"
                )
        for row in study.printed_cost:
            named = set(row) if isinstance(row, dict) else set()
            if not {"method", "source"} < named <= {"method", "source", *COLUMNS}:
                raise UserError(
                    f"{self.file}: a row of `printed_cost` needs method, source and some of "
                    f"{', '.join(COLUMNS)}: {row}"
                )
        if study.sweep and set(study.sweep) != {"name", "values"}:
            raise UserError(
                f"{self.file}: `sweep` needs `name` and `values` (method: value), "
                f"got {sorted(study.sweep)}"
            )
        methods = {run.method for run in study.runs}
        if unknown := sorted(set(study.sweep.get("values", {})) - methods):
            raise UserError(f"{self.file}: `sweep` names methods that no run has: {unknown}")
