"""Shared fixtures and the order of the run: quick tests first, skipped ones named at the end."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run unit tests before slow ones, and those before whole bundles and federations."""
    items.sort(
        key=lambda item: (
            item.get_closest_marker("integration") is not None,
            item.get_closest_marker("slow") is not None,
        )
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count and name what was skipped, so that a green run cannot hide it."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section(f"{len(skipped)} skipped")
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        terminalreporter.line(f"{report.nodeid}: {str(reason).removeprefix('Skipped: ')}")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def medseg_data() -> Path:
    """Return the folder of real data; tests that need it skip without `MEDSEG_DATA`."""
    folder = os.environ.get("MEDSEG_DATA")
    if not folder:
        pytest.skip("MEDSEG_DATA is not set: no real data")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"MEDSEG_DATA={folder} is not a folder")
    return path


@pytest.fixture(autouse=True)
def _single_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test from seeing bundles or ranks that the caller's shell names."""
    for name in ("MEDSEG_BUNDLES", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def with_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in bfloat16 where it is asked for, on a processor that only emulates it, too."""
    monkeypatch.setattr("medseg_kit.engines.precision.has_gain", lambda *_: True)


@pytest.fixture
def toy_bundle(tmp_path: Path) -> Path:
    """Return a bundle whose run prints its learning rate and root; nothing heavy is built."""
    root = tmp_path / "bundles" / "toy_mr_net"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "0.1.0"}))
    config = {
        "bundle_root": {"_target_": "medseg_kit.bundle.paths.find_bundle_root", "name": root.name},
        "learning_rate": 0.1,
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2},
        "train": {"trainer": {"max_epochs": 2}, "handlers": [{"interval": 1}]},
        "initialize": [{"_target_": "medseg_kit.bundle.config.check_overrides"}],
        "run": ["$print('ran', @learning_rate, @train#trainer#max_epochs, @bundle_root)"],
    }
    (root / "configs" / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return root
