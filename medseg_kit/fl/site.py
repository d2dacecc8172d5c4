"""A site's own workflow: MONAI's federated client around the bundle that the site installed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import yaml
from monai.bundle import ConfigWorkflow
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from medseg_kit.bundle.config import load_config
from medseg_kit.data.datalist import SECTIONS, SITE_FILE, annotated_organs, read_datalist
from medseg_kit.fl.handshake import config_files, describe_bundle
from medseg_kit.fl.memory import SiteMemory
from medseg_kit.fl.privacy import DEFAULT_MIN_CASES, shareable_metrics
from medseg_kit.fl.state import copy_state, describe, mismatch, select
from medseg_kit.fl.strategy import Strategy
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    from ignite.engine import Engine

    from medseg_kit.typing import StateDict

# Loggers of MONAI that report every exchange of weights and every missing logging file.
CHATTY_LOGGERS = (
    "monai.fl.client.monai_algo",
    "monai.bundle.workflows",
    "monai.networks.utils",
)


def quiet_monai() -> None:
    """Let MONAI report errors only, for processes that show a federation's progress."""
    for name in CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


@dataclass(frozen=True)
class SiteConfig:
    """Everything that a site is built from; no path of another site.

    Args:
        name: Name of the site.
        bundle: Folder of the bundle installed at the site.
        dataset_dir: The site's prepared data set.
        output_dir: Folder for the site's own files.
        method: Overlays ``configs/methods/<method>.yaml`` of the bundle, as in `Options`.
        seed: Seed of the federation.
        shared_overrides: Values by id that hold for all sites; part of the handshake.
        site_overrides: The site's own values by id.
        min_cases: Fewest validation cases whose metrics may leave the site.
    """

    name: str
    bundle: Path
    dataset_dir: Path
    output_dir: Path
    method: str | None = None
    seed: int = 0
    shared_overrides: Mapping[str, Any] = field(default_factory=dict)
    site_overrides: Mapping[str, Any] = field(default_factory=dict)
    min_cases: int = DEFAULT_MIN_CASES

    def overrides(self, num_rounds: int) -> dict[str, Any]:
        """Return all values by id that the site's configuration is built with."""
        return {
            **self.shared_overrides,
            **self.site_overrides,
            "dataset_dir": str(self.dataset_dir),
            "output_dir": str(self.output_dir),
            "site": self.name,
            "seed": self.seed,
            "num_rounds": num_rounds,
        }


def read_site_file(dataset_dir: Path) -> dict[str, Any]:
    """Return the overrides in the optional ``site.yaml`` that a site owns.

    Raises:
        UserError: If the file is no mapping of ``name`` and ``overrides``.
    """
    path = dataset_dir / SITE_FILE
    if not path.is_file():
        return {}
    content = read_site_yaml(path)
    overrides = content.get("overrides") or {} if isinstance(content, dict) else None
    if not isinstance(overrides, dict) or set(content) - {"name", "overrides"}:
        raise UserError(f"{path}: give `name: SITE` and `overrides: {{config_id: value}}` only")
    return overrides


