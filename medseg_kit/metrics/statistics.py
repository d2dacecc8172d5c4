"""Intervals and tests that respect patients: bootstrap by patient, paired Wilcoxon and bootstrap.

A patient's cases, frames, structures and training seeds are not independent: they are averaged
first, and patients are resampled. Several comparisons in one table are corrected by Holm's
step-down method.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NUM_RESAMPLES = 10_000


def patient_means(rows: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the mean value of each patient, NaN left out; a patient with only NaN is absent.

    Args:
        rows: (patient, value) pairs, several per patient allowed.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for patient, value in rows:
        if not np.isnan(value):
            values[patient].append(value)
    return {patient: float(np.mean(items)) for patient, items in sorted(values.items())}


def bootstrap_interval(
    values: Mapping[str, float],
    *,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over patients.

    Below two patients there is none: (NaN, NaN).

    Args:
        values: Patient -> value.
        level: Coverage in (0, 1).
        num_resamples: Number of resamples.
        seed: The same seed gives the same interval.
    """
    sample = np.array([values[patient] for patient in sorted(values)], dtype=float)
    if sample.size < 2:
        return float("nan"), float("nan")
    result = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=level,
        n_resamples=num_resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_comparison(
    first: Mapping[str, float],
    second: Mapping[str, float],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> dict[str, Any]:
    """Compare two models on the patients that both have.

    Args:
        first: Patient -> value of the first model.
        second: Patient -> value of the second model.
        seed: Seed of the bootstrap.
        num_resamples: Number of resamples.

    Returns:
        `n` shared patients, `difference` (mean of first - second), `difference_low` and
        `difference_high` (95 % bootstrap interval of the paired differences), `wilcoxon_p`
        (two-sided signed rank; 1 when all differences are 0, None below two patients) and
        `n_unpaired` (patients that only one model has).
    """
    shared = sorted(set(first) & set(second))
    differences = {patient: first[patient] - second[patient] for patient in shared}
    low, high = bootstrap_interval(differences, seed=seed, num_resamples=num_resamples)
    values = np.array(list(differences.values()), dtype=float)
    return {
        "n": len(shared),
        "n_unpaired": len(set(first) ^ set(second)),
        "difference": float(values.mean()) if shared else None,
        "difference_low": low if len(shared) > 1 else None,
        "difference_high": high if len(shared) > 1 else None,
        "wilcoxon_p": wilcoxon_p(values) if len(shared) > 1 else None,
    }


def wilcoxon_p(differences: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Return the two-sided p value of Wilcoxon's signed rank test (1 when no difference is left).

    Zero differences are dropped; the exact distribution is used where it holds (few patients, no
    ties).

    Args:
        differences: Paired differences, one per patient.
    """
    values = np.asarray(differences, dtype=float)
    values = values[values != 0]
    if values.size == 0:
        return 1.0
    ties = np.unique(np.abs(values)).size < values.size
    method = "exact" if values.size <= 50 and not ties else "asymptotic"
    return float(stats.wilcoxon(values, method=method).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for several comparisons by Holm's step-down method.

    Args:
        p_values: Uncorrected p values in [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    stepped = np.minimum(
        np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors), 1.0
    )
    corrected = np.empty(len(p_values))
    corrected[order] = stepped
    return [float(value) for value in corrected]
