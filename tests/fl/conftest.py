"""The toy federation: a small bundle and tiny sites in a temporary folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "toy"))  # the bundle names its parts by dotted path

from toy_federation import install_bundle, make_site


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bundle(tmp_path):
    return install_bundle(tmp_path / "toy_bundle")


@pytest.fixture
def sites(tmp_path):
    """Three sites of 2, 2 and 4 training cases."""
    for number, (name, training) in enumerate((("a", 2), ("b", 2), ("c", 4))):
        make_site(tmp_path / "sites" / name, training=training, seed=number)
    return tmp_path / "sites"
