"""The ledger of a federation: JSON lines, one record per round and site, and one per round.

Record types: ``run`` (what was run), ``site`` (a site's part in a round), ``round`` (its summary)
and ``event`` (something outside a round, e.g. a site that could not be greeted).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_kit.fl.files import keep_lines
from medseg_kit.fl.messages import Kind, Reply, Request
from medseg_kit.fl.state import difference, digest, norm, num_bytes

if TYPE_CHECKING:
    from medseg_kit.fl.plan import Plan
    from medseg_kit.fl.strategy import SiteInfo


class Ledger:
    """Appends records to a file; the records of a round are written together.

    Args:
        path: The JSON-lines file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records and force them to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, sort_keys=True) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())

    def clear(self) -> None:
        """Remove all records."""
        self.path.unlink(missing_ok=True)

    def forget_after(self, round_number: int) -> None:
        """Drop the records of rounds that were not completed, before they are run again."""
        keep_lines(self.path, lambda record: int(record.get("round", 0)) <= round_number)

    def read(self) -> list[dict[str, Any]]:
        """Return all records."""
        return read_ledger(self.path)


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ledger file, first to last; none if there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def site_record(info: SiteInfo, request: Request, reply: Reply | None) -> dict[str, Any]:
    """Return the record of a site's part in a round, before its answer is judged.

    Args:
        info: What the site said in the handshake.
        request: What it was sent.
        reply: What it answered; None if it did not.
    """
    content: dict[str, Any] = {} if reply is None else reply.content
    state = {} if reply is None else reply.state
    return {
        "type": "site",
        "round": request.round_number,
        "site": info.name,
        "status": "failed",
        "failure": None,
        "expected_keys": len(info.keys),
        "received_keys": len(state),
        "bytes_sent": num_bytes(request.state),
        "bytes_received": num_bytes(state),
        "seconds": content.get("seconds"),
        "num_samples": content.get("num_samples"),
        "num_steps": content.get("num_steps"),
        "losses": content.get("losses"),
        "update_norm": None,
        "digest": None,
        "metrics": None,
        "metrics_suppressed": None,
        "local_metrics": None,
        "federated_minus_local": None,
    }


def complete_record(record: dict[str, Any], request: Request, reply: Reply) -> None:
    """Enter what is known of an accepted answer."""
    record["status"] = "ok"
    record["update_norm"] = norm(difference(reply.state, request.state))
    record["digest"] = digest(reply.state)


def add_metrics(
    record: dict[str, Any], kind: Kind, content: Mapping[str, Any], key_metric: str | None
) -> None:
    """Enter a site's metrics, and the gain of the global weights over its own.

    Args:
        record: The site's record of the round.
        kind: "compare" for the site's own weights after training, "validate" for the global ones.
        content: Of the reply.
        key_metric: Name of the metric that decides.
    """
    record["local_metrics" if kind == "compare" else "metrics"] = content.get("metrics") or None
    record["metrics_suppressed"] = content.get("suppressed")
    federated = (record["metrics"] or {}).get(key_metric)
    local = (record["local_metrics"] or {}).get(key_metric)
    if federated is not None and local is not None:
        record["federated_minus_local"] = federated - local


def round_record(
    round_number: int,
    records: Iterable[Mapping[str, Any]],
    *,
    key_metric: str | None,
    strategy: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the summary of a round.

    ``worst_site_gap`` is the mean over the sites minus the worst site, in units of the metric;
    None where fewer than two sites report it.
    """
    entries = list(records)
    values = {
        record["site"]: record["metrics"][key_metric]
        for record in entries
        if record["metrics"] and key_metric in record["metrics"]
    }
    mean = sum(values.values()) / len(values) if values else None
    worst = min(values, key=lambda site: (values[site], site)) if values else None
    return {
        "type": "round",
        "round": round_number,
        "sites_ok": sorted(record["site"] for record in entries if record["status"] == "ok"),
        "failures": {record["site"]: record["failure"] for record in entries if record["failure"]},
        "key_metric": key_metric,
        "mean_metric": mean,
        "num_reporting": len(values),
        "worst_site": worst,
        "worst_site_gap": None
        if mean is None or worst is None or len(values) < 2
        else mean - values[worst],
        "digest": strategy["digest"],
        "strategy": {name: value for name, value in strategy.items() if name != "digest"},
    }


def event_record(round_number: int, site: str, text: str) -> dict[str, Any]:
    """Return the record of something that happened to a site outside its training."""
    return {"type": "event", "round": round_number, "site": site, "event": text}


def run_record(plan: Plan, run_id: str, sites: Sequence[str]) -> dict[str, Any]:
    """Return the first record: what is run, by whom, under which rules."""
    return {
        "type": "run",
        "round": 0,
        "run_id": run_id,
        **plan.identity(),
        "label_map": plan.description["label_map"],
        "package": plan.description["package"],
        "sites": list(sites),
        "quorum": plan.quorum(len(sites)),
        "strategy": type(plan.strategy).__name__,
        "local_epochs": plan.local_epochs,
        "client_state": plan.client_state,
        "min_cases": plan.options.min_cases,
    }


def summarise(
    plan: Plan, sites: Sequence[str], records: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the outcome of a federation from its records."""
    rounds = [record for record in records if record["type"] == "round"]
    return {
        "bundle": dict(plan.description),
        "method": plan.options.method,
        "seed": plan.options.seed,
        "num_rounds": plan.num_rounds,
        "sites": list(sites),
        "key_metric": rounds[-1]["key_metric"],
        "last_round": rounds[-1],
        "failed_answers": sum(len(record["failures"]) for record in rounds),
        "seconds": round(sum(record["seconds"] for record in rounds), 1),
        "digest": rounds[-1]["digest"],
    }
