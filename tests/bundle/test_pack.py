"""Packing: the weights fit the deployed network, and half precision changes kernels only."""

import pytest
import torch

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.new import write_bundle
from medseg_kit.bundle.pack import half_precision, pack_weights
from medseg_kit.typing import UserError


def new_bundle(folder):
    return write_bundle("toy_mr_segviz", ["a", "b"], like="hippocampus_mr_segviz", folder=folder)


def test_half_precision__keeps_vectors_and_integers():
    state = {
        "kernel": torch.full((2, 2), 0.1),
        "running_var": torch.tensor([1e6]),
        "num_batches_tracked": torch.tensor(3),
    }
    packed = half_precision(state)
    assert packed["kernel"].dtype == torch.float16
    assert packed["running_var"].item() == 1e6
    assert packed["num_batches_tracked"].dtype == torch.int64


def test_pack__wrong_network_is_an_error_and_writes_nothing(tmp_path):
    root = new_bundle(tmp_path)
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError):
        pack_weights(root, tmp_path / "other.pt")
    assert list((root / "models").glob("*")) == []


def test_pack__weights_load_strictly_afterwards(tmp_path):
    root = new_bundle(tmp_path)
    network = load_config(root, ["inference.yaml"]).get_parsed_content("network_def")
    torch.save(network.state_dict(), tmp_path / "trained.pt")
    path = pack_weights(root, tmp_path / "trained.pt")
    packed = torch.load(path, weights_only=True)
    network.load_state_dict(packed)
    assert path.stat().st_size < 0.6 * (tmp_path / "trained.pt").stat().st_size


def test_new__keeps_all_regions_of_its_organs(tmp_path):
    root = write_bundle("toy_ct_segviz", ["a", "b"], like="abdomen_ct_segviz", folder=tmp_path)
    assert "num_regions: [null, null] #" in (root / "configs" / "inference.yaml").read_text()
