"""The toy federation: a small bundle and tiny sites in a temporary folder."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from gates import global_state, toy_options
from toy_federation import install_bundle, make_sites

from medseg_kit.fl.client import SiteClient
from medseg_kit.fl.simulation import simulate


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
    return make_sites(tmp_path / "sites")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A federation of three rounds: its folders, summary, requests and global weights by round."""
    folder = tmp_path_factory.mktemp("finished")
    found = SimpleNamespace(
        bundle=install_bundle(folder / "toy_bundle"),
        sites=make_sites(folder / "sites"),
        out=folder / "out",
        received={},
        states={},
    )
    handle = SiteClient.handle

    def spy(client, request):
        name = client.config.name
        found.received[request.kind, request.round_number, name] = dict(request.state)
        return handle(client, request)

    def remember(record):
        found.states[record["round"]] = global_state(found.out)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "NvImgCodecPydicomReader")
        patch.setattr(SiteClient, "handle", spy)
        torch.set_num_threads(1)
        found.summary = simulate(
            found.bundle, found.sites, found.out, options=toy_options(), on_round=remember
        )
    return found
