"""The cost table of a study: network, seconds and memory of each method, and what papers print."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
COLUMNS = (
    "parameters",
    "gflops",
    "seconds_per_step",
    "seconds_per_case",
    "peak_memory_gib",
    "peak_gpu_memory_gib",
    "registration_seconds",
)


def cost_table(records: Sequence[Record], printed: Sequence[Record] = ()) -> list[dict[str, Any]]:
    """Return one row a method and processor: medians over its runs, None where nothing was counted.

    Args:
        records: Records of a study.
        printed: Costs in papers, each with `method`, `source` and some of `COLUMNS`; their rows
            come last, with the source for the hardware.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        hardware = record["hardware"]
        key = (str(record["method"]), hardware["gpu"] or _processor(hardware))
        groups.setdefault(key, []).append(record.get("cost") or {})
    ours = [
        {"method": method, "hardware": machine, "runs": len(costs)}
        | {name: _median(costs, name) for name in COLUMNS}
        for (method, machine), costs in groups.items()
    ]
    theirs = [
        {"method": row["method"], "hardware": f"printed: {row['source']}", "runs": None}
        | {name: row.get(name) for name in COLUMNS}
        for row in printed
    ]
    return [*ours, *theirs]


def _processor(hardware: Record) -> str:
    threads = hardware["torch_threads"]
    return f"{hardware['processor']}, {threads} thread{'s' if threads > 1 else ''}"


def _median(costs: Sequence[Record], name: str) -> float | None:
    values = [cost[name] for cost in costs if cost.get(name) is not None]
    return statistics.median(values) if values else None
