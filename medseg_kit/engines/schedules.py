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


def warmup_poly(*, warmup: float, power: float = 0.9, start: float = 1e-3) -> Schedule:
    """Return a linear warm-up from ``start`` to 1, then ``(1 - step / rest)**power``.

    Args:
        warmup: Share of all steps that warms up, in ``[0, 1)``.
        power: Exponent of the decay.
        start: Factor of the first step.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is a share of all steps in [0, 1), got {warmup}")
    return partial(_warmup_poly, warmup=warmup, power=power, start=start)


def staircase(*, gamma: float, num_stages: int) -> Schedule:
    """Return ``gamma`` to the power of the stage, 0 in the first of ``num_stages`` equal stages.

    Args:
        gamma: Factor from one stage to the next.
        num_stages: Stages in which all steps are divided, such as epochs or rounds.
    """
    if num_stages < 1:
        raise ValueError(f"num_stages must be at least 1, got {num_stages}")
    return partial(_staircase, gamma=gamma, num_stages=num_stages)


def gaussian_ramp() -> Schedule:
    """Return the ramp ``exp(-5 (1 - t / T)^2)`` over all steps, from 0.0067 to 1."""
    return _gaussian_ramp


def ssl4mis_ramp(*, block: int = 150, length: int = 200) -> Schedule:
    """Return SSL4MIS's ramp: the same shape, in blocks of steps, whatever the number of all steps.

    Args:
        block: Steps in which it stands still.
        length: Blocks until it reaches 1 (30,000 steps by default).
    """
    return partial(_ssl4mis_ramp, block=block, length=length)


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


def _warmup_poly(
    global_step: int, total_steps: int, *, warmup: float, power: float, start: float
) -> float:
    done = progress(global_step, total_steps)
    if done < warmup:
        return start + (1 - start) * done / warmup
    return float((1 - (done - warmup) / (1 - warmup)) ** power)


def _staircase(global_step: int, total_steps: int, *, gamma: float, num_stages: int) -> float:
    # whole numbers: a share of the steps times the stages may fall just short of one
    stage = min(max(global_step, 0), total_steps) * num_stages // max(total_steps, 1)
    return float(gamma**stage)


def _gaussian_ramp(global_step: int, total_steps: int) -> float:
    return math.exp(-5 * (1 - progress(global_step, total_steps)) ** 2)


def _ssl4mis_ramp(global_step: int, total_steps: int, *, block: int, length: int) -> float:
    del total_steps
    return _gaussian_ramp(global_step // block, length)


def _linear(global_step: int, total_steps: int, *, start: float, end: float) -> float:
    return start + (end - start) * progress(global_step, total_steps)
