"""How `benchmark.py` measures: variants in turn, medians, ratios."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Arguments = argparse.Namespace


def run_process(command: Sequence[str], folder: Path, threads: int) -> dict[str, float]:
    """Return wall and processor seconds and peak memory (GB) of a command and its workers."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    log = folder / "log.txt"
    start, used = time.perf_counter(), children_seconds()
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=stream, stderr=stream
        )
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(0.05)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return {"wall": seconds, "processor": children_seconds() - used, "memory": peak}


def children_seconds() -> float:
    """Return the processor seconds of all processes that this one has started and seen end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def memory_of(pid: int) -> float:
    """Return the resident memory of a process and its children in GB; 0 once it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        members = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in members) / 1e9
    except psutil.NoSuchProcess:
        return 0.0


def interleaved(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Return the results of each variant, run in turn ``repeats`` times."""
    results: dict[str, list[Any]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, function in variants.items():
            results[name].append(function())
    return results


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    """Return a function that returns the seconds of another."""

    def measure() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return measure


def race(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Return wall and processor seconds of each variant, after a first run that does not count."""
    for function in variants.values():
        function()
    return interleaved({name: cost(function) for name, function in variants.items()}, repeats)


def cost(function: Callable[[], Any]) -> Callable[[], dict[str, float]]:
    """Return a function that returns the wall and processor seconds of another."""

    def measure() -> dict[str, float]:
        start, used = time.perf_counter(), time.process_time()
        function()
        return {
            "wall": time.perf_counter() - start,
            "processor": time.process_time() - used,
        }

    return measure


def compare_race(row: str, results: dict[str, list[Any]], goal: float, **more: Any) -> Record:
    """Return a record of a `race` between "peer" and "own", with the ratio of processor time.

    On a busy machine trust the latter: it does not count the time in which others ran.
    """
    peer, own = (
        {kind: [run[kind] for run in results[name]] for kind in ("wall", "processor")}
        for name in ("peer", "own")
    )
    used = compare(row, peer["processor"], own["processor"], goal)
    return compare(
        row, peer["wall"], own["wall"], goal, processor_ratio=used["ratio"], unit="s", **more
    )


def compare(
    row: str, peer: Sequence[float], own: Sequence[float], goal: float, **more: Any
) -> Record:
    """Return a record: medians, and how many times faster (or smaller) than the peer."""
    median_peer, median_own = statistics.median(peer), statistics.median(own)
    return {
        "row": row,
        "peer": round(median_peer, 4),
        "own": round(median_own, 4),
        "ratio": round(median_peer / median_own, 3),
        "goal": goal,
        **more,
    }
