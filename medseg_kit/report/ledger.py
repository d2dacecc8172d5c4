"""What a federation's ledger says: per-site summaries, the worst-site gap, gains over local."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_kit.typing import PathLike, UserError

Record = Mapping[str, Any]


def read_ledger(run_dir: PathLike) -> list[dict[str, Any]]:
    """Return the records of a federation's run folder.

    Args:
        run_dir: Folder that holds ledger.jsonl.

    Raises:
        UserError: If there is no ledger or a line is damaged.
    """
    path = Path(run_dir) / "ledger.jsonl"
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the --out folder of `medseg federate`")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def of_type(records: Sequence[Record], kind: str) -> list[Record]:
    """Return the records of one type: "run", "site", "round" or "event"."""
    return [record for record in records if record.get("type") == kind]


def key_metric(records: Sequence[Record]) -> str | None:
    """Return the name of the metric that the rounds were judged by."""
    names = [record["key_metric"] for record in of_type(records, "round") if record["key_metric"]]
    return names[-1] if names else None


def site_names(records: Sequence[Record]) -> list[str]:
    """Return the sites in sorted order, those that never answered included."""
    named = {site for record in of_type(records, "run") for site in record.get("sites", ())}
    return sorted(named | {record["site"] for record in of_type(records, "site")})


def site_value(record: Record, key: str | None) -> float | None:
    """Return a site's metric of the round's global weights, None where it was not reported."""
    metrics = record.get("metrics") or {}
    return metrics.get(key) if key is not None else None


def site_summaries(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one row per site: rounds, failures, traffic, time, first and last metric, local gain.

    Args:
        records: The ledger.
    """
    key = key_metric(records)
    rows = []
    for site in site_names(records):
        own = [record for record in of_type(records, "site") if record["site"] == site]
        values = [value for record in own if (value := site_value(record, key)) is not None]
        gains = [
            r["federated_minus_local"] for r in own if r.get("federated_minus_local") is not None
        ]
        local = [m[key] for r in own if key in (m := r.get("local_metrics") or {})]
        rows.append(
            {
                "site": site,
                "samples": next(
                    (r["num_samples"] for r in reversed(own) if r["num_samples"]), None
                ),
                "rounds_ok": sum(record["status"] == "ok" for record in own),
                "rounds_failed": sum(record["status"] != "ok" for record in own),
                "bytes_sent": sum(record["bytes_sent"] or 0 for record in own),
                "bytes_received": sum(record["bytes_received"] or 0 for record in own),
                "seconds": sum(record["seconds"] or 0.0 for record in own),
                "metric": values[-1] if values else None,
                "local": local[-1] if local else None,
                "gain": gains[-1] if gains else None,
            }
        )
    return rows


def metric_curves(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one curve per site, and the mean over sites: the metric after every reported round.

    Args:
        records: The ledger.

    Returns:
        `{"panel", "series", "points": [[round, value], ...]}`, as `medseg_kit.report.page` draws
        them.
    """
    key = key_metric(records)
    curves = []
    for site in site_names(records):
        own = [record for record in of_type(records, "site") if record["site"] == site]
        values = [(record["round"], site_value(record, key)) for record in own]
        curves.append(_curve(site, "federated", values))
        local = [(r["round"], (r.get("local_metrics") or {}).get(key)) for r in own]
        curves.append(_curve(site, "the site's own model before averaging", local))
    means = [(record["round"], record["mean_metric"]) for record in of_type(records, "round")]
    curves.append(_curve("mean over sites", "federated", means))
    return [curve for curve in curves if curve["points"]]


def worst_site(records: Sequence[Record]) -> dict[str, Any] | None:
    """Return the last round's worst site and its gap to the mean, None where fewer than two report.

    Args:
        records: The ledger.
    """
    rounds = [r for r in of_type(records, "round") if r.get("worst_site_gap") is not None]
    if not rounds:
        return None
    last = rounds[-1]
    return {"site": last["worst_site"], "gap": last["worst_site_gap"], "round": last["round"]}


def _curve(panel: str, series: str, values: Sequence[tuple[int, float | None]]) -> dict[str, Any]:
    points = [[number, value] for number, value in values if value is not None]
    return {"panel": panel, "series": series, "points": points}


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is no JSON: {error}") from error
    return record
