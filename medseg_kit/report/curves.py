"""Curves of a study's trainings, means over the seeds: validation, and the pseudo-labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medseg_kit.report.comparison import by_budget, configuration_name
from medseg_kit.report.settings import budget_name

Record = Mapping[str, Any]
Points = list[tuple[float, float]]
Panels = dict[str, dict[str, Points]]


def validation_panels(records: Sequence[Record]) -> Panels:
    """Return the validation metric: a panel a label budget with a line a trained run.

    A federation has a panel of its own, with a line a site: the new global model's metric.

    Args:
        records: Records of a study.
    """
    found: dict[str, dict[str, list[Points]]] = {}
    for record in by_budget(records):
        for curve in record["curves"]:
            if record["mode"] != "federate":
                panel, series = budget_name(record["label_budget"]), record["run"]
            elif curve["series"] == "federated":
                panel, series = f"{configuration_name(record)}: {record['run']}", curve["panel"]
            else:
                continue
            found.setdefault(panel, {}).setdefault(series, []).append(curve["points"])
    return _means(found)


def pseudo_label_panels(records: Sequence[Record]) -> Panels:
    """Return the Dice of the pseudo-labels: a panel a run, a line a branch.

    Args:
        records: Records of a study; those made before the recording have none.
    """
    found: dict[str, dict[str, list[Points]]] = {}
    for record in by_budget(records):
        for curve in record.get("pseudo_labels") or ():
            panel = found.setdefault(configuration_name(record), {})
            panel.setdefault(curve["branch"], []).append(curve["points"])
    return _means(found)


def _means(found: Mapping[str, Mapping[str, Iterable[Points]]]) -> Panels:
    return {
        panel: {name: mean_points(lines) for name, lines in series.items()}
        for panel, series in found.items()
    }


def mean_points(lines: Iterable[Points]) -> Points:
    """Return the mean of lines at each x that any of them has.

    Args:
        lines: Lists of (x, y), one a seed.

    Example:
        >>> mean_points([[(1, 0.2), (2, 0.4)], [(1, 0.4)]])
        [(1.0, 0.3), (2.0, 0.4)]
    """
    values: dict[float, list[float]] = {}
    for points in lines:
        for x, y in points:
            values.setdefault(float(x), []).append(float(y))
    return [(x, round(float(np.mean(values[x])), 6)) for x in sorted(values)]
