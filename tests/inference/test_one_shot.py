"""One-shot inference: support scans to prototypes, query volumes to labels, and what goes wrong."""

from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg_kit.inference.support import SupportSource
from medseg_kit.networks.mask_copy import MaskCopyClassifier
from medseg_kit.networks.one_shot import ABSENT, OneShotNetwork
from medseg_kit.networks.prototypes import PrototypeClassifier
from medseg_kit.typing import UserError
from tests.inference.one_shot_parts import (
    ORGANS,
    PREPROCESSING,
    SIZE,
    Encoder,
    dice,
    inferer,
    query,
    scan,
    write,
)


@pytest.fixture
def network() -> OneShotNetwork:
    return OneShotNetwork(Encoder(), PrototypeClassifier(), ORGANS).eval()


def test_one_shot_inferer__superpixels_of_the_query_draw_the_borders(network, source, tmp_path):
    volume, truth = query(tmp_path)
    plain, refined = (
        inferer(source, superpixel_size=size)(volume, network).argmax(dim=1, keepdim=True)
        for size in (None, 20)
    )
    for organ in (1, 2):
        assert dice(refined, truth, organ) > dice(plain, truth, organ)
    with pytest.raises(ValueError, match="superpixel_size must be at least 1"):
        inferer(source, superpixel_size=0)


@pytest.mark.parametrize("extent", ["full", "oracle"])
@pytest.mark.parametrize("shift", [0, 3])
def test_one_shot_inferer__finds_the_organs_of_another_scan(
    network, source, tmp_path, extent, shift
):
    volume, truth = query(tmp_path, shift)
    logits = inferer(source, extent=extent)(volume, network, label=truth)

    assert logits.shape == (1, 3, SIZE, SIZE, 18)
    assert type(logits) is torch.Tensor
    labels = logits.argmax(dim=1, keepdim=True)
    floor = 0.85 if extent == "oracle" else 0.75
    assert [dice(labels, truth, value) > floor for value in (1, 2)] == [True, True]


def test_one_shot_inferer__oracle_leaves_slices_without_the_organ_empty(network, source, tmp_path):
    volume, truth = query(tmp_path)
    labels = inferer(source, extent="oracle")(volume, network, label=truth).argmax(dim=1)
    for value in (1, 2):
        empty = ~(truth[0, 0] == value).any(dim=0).any(dim=0)
        assert not (labels[0][..., empty] == value).any()


def test_one_shot_inferer__query_without_an_organ(network, source, tmp_path):
    volume, truth = query(tmp_path, organs=(1,))
    oracle = inferer(source, extent="oracle")(volume, network, label=truth).argmax(dim=1)
    full = inferer(source)(volume, network).argmax(dim=1)
    assert not (oracle == 2).any()
    assert (full == 2).sum() < 0.1 * (truth == 1).sum()  # nothing looks like the spleen
    assert dice(full[:, None], truth, 1) > 0.75


@pytest.mark.parametrize("superpixel_size", [None, 20])
def test_one_shot_inferer__query_without_any_organ(
    network, source, tmp_path, monkeypatch, superpixel_size
):
    volume, truth = query(tmp_path)
    run = inferer(source, extent="oracle", superpixel_size=superpixel_size)
    assert not run(volume, network, label=torch.zeros_like(truth)).argmax(dim=1).any()
    run = inferer(source, superpixel_size=superpixel_size)
    nothing = torch.full((18, 2), ABSENT)  # a scan that ends above the organs
    monkeypatch.setattr("medseg_kit.inference.one_shot.find_parts", lambda *_, **__: nothing)
    assert not run(volume, network).argmax(dim=1).any()


def test_one_shot_inferer__a_batch_is_its_volumes(network, source, tmp_path):
    first, _ = query(tmp_path)
    second, _ = query(tmp_path, 2)
    run = inferer(source)
    both = run(torch.cat([first.as_tensor(), second.as_tensor()]), network)
    torch.testing.assert_close(both[1:], run(second.as_tensor(), network), rtol=0, atol=1e-5)


def test_one_shot_inferer__copies_the_support_mask(source, tmp_path):
    """The floor: no weights, the same answer whatever the query shows."""
    network = OneShotNetwork(torch.nn.Identity(), MaskCopyClassifier(), ORGANS).eval()
    volume, truth = query(tmp_path)
    run = inferer(source, extent="oracle")
    labels = run(volume, network, label=truth).argmax(dim=1, keepdim=True)
    assert [dice(labels, truth, value) > 0.6 for value in (1, 2)] == [True, True]
    blank = run(torch.zeros_like(volume), network, label=truth).argmax(dim=1, keepdim=True)
    assert torch.equal(labels, blank)


