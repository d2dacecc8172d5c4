"""A folder of wheels and bundles installs where no package index can be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.integration]


def run(command, **changes):
    environment = {**os.environ, "PYTHON": sys.executable, **changes}
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def without_network():
    """Return the prefix that takes a command off the network, where this user may do that."""
    prefix = ["unshare", "--net"]
    allowed = shutil.which("unshare") and not subprocess.call([*prefix, "true"], stderr=-3)
    return prefix if allowed else []


def test_offline_bundle__installs_without_an_index(repository, tmp_path):
    collected, target = tmp_path / "collected", tmp_path / "hospital"
    run(["bash", repository / "scripts" / "offline_bundle.sh", collected])
    offline = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    run([*without_network(), "bash", collected / "install.sh", target], **offline)

    medseg = [*without_network(), target / ".venv" / "bin" / "medseg"]
    shown = subprocess.run(
        [*medseg, "doctor"], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    bundles = {path.parents[1].name for path in repository.glob("bundles/*/configs/metadata.json")}
    assert f"Bundles in {target / 'bundles'}" in shown.stdout, shown.stdout + shown.stderr
    assert all(name in shown.stdout for name in bundles)
    run([*medseg, "predict", "--help"])
