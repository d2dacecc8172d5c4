"""The benchmark: every row runs at its smallest size. How fast is not tested."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

IN_PROCESS = (
    "slices",
    "cross_teaching",
    "mcsc",
    "mcsc_v2",
    "pipeline",
    "registration",
    "superpixels",
    "episode",
    "query",
)
PROCESSES = ("prediction", "help", "round", "aggregation")


@pytest.fixture
def benchmark(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import `scripts/benchmark.py` as the command line does."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    for name in [name for name in sys.modules if name.startswith("benchmark")]:
        monkeypatch.delitem(sys.modules, name)
    spec = importlib.util.find_spec("benchmark")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def records(benchmark: ModuleType, row: str, work: Path) -> list[dict]:
    words = ["--tiny", "--repeats", "1", "--threads", "1", "--work", str(work), "--rows", row]
    return benchmark.ROWS[row](benchmark.parse(words))


def test_rows__are_all_tested(benchmark):
    assert set(benchmark.ROWS) == {*IN_PROCESS, *PROCESSES}


@pytest.mark.parametrize("row", IN_PROCESS)
def test_row__runs_at_the_smallest_size(benchmark, tmp_path, row):
    found = records(benchmark, row, tmp_path)
    assert found
    for record in found:
        assert record["ratio"] > 0
        assert {"row", "peer", "own", "goal"} <= set(record)
        for key in ("equal", "equal_labels"):
            assert record.get(key, 1.0) > 0.95
        assert record.get("difference", 0.0) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("row", PROCESSES)
def test_row__of_processes_runs_at_the_smallest_size(benchmark, tmp_path, row):
    found = records(benchmark, row, tmp_path)
    assert all(record["ratio"] > 0 for record in found)