def read_site_yaml(path: Path) -> Any:
    """Return the content of a YAML file that a site owns; an empty mapping if it is empty.

    Raises:
        UserError: If it is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error


class Site:
    """The trainer, evaluator and memory of one site; building it takes seconds.

    Trainer and evaluator share one network. The evaluator is built at the first measurement, and
    only where there are enough validation cases.

    Args:
        config: What the site is built from.
        num_rounds: Rounds planned in all.

    Raises:
        UserError: If bundle, data or overrides are wrong.
    """

    def __init__(self, config: SiteConfig, num_rounds: int) -> None:
        files = config_files(config.method)
        overrides = config.overrides(num_rounds)
        names = [name.removeprefix("configs/") for name in files]
        parser = load_config(config.bundle, names, overrides=overrides)  # checks the overrides
        self.config = config
        self.organs = list(parser.get_parsed_content("organs"))
        self.strategy: Strategy = parser.get_parsed_content("strategy")
        self.description = describe_bundle(
            config.bundle, files, overrides=config.shared_overrides, organs=self.organs
        )
        self.local_epochs = int(parser.get_parsed_content("local_epochs"))
        self.algo = MonaiAlgo(
            str(config.bundle),
            local_epochs=self.local_epochs,
            send_weight_diff=False,
            config_train_filename=files,
            config_evaluate_filename=None,
            train_kwargs=overrides,
        )
        with warnings.catch_warnings():
            # The bundle is the one that this site installed itself; no server provisions it.
            warnings.filterwarnings("ignore", "executing the bundle config under", UserWarning)
            torch.manual_seed(config.seed)
            self.algo.initialize({ExtraItems.CLIENT_NAME: config.name})
        self._workflow = cast(ConfigWorkflow, self.algo.train_workflow)
        self.trainer: SupervisedTrainer = self._workflow.trainer
        self.step: Any | None = None
        if "train#step" in self._workflow.parser:
            self.step = self._workflow.parser.get_parsed_content("train#step")
        self.num_steps = 0  # of the last round
        self.num_training = len(self._workflow.train_dataset_data)
        self.num_validation = len(read_datalist(config.dataset_dir)["validation"])
        self.memory = SiteMemory(
            self.trainer,
            self.step,
            config.output_dir / "client_state",
            policy=str(parser.get("client_state", "keep")),
            private=copy_state(select(self.network_state(), self.stays)),
        )

    @property
    def num_samples(self) -> int:
        """Weight of the site: what its loader says it uses an epoch (slices), else the cases."""
        return int(getattr(self.trainer.data_loader, "num_samples", self.num_training))

    @property
    def evaluator(self) -> SupervisedEvaluator:
        """The evaluator, on the trainer's network."""
        if self.algo.evaluator is None:
            self.algo.evaluator = self._workflow.evaluator
        evaluator: SupervisedEvaluator = self.algo.evaluator
        return evaluator

    @property
    def key_metric(self) -> str | None:
        """Name of the metric that decides which round is best; None before any measurement."""
        name: str | None = (
            None if self.algo.evaluator is None else self.evaluator.state.key_metric_name
        )
        return name

    def annotated(self) -> list[str]:
        """Return the organs that the site labels."""
        return annotated_organs(self.config.dataset_dir, self.organs)

    def network_state(self) -> StateDict:
        """Return the live state of the network."""
        return dict(self.trainer.network.state_dict())

    def stays(self, key: str) -> bool:
        """Return whether a key never leaves the site."""
        return self.strategy.placement(key) == "never_leaves"

    def shared(self, state: Mapping[str, torch.Tensor]) -> StateDict:
        """Return the entries that may leave the site."""
        return select(state, lambda key: not self.stays(key))

    def complete(self, received: Mapping[str, torch.Tensor]) -> StateDict:
        """Return received weights together with those that never leave: exactly all keys.

        Raises:
            ValueError: If a key is missing, unknown, of another shape or not finite.
        """
        state = {**self.memory.private, **received}
        problem = mismatch(state, _described(self.network_state()))
        if problem:
            raise ValueError(f"the server sent {problem}")
        return state

    def train(self, state: Mapping[str, torch.Tensor]) -> StateDict:
        """Train from complete weights for the local epochs; return a copy of the new ones.

        Raises:
            FloatingPointError: If a weight became NaN or infinite.
        """
        if self.step is not None:
            self.step.on_round_start(copy_state(state))
        before = self.trainer.state.iteration
        with _run_begins_anew(self.trainer):
            self.algo.train(ExchangeObject(weights=dict(state)))
        self.num_steps = self.trainer.state.iteration - before
        trained = copy_state(self.algo.get_weights().weights)  # MONAI returns the live tensors
        problem = mismatch(trained, _described(state))
        if problem:
            raise FloatingPointError(f"after local training: {problem}")
        return trained

    def measure(self, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], str | None]:
        """Return the shareable metrics of complete weights, or none and why."""
        num_cases, min_cases = self.num_validation, max(1, self.config.min_cases)
        nothing = shareable_metrics({}, num_cases=num_cases, min_cases=min_cases)
        if nothing[1] is not None:
            return nothing
        with _run_begins_anew(self.evaluator):  # built now, if it has not been
            result = self.algo.evaluate(ExchangeObject(weights=dict(state)))
        return shareable_metrics(
            result.metrics,
            num_cases=num_cases,
            min_cases=min_cases,
            counted=_counted(self.evaluator),
        )


def _counted(evaluator: SupervisedEvaluator) -> dict[str, int]:
    """Return of how many cases each metric has a finite value, as far as its details tell."""
    details: Mapping[str, Any] = getattr(evaluator.state, "metric_details", None) or {}
    return {
        name: int(torch.isfinite(value).reshape(len(value), -1).any(dim=1).sum())
        for name, value in details.items()
        if isinstance(value, torch.Tensor) and value.dim() > 0
    }


@contextmanager
def _run_begins_anew(engine: Engine) -> Iterator[None]:
    """Forget a run that failed: ignite's engine keeps its generator, which is at its end then.

    The next run would return at once, without a step and without an error.
    """
    try:
        yield
    except BaseException:
        engine._internal_run_generator = None
        raise


def case_names(dataset_dir: Path) -> list[str]:
    """Return subjects and image stems of a data set; none if its datalist is unreadable."""
    try:
        datalist = read_datalist(dataset_dir)
    except UserError:
        return []  # nothing is known about the patients then, paths are removed anyway
    cases = [case for section in SECTIONS for case in datalist[section]]
    stems = [Path(case["image"]).name.split(".")[0] for case in cases]
    return [*stems, *(case["subject"] for case in cases)]


def _described(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {key: describe(value) for key, value in state.items()}
