"""Ramps and learning-rate factors as functions of the step and of all steps planned.

They take the step's own persisted counter, never an engine's ``max_epochs``: in a federation the
engine sees one round at a time, while a schedule runs over all rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

Schedule = Callable[[int, int], float]
"""``(global_step, total_steps) -> factor``; clamps to its end value after ``total_steps``."""


def constant() -> Schedule:
    """Return a factor of 1 throughout."""
    return _constant


def cosine(*, warmup: float = 0.0, minimum: float = 0.0) -> Schedule:
    """Return a half cosine from 1 to ``minimum`` after a linear warm-up.

    Args:
        warmup: Share of all steps that warms up linearly from 0 to 1, in ``[0, 1)``.
        minimum: Factor at the end.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of all steps in [0, 1), got {warmup}")
    return partial(_cosine, warmup=warmup, minimum=minimum)


def poly(*, power: float = 0.9) -> Schedule:
    """Return ``(1 - step / total)**power``."""
    return partial(_poly, power=power)


def linear(start: float, end: float) -> Schedule:
    """Return a straight line from ``start`` to ``end``."""
    return partial(_linear, start=start, end=end)


def progress(global_step: int, total_steps: int) -> float:
    """Return the share of the planned steps that is done, clamped to ``[0, 1]``."""
    if total_steps < 1:
        raise ValueError(f"total_steps must be at least 1, got {total_steps}")
    return min(max(global_step / total_steps, 0.0), 1.0)


def _constant(global_step: int, total_steps: int) -> float:
    return 1.0


def _cosine(global_step: int, total_steps: int, *, warmup: float, minimum: float) -> float:
    done = progress(global_step, total_steps)
    if done < warmup:
        # the first step already learns: its factor is that of the end of the step
        return min(progress(global_step + 1, total_steps) / warmup, 1.0)
    share = (done - warmup) / (1 - warmup)
    return minimum + (1 - minimum) * 0.5 * (1 + math.cos(math.pi * share))


def _poly(global_step: int, total_steps: int, *, power: float) -> float:
    return float((1 - progress(global_step, total_steps)) ** power)


def _linear(global_step: int, total_steps: int, *, start: float, end: float) -> float:
    return start + (end - start) * progress(global_step, total_steps)