def test_one_shot_inferer__under_autocast(network, source, tmp_path):
    """A margin in bfloat16 does not fit among those in float32."""
    volume, truth = query(tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        labels = inferer(source)(volume, network).argmax(dim=1, keepdim=True)
    assert [dice(labels, truth, value) > 0.75 for value in (1, 2)] == [True, True]


@pytest.mark.usefixtures("with_bf16")
def test_one_shot_inferer__fast(network, source, tmp_path):
    volume, truth = query(tmp_path)
    seen = []
    network.encoder.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    labels = inferer(source, fast=True)(volume, network).argmax(dim=1, keepdim=True)
    assert seen[-1]  # the query's slices; the support's before are made in full precision
    assert [dice(labels, truth, value) > 0.75 for value in (1, 2)] == [True, True]


def test_one_shot_inferer__oracle_needs_the_ground_truth(network, source):
    with pytest.raises(ValueError, match="takes the slices from the ground truth"):
        inferer(source, extent="oracle")(torch.zeros(1, 1, 8, 8, 8), network)


@pytest.mark.parametrize("changes", [{"extent": "all"}, {"rule": "nearest"}])
def test_one_shot_inferer__wrong_choice(changes):
    with pytest.raises(ValueError, match="must be one of"):
        inferer(None, **changes)


def test_one_shot_inferer__no_support_names_the_command(network, tmp_path):
    volume, _ = query(tmp_path)
    with pytest.raises(UserError, match="medseg support BUNDLE"):
        inferer(None)(volume, network)
    nowhere = SupportSource(PREPROCESSING, support=str(tmp_path / "support_prototypes.pt"))
    with pytest.raises(UserError, match=r"support_prototypes\.pt does not exist.*medseg support"):
        inferer(nowhere)(volume, network)


def test_one_shot_inferer__other_modality(network, source, tmp_path):
    volume, _ = query(tmp_path, ct=True)
    with pytest.raises(UserError, match="the query is CT, the support MR"):
        inferer(source)(volume, network)


def test_one_shot_inferer__other_spacing_is_stated(network, source, tmp_path, caplog):
    volume, _ = query(tmp_path)
    small = MetaTensor(volume.as_tensor(), affine=torch.diag(torch.tensor([1.0, 1, 5, 1])))
    with caplog.at_level(logging.WARNING):
        inferer(source)(small, network)
    assert "field of view is 32 x 32 mm, the support's 64 x 64" in caplog.text


def test_one_shot_inferer__another_shape_is_stated_in_the_warnings(network, source, tmp_path):
    volume, _ = query(tmp_path)
    run = inferer(source)
    run(volume, network)
    assert run.warnings == []
    narrow = tuple(array[:, SIZE // 4 : -SIZE // 4] for array in scan(seed=1))
    image, _ = write(tmp_path / "narrow", "q", narrow)
    run(PREPROCESSING({"image": image})["image"][None], network)
    assert [text.startswith("the query's field of view is 64 x 32") for text in run.warnings] == [
        True
    ]


@pytest.mark.parametrize("direction", ["S", None])
def test_one_shot_inferer__axial_slices_of_a_volume_with_thin_ones(network, tmp_path, direction):
    affine = np.diag([2.0, 2, 1.5, 1])  # slices thinner than their pixels
    for name in ("support", "query"):
        image, label = write(tmp_path / name, "s", scan())
        for path in (image, label):
            nib.save(nib.Nifti1Image(np.asanyarray(nib.load(path).dataobj), affine), path)
    volume = PREPROCESSING({"image": image})["image"][None]
    source = SupportSource(
        PREPROCESSING,
        support=tmp_path / "support" / "images" / "s.nii.gz",
        support_label=tmp_path / "support" / "labels" / "s.nii.gz",
    )
    run = inferer(source, direction=direction)
    run(volume, network)
    depth = volume.shape[-1]
    assert (len(network.supports[0].scans[0].profile) == depth) == (direction == "S")
    with pytest.raises(ValueError, match="direction must be one of"):
        inferer(source, direction="axial")
