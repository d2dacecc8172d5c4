"""State-dict algebra of a federation: pure functions over tensors, aligned by key.

All reductions run in float64 and in sorted site order, so that every engine gets the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

# Elements reduced at a time: two float64 buffers of this size (1 MiB) stay in a core's cache.
BLOCK = 1 << 16
MAX_KEYS_NAMED = 5


def weighted_mean(
    states: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float]
) -> StateDict:
    """Return the weighted mean of every key over the sites that hold it.

    Floating entries are summed in float64 in sorted site order and returned in the dtype of the
    first site; integer and boolean entries (batch counters) are copied from the first site.

    Args:
        states: State of each site; the sites may hold different keys.
        weights: Weight of each site in ``states``, at least 0; only ratios matter.

    Raises:
        ValueError: If no state is given, a weight is missing, negative or not finite, all holders
            of a key weigh 0, or two sites disagree about the shape of a key.
    """
    sites = sorted(states)
    if not sites:
        raise ValueError("no states to average: no site answered")
    for site in sites:
        weight = weights.get(site, math.nan)
        if not math.isfinite(weight) or weight < 0:
            raise ValueError(f"site {site!r} has the weight {weight}; give a finite number >= 0")
    holders: dict[str, list[str]] = {}
    for site in sites:
        for key in states[site]:
            holders.setdefault(key, []).append(site)
    buffers = torch.empty(2, BLOCK, dtype=torch.float64)
    return {
        key: _mean_of_key(key, {site: states[site][key] for site in names}, weights, buffers)
        for key, names in holders.items()
    }


def _mean_of_key(
    key: str,
    tensors: Mapping[str, torch.Tensor],
    weights: Mapping[str, float],
    buffers: torch.Tensor,
) -> torch.Tensor:
    sites = list(tensors)
    first = tensors[sites[0]]
    for site in sites[1:]:
        if tensors[site].shape != first.shape:
            raise ValueError(
                f"{key}: site {sites[0]!r} has shape {tuple(first.shape)}, "
                f"site {site!r} has {tuple(tensors[site].shape)}"
            )
    weighing = [site for site in sites if weights[site] > 0]
    if not weighing:
        raise ValueError(f"{key}: all of its sites {sites} have the weight 0")
    if not first.is_floating_point() or len(weighing) == 1:
        return tensors[weighing[0]].detach().clone()
    total = math.fsum(weights[site] for site in weighing)
    parts = [
        (weights[site] / total, tensors[site].detach().contiguous().reshape(-1))
        for site in weighing
    ]
    result = torch.empty(first.numel(), dtype=first.dtype)
    for start in range(0, first.numel(), BLOCK):
        stop = min(start + BLOCK, first.numel())
        accumulator, scratch = buffers[0, : stop - start], buffers[1, : stop - start]
        for position, (share, values) in enumerate(parts):
            target = scratch if position else accumulator
            target.copy_(values[start:stop])
            if position:
                accumulator.add_(scratch, alpha=share)
            else:
                accumulator.mul_(share)
        result[start:stop] = accumulator
    return result.reshape(first.shape)


def difference(
    state: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]
) -> StateDict:
    """Return ``state - reference`` for the floating keys that both hold."""
    return {
        key: state[key].detach() - reference[key].detach()
        for key in sorted(state.keys() & reference.keys())
        if state[key].is_floating_point()
    }


def norm(state: Mapping[str, torch.Tensor]) -> float:
    """Return the Euclidean norm over all floating entries."""
    norms = [
        float(torch.linalg.vector_norm(state[key].detach(), dtype=_at_least_float32(state[key])))
        for key in sorted(state)
        if state[key].is_floating_point()
    ]
    return math.sqrt(math.fsum(value * value for value in norms))


def _at_least_float32(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over sorted keys, dtypes, shapes and bytes: equal digest, equal weights."""
    total = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        total.update(f"{key}|{describe(tensor)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def select(state: Mapping[str, torch.Tensor], wanted: Callable[[str], bool]) -> StateDict:
    """Return the entries whose key is wanted, as they are (no copy)."""
    return {key: value for key, value in state.items() if wanted(key)}


def copy_state(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Return a detached copy on the CPU that shares no memory with ``state``."""
    return {
        key: value.detach().clone(memory_format=torch.contiguous_format).cpu()
        for key, value in state.items()
    }


def num_bytes(state: Mapping[str, torch.Tensor]) -> int:
    """Return the size of all entries in bytes."""
    return sum(value.numel() * value.element_size() for value in state.values())


def describe(tensor: torch.Tensor) -> str:
    """Return dtype and shape as text.

    >>> describe(torch.zeros(2, 3))
    'float32[2,3]'
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    return f"{kind}[{','.join(str(side) for side in tensor.shape)}]"


def mismatch(state: Mapping[str, torch.Tensor], expected: Mapping[str, str]) -> str | None:
    """Return what is wrong with a received state, or None if it can be averaged.

    Args:
        state: What arrived.
        expected: Key to dtype and shape as `describe` writes them.
    """
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        return "wrong keys: " + "; ".join(
            f"{len(keys)} {word} ({_some(keys)})"
            for word, keys in (("missing", missing), ("unexpected", unknown))
            if keys
        )
    wrong = [key for key in sorted(state) if describe(state[key]) != expected[key]]
    if wrong:
        key = wrong[0]
        return f"wrong shapes: {key} is {describe(state[key])}, expected {expected[key]}" + (
            f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        )
    bad = [
        key
        for key in sorted(state)
        if state[key].is_floating_point() and not _is_finite(state[key])
    ]
    return f"NaN or infinite values in {len(bad)} keys ({_some(bad)})" if bad else None


def _is_finite(tensor: torch.Tensor) -> bool:
    # NaN and infinity survive a sum, so a finite sum, which is cheap, settles it; else look closely
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _some(keys: Iterable[str]) -> str:
    names = list(keys)
    more = len(names) - MAX_KEYS_NAMED
    return ", ".join(names[:MAX_KEYS_NAMED]) + (f", and {more} more" if more > 0 else "")
