"""A site of a federation: MONAI's federated client around the site's own installed bundle.

Built from one site folder alone. `SiteClient.handle` answers every request and never raises: what
goes wrong becomes a short text without paths or patients, the details stay in the site's log.
"""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject

from medseg_kit.bundle.config import load_config
from medseg_kit.data.datalist import SECTIONS, annotated_organs, read_datalist
from medseg_kit.fl.handshake import config_files, describe_bundle
from medseg_kit.fl.memory import SiteMemory
from medseg_kit.fl.messages import Reply, Request
from medseg_kit.fl.privacy import DEFAULT_MIN_CASES, describe_error, shareable_metrics
from medseg_kit.fl.state import copy_state, describe, mismatch, select
from medseg_kit.fl.strategy import Strategy
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

logger = logging.getLogger(__name__)

SITE_FILE = "site.yaml"


@dataclass(frozen=True)
class SiteConfig:
    """Everything that a site is built from; no path of another site.

    Args:
        name: Name of the site.
        bundle: Folder of the bundle installed at the site.
        dataset_dir: The site's prepared data set.
        output_dir: Folder for the site's own files.
        method: Overlay ``configs/methods/<method>.yaml`` of the bundle, or None.
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


def read_site_file(dataset_dir: Path) -> dict[str, Any]:
    """Return name and overrides of the optional ``site.yaml`` that a site owns.

    Raises:
        UserError: If the file is no mapping of ``name`` and ``overrides``.
    """
    path = dataset_dir / SITE_FILE
    if not path.is_file():
        return {"overrides": {}}
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    overrides = content.get("overrides") or {} if isinstance(content, dict) else None
    if not isinstance(overrides, dict) or set(content) - {"name", "overrides"}:
        raise UserError(f"{path}: give `name: SITE` and `overrides: {{config_id: value}}` only")
    return {**content, "overrides": overrides}


class SiteClient:
    """Answers the requests of a federation for one site.

    The workflow is built at the first request (seconds), then kept. Trainer and evaluator share
    one network; the evaluator is built only where there are validation cases.

    Args:
        config: What the site is built from.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self._algo: MonaiAlgo | None = None

    def handle(self, request: Request) -> Reply:
        """Answer a request; an exception becomes the reply's ``error``."""
        verbs = {"hello": self._hello, "train": self._train, "validate": self._validate}
        reply = Reply(self.config.name, request.kind, request.round_number)
        started = time.perf_counter()
        try:
            reply.content, reply.state = verbs[request.kind](request)
        except Exception as error:  # noqa: BLE001 - whatever fails here costs this site its round only
            reply.error = describe_error(error, self._identifiers())
            self._log_locally(request)
        reply.content["seconds"] = round(time.perf_counter() - started, 3)
        return reply

    def _hello(self, request: Request) -> tuple[dict[str, Any], StateDict]:
        self._build(request.num_rounds)
        return {
            **self._description,
            "keys": {key: describe(value) for key, value in self._shared(self._network()).items()},
            "annotated": annotated_organs(self.config.dataset_dir, self._organs),
            "num_training": self._num_training,
            "num_validation": self._num_validation,
        }, {}

    def _train(self, request: Request) -> tuple[dict[str, Any], StateDict]:
        algo = self._build(request.num_rounds)
        self._memory.begin(
            request.run_id, request.round_number, request.num_rounds, algo.local_epochs
        )
        received = self._complete(request.state)
        if self._step is not None:
            self._step.on_round_start(copy_state(received))
        algo.train(ExchangeObject(weights=received))
        # MONAI returns the live tensors
        state = copy_state(algo.get_weights().weights)
        problem = mismatch(state, {key: describe(value) for key, value in received.items()})
        if problem:
            raise FloatingPointError(f"after local training: {problem}")
        content: dict[str, Any] = {
            "num_samples": self._num_training,
            "num_steps": algo.local_epochs * algo.trainer.state.epoch_length,
        }
        if request.compare_local:
            content["local_metrics"] = self._measure(state)[0]
        self._memory.private = select(state, self._stays)
        self._memory.end(request.run_id, request.round_number)
        return content, self._shared(state)

    def _validate(self, request: Request) -> tuple[dict[str, Any], StateDict]:
        self._build(request.num_rounds)
        metrics, suppressed = self._measure(self._complete(request.state))
        return {
            "metrics": metrics,
            "suppressed": suppressed,
            "num_validation": self._num_validation,
            "key_metric": self._key_metric,
        }, {}

    def _measure(self, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], str | None]:
        """Return the shareable metrics of complete weights, or none and why."""
        algo = self._algo
        empty = shareable_metrics(
            {}, num_cases=self._num_validation, min_cases=max(1, self.config.min_cases)
        )
        if empty[1]:
            return empty
        if algo.evaluator is None:
            algo.evaluator = algo.train_workflow.evaluator
        result = algo.evaluate(ExchangeObject(weights=dict(state)))
        self._key_metric = algo.evaluator.state.key_metric_name
        return shareable_metrics(
            result.metrics, num_cases=self._num_validation, min_cases=self.config.min_cases
        )

    def _build(self, num_rounds: int) -> MonaiAlgo:
        if self._algo is None:
            self._algo = self._initialise({**self._own_overrides(), "num_rounds": num_rounds})
        return self._algo

    def _initialise(self, own_overrides: dict[str, Any]) -> MonaiAlgo:
        config = self.config
        files = config_files(config.method)
        # also checks the overrides against the configuration
        parser = load_config(
            config.bundle,
            [Path(name).relative_to("configs").as_posix() for name in files],
            overrides={**config.shared_overrides, **own_overrides},
        )
        self._organs = list(parser.get_parsed_content("organs"))
        self._description = describe_bundle(
            config.bundle, files, overrides=config.shared_overrides, organs=self._organs
        )
        self._strategy: Strategy = parser.get_parsed_content("strategy")
        algo = MonaiAlgo(
            str(config.bundle),
            local_epochs=int(parser.get_parsed_content("local_epochs")),
            send_weight_diff=False,
            config_train_filename=files,
            config_evaluate_filename=None,
            train_kwargs={**config.shared_overrides, **own_overrides},
        )
        with warnings.catch_warnings():
            # The bundle is the one that this site installed itself; no server provisions it.
            warnings.filterwarnings("ignore", "executing the bundle config under", UserWarning)
            torch.manual_seed(config.seed)
            algo.initialize({ExtraItems.CLIENT_NAME: config.name})
        workflow = algo.train_workflow
        self._step = (
            workflow.parser.get_parsed_content("train#step")
            if "train#step" in workflow.parser
            else None
        )
        self._num_training = len(workflow.train_dataset_data)
        self._num_validation = len(read_datalist(config.dataset_dir)["validation"])
        self._key_metric: str | None = None
        self._memory = SiteMemory(
            algo.trainer,
            self._step,
            config.output_dir / "client_state",
            policy=str(parser.get("client_state", "keep")),
            private=copy_state(select(algo.trainer.network.state_dict(), self._stays)),
        )
        return algo

    def _own_overrides(self) -> dict[str, Any]:
        config = self.config
        return {
            **config.site_overrides,
            "dataset_dir": str(config.dataset_dir),
            "output_dir": str(config.output_dir),
            "site": config.name,
            "seed": config.seed,
        }

    def _complete(self, received: Mapping[str, torch.Tensor]) -> StateDict:
        """Return the received weights together with those that never leave, exactly all keys."""
        state = {**self._memory.private, **received}
        problem = mismatch(state, {key: describe(value) for key, value in self._network().items()})
        if problem:
            raise ValueError(f"the server sent {problem}")
        return state

    def _network(self) -> StateDict:
        return dict(self._algo.trainer.network.state_dict())

    def _stays(self, key: str) -> bool:
        return self._strategy.placement(key) == "never_leaves"

    def _shared(self, state: Mapping[str, torch.Tensor]) -> StateDict:
        return select(state, lambda key: not self._stays(key))

    def _identifiers(self) -> list[str]:
        """Return subjects and file stems of the site, which no message may contain."""
        try:
            datalist = read_datalist(self.config.dataset_dir)
        except UserError:
            return []  # nothing is known about the patients, paths are removed anyway
        cases = [case for section in SECTIONS for case in datalist[section]]
        return [
            name
            for case in cases
            for name in (case["subject"], Path(case["image"]).name.split(".")[0])
        ]

    def _log_locally(self, request: Request) -> None:
        folder = self.config.output_dir
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "errors.log"
        with path.open("a", encoding="utf-8") as file:
            file.write(f"round {request.round_number}, {request.kind}\n{traceback.format_exc()}\n")
        logger.debug("details of the failure are in %s", path)
