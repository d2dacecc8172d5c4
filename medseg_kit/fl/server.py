"""The rounds of a federation, the same for every engine: a transport carries the messages."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from medseg_kit.files import only_process
from medseg_kit.fl.handshake import disagreement
from medseg_kit.fl.ledger import (
    add_metrics,
    complete_record,
    event_record,
    round_record,
    run_record,
    site_record,
    summarise,
)
from medseg_kit.fl.messages import Ask, Kind, Reply, Request
from medseg_kit.fl.plan import Plan
from medseg_kit.fl.state import describe, mismatch
from medseg_kit.fl.store import ServerStore
from medseg_kit.fl.strategy import SiteInfo
from medseg_kit.typing import UserError

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

logger = logging.getLogger(__name__)

Records = dict[str, dict[str, Any]]


class Server:
    """Runs a federation to its last round, or on from its last complete one.

    Args:
        plan: The federation as the server's bundle describes it.
        sites: Names of the sites that are expected.
        store: Where it is kept.
        ask: The transport.
        on_round: Called with the record of every completed round.
    """

    def __init__(
        self,
        plan: Plan,
        sites: list[str],
        store: ServerStore,
        *,
        ask: Ask,
        on_round: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        quorum = plan.quorum(len(sites))
        if not 1 <= quorum <= len(sites):
            raise UserError(f"quorum {quorum} must lie between 1 and the {len(sites)} sites")
        self.plan = plan
        self.names = sorted(sites)
        self.store = store
        self.ask = ask
        self.on_round = on_round
        self.strategy = plan.strategy
        self.key_metric: str | None = None
        self.best: dict[str, Any] = {}
        self.outside: dict[str, str] = {}
        self._expected = {key: describe(value) for key, value in plan.global_state.items()}

    def run(self, *, resume: bool = True) -> dict[str, Any]:
        """Run all rounds that are not complete, write the deployed weights, return the summary.

        Raises:
            UserError: If a site's bundle differs, too few sites answer, or the output folder holds
                another federation, or is in use by another process.
        """
        with only_process(self.store.folder):
            return self._run(resume=resume)

    def _run(self, *, resume: bool) -> dict[str, Any]:
        self.run_id, completed = self.store.open(self.plan.identity(), resume=resume)
        self.strategy.initialise(self.plan.global_state, {})
        if completed:
            self._restore(completed)
        else:
            self.store.ledger.clear()
            self.store.ledger.write([run_record(self.plan, self.run_id, self.names)])
        if completed < self.plan.num_rounds:
            self._greet(completed + 1, refuse=True)
        for number in range(completed + 1, self.plan.num_rounds + 1):
            record = self._round(number)
            if self.on_round is not None:
                self.on_round(record)
        return self._deploy()

    def _greet(self, round_number: int, *, refuse: bool) -> None:
        """Shake hands with the sites that have not joined yet.

        At the start a disagreement stops the federation, later it only keeps the site out.
        """
        absent = [name for name in self.names if name not in self.strategy.sites]
        requests = {name: self._request("hello", 0) for name in absent}
        replies = {reply.site: reply for reply in self.ask(requests)} if requests else {}
        refused, events = [], []
        for name in absent:
            reply = replies.get(name)
            self.outside.pop(name, None)
            problem = "no answer" if reply is None else reply.error
            if reply is not None and problem is None:
                problem = disagreement(self.plan.description, self._expected, name, reply.content)
                if problem:
                    refused.append(problem)
                else:
                    self._join(name, reply.content)
            if problem:
                self.outside[name] = problem
                logger.warning("site %s did not join: %s", name, problem)
                events.append(event_record(round_number, name, f"not joined: {problem}"))
            elif round_number > 1:
                events.append(event_record(round_number, name, "joined"))
            if reply is not None and not problem:
                theirs, ours = reply.content.get("package"), self.plan.description["package"]
                if theirs != ours:
                    text = f"has medseg_kit {theirs}, the server {ours}"
                    logger.warning("site %s %s: methods may differ", name, text)
                    events.append(event_record(round_number, name, text))
        self.store.ledger.write(events)
        if refused and refuse:
            raise UserError("; ".join(refused))

    def _join(self, name: str, hello: Mapping[str, Any]) -> None:
        self.strategy.join(
            SiteInfo(
                name=name,
                num_samples=int(hello["num_samples"]),
                annotated=tuple(hello.get("annotated", ())),
                keys=frozenset(hello["keys"]),
            )
        )

    def _round(self, number: int) -> dict[str, Any]:
        started = time.perf_counter()
        if number > 1:
            self._greet(number, refuse=False)
        records = self._train(number)
        answered = [name for name, record in records.items() if record["status"] == "ok"]
        quorum = self.plan.quorum(len(self.names))
        if len(answered) < quorum:
            self._stop(number, records, quorum)
        outcome = self.strategy.finish(number)
        last = number == self.plan.num_rounds
        if last:
            self._measure("compare", number, {name: records[name] for name in answered})
        if last or number % self.plan.validate_every == 0:
            self._measure("validate", number, records)
        record = round_record(
            number, records.values(), key_metric=self.key_metric, strategy=outcome
        )
        record["seconds"] = round(time.perf_counter() - started, 3)
        improved = self._is_best(record)
        self.store.ledger.write([*records.values(), record])
        self.store.save_round(
            number,
            {"strategy": self.strategy.state_dict(), "best": self.best, "key": self.key_metric},
            self._deployed_state() if improved else None,
        )
        return record

    def _train(self, number: int) -> Records:
        requests = {
            name: self._request("train", number, self.strategy.configure(number, name))
            for name in self.names
            if name in self.strategy.sites
        }
        records: Records = {
            name: site_record(self.strategy.sites[name], request, None)
            for name, request in requests.items()
        }
        for record in records.values():
            record["failure"] = "no answer"
        for reply in self.ask(requests):
            if reply.site not in requests or records[reply.site]["status"] == "ok":
                logger.warning("an unexpected answer of %r is ignored", reply.site)
                continue
            request, info = requests[reply.site], self.strategy.sites[reply.site]
            record = records[reply.site] = site_record(info, request, reply)
            record["failure"] = _problem(request, info, reply)
            if record["failure"]:
                logger.warning(
                    "round %d goes on without %s: %s", number, reply.site, record["failure"]
                )
                continue
            complete_record(record, request, reply)
            samples = float(reply.content["num_samples"])
            self.strategy.accept(number, reply.site, reply.state, samples)
        return records

    def _measure(self, kind: Kind, number: int, records: Records) -> None:
        """Enter metrics of the sites' own ("compare") or of the new global weights ("validate")."""
        requests = {
            name: self._request(
                kind, number, self.strategy.configure(number, name) if kind == "validate" else None
            )
            for name in records
        }
        replies = {reply.site: reply for reply in self.ask(requests) if reply.site in records}
        for name, record in records.items():
            reply = replies.get(name)
            problem = "no answer" if reply is None else reply.error or _metrics_problem(reply)
            if reply is None or problem:
                record["metrics_suppressed"] = f"validation failed: {problem}"
                logger.warning("round %d: no metrics from %s: %s", number, name, problem)
                continue
            self.key_metric = reply.content.get("key_metric") or self.key_metric
            add_metrics(record, kind, reply.content, self.key_metric)

    def _request(self, kind: Kind, number: int, state: StateDict | None = None) -> Request:
        return Request(
            kind=kind,
            run_id=self.run_id,
            round_number=number,
            num_rounds=self.plan.num_rounds,
            state=state or {},
        )

    def _stop(self, number: int, records: Records, quorum: int) -> None:
        self.store.ledger.write(records.values())
        failures = {name: entry["failure"] for name, entry in records.items() if entry["failure"]}
        failures |= {name: f"has not joined: {why}" for name, why in self.outside.items()}
        details = "; ".join(f"{name}: {why}" for name, why in sorted(failures.items()))
        raise UserError(
            f"round {number}: {len(self.names) - len(failures)} of {len(self.names)} sites "
            f"answered, the quorum is {quorum} ({details}). Run it again with the same "
            f"output folder to continue after round {number - 1}"
        )

    def _is_best(self, record: Mapping[str, Any]) -> bool:
        """Note whether this round is the best so far, judged by every site's validation cases."""
        everyone = record["num_reporting"] == len(self.names)
        if not everyone or record["mean_metric"] <= self.best.get("metric", -math.inf):
            return False
        self.best = {"round": record["round"], "metric": record["mean_metric"]}
        return True

    def _deployed_state(self) -> dict[str, torch.Tensor]:
        state = self.strategy.deployed_state()
        names = self.plan.deployed
        return state if names is None else {new: state[old] for new, old in names.items()}

    def _restore(self, completed: int) -> None:
        saved = self.store.load_round(completed)
        self.strategy.load_state_dict(saved["strategy"])
        self.best, self.key_metric = saved["best"], saved["key"]

    def _deploy(self) -> dict[str, Any]:
        rounds = self.plan.num_rounds
        if self.best:
            state = self.store.load_best(rounds)
            selection = f"best mean {self.key_metric} of all sites' validation cases"
            placements = {self.strategy.placement(key) for key in self.strategy.global_state}
            if placements != {"averaged"}:
                selection += ", each with its own personal weights; deployed is their mean"
        else:
            state = self._deployed_state()
            selection = "last round: not every site could report validation metrics"
        summary = {
            **summarise(self.plan, self.names, self.store.ledger.read()),
            "deployed_round": self.best.get("round", rounds),
            "deployed_metric": self.best.get("metric"),
            "selection": selection,
        }
        self.store.deploy(state, summary)
        return summary


def _metrics_problem(reply: Reply) -> str | None:
    """Return why metrics cannot be used, or None: one NaN would spoil mean, choice and ledger."""
    metrics = reply.content.get("metrics") or {}
    if not isinstance(metrics, Mapping):
        return f"metrics are a {type(metrics).__name__}"
    for name, value in metrics.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"metric {name} is {value!r}"
    return None


def _problem(request: Request, info: SiteInfo, reply: Reply) -> str | None:
    """Return why an answer cannot be used, or None."""
    if reply.error:
        return reply.error
    if (reply.kind, reply.round_number) != (request.kind, request.round_number):
        return f"answered {reply.kind} of round {reply.round_number}"
    samples = reply.content.get("num_samples")
    if samples != info.num_samples:
        return f"says it has {samples} samples, in the handshake {info.num_samples}"
    return mismatch(
        reply.state,
        {key: describe(value) for key, value in request.state.items()},
    )
