"""One-shot inference: support scans to prototypes, query volumes to labels, and what goes wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg_kit.inference.fingerprint import network_fingerprint
from medseg_kit.inference.one_shot import OneShotInferer
from medseg_kit.inference.support import SupportHandler, SupportSource
from medseg_kit.networks.mask_copy import MaskCopyClassifier
from medseg_kit.networks.one_shot import ABSENT, OneShotNetwork
from medseg_kit.networks.prototypes import PrototypeClassifier
from medseg_kit.networks.support_prototypes import save_supports
from medseg_kit.transforms.pipelines import volume_preprocessing
from medseg_kit.typing import UserError
from tests.inference.one_shot_parts import (
    ORGANS,
    SIZE,
    Encoder,
    dice,
    scan,
    write,
)

PREPROCESSING = volume_preprocessing(intensity="ct_or_mr")


@pytest.fixture
def network() -> OneShotNetwork:
    return OneShotNetwork(Encoder(), PrototypeClassifier(), ORGANS).eval()


@pytest.fixture
def source(tmp_path: Path) -> SupportSource:
    image, label = write(tmp_path / "support", "s", scan())
    return SupportSource(PREPROCESSING, support=image, support_label=label)


def inferer(source: SupportSource | None, **changes) -> OneShotInferer:
    return OneShotInferer(slice_size=(SIZE, SIZE), support=source, sw_batch_size=5, **changes)


def query(folder: Path, *args, **kwargs) -> tuple[MetaTensor, torch.Tensor]:
    """Return a prepared volume (1, 1, H, W, D) and its label, of `scan` with these arguments."""
    image, label = write(folder / "query", "q", scan(*args, seed=1, **kwargs))
    volume = PREPROCESSING({"image": image})["image"]
    return volume[None], torch.as_tensor(nib.load(label).get_fdata())[None, None]


def test_support__prototypes_are_of_two_by_two_cells(network, source, monkeypatch):
    """ALPNet pools by 2 outside training, by 4 in it."""
    seen, prototypes = set(), PrototypeClassifier.prototypes

    def note(self, features, mask, *, window):
        seen.add((window, self.threshold))
        return prototypes(self, features, mask, window=window)

    monkeypatch.setattr(PrototypeClassifier, "prototypes", note)
    source.supports(network, slice_size=(SIZE, SIZE))
    assert seen == {(2, 0.95)}


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


def test_make_supports__empty_label(network, tmp_path):
    image, label = write(tmp_path, "s", scan(organs=()))
    with pytest.raises(UserError, match=r"s\.nii\.gz is empty: no voxel of liver, spleen"):
        inferer(SupportSource(PREPROCESSING, support=image, support_label=label)).prepare(network)


def test_make_supports__missing_organ_is_said_and_never_found(network, tmp_path, caplog):
    image, label = write(tmp_path / "support", "s", scan(organs=(1,)))
    volume, _ = query(tmp_path)
    with caplog.at_level(logging.WARNING):
        run = inferer(SupportSource(PREPROCESSING, support=image, support_label=label))
        logits = run(volume, network)
    assert "the support has no spleen: it will not be found" in caplog.text
    assert run.warnings == ["the support has no spleen: it is not looked for"]
    assert network.supports
    assert network.supports[0].missing == ("spleen",)
    assert not (logits.argmax(dim=1) == 2).any()


def test_make_supports__organ_marked_in_one_slice_is_said(network, tmp_path, caplog):
    image, label = write(tmp_path / "support", "s", scan())
    stored = nib.load(label)
    values = np.asarray(stored.dataobj).copy()
    middle = int(np.flatnonzero((values == 1).any((0, 1))).mean())
    values[..., :middle][values[..., :middle] == 1] = 0
    values[..., middle + 1 :][values[..., middle + 1 :] == 1] = 0
    nib.save(nib.Nifti1Image(values, stored.affine), label)
    volume, _ = query(tmp_path)
    run = inferer(SupportSource(PREPROCESSING, support=image, support_label=label))
    run(volume, network)
    (said,) = run.warnings
    assert "the support marks liver in 1 slice(s)" in said
    assert said in caplog.text
    assert network.supports[0].short == {"liver": 1}


def test_make_supports__label_of_another_grid(network, tmp_path):
    image, _ = write(tmp_path / "a", "s", scan())
    _, label = write(tmp_path / "b", "s", scan(depth=12))
    other = SupportSource(PREPROCESSING, support=image, support_label=label)
    with pytest.raises(UserError, match="a label lies on the grid of its image"):
        inferer(other).prepare(network)
    image, label = write(tmp_path / "c", "s", scan())
    stored = nib.load(label)
    moved = stored.affine.copy()
    moved[0, 3] += 30.0
    nib.save(nib.Nifti1Image(np.asanyarray(stored.dataobj), moved), label)
    with pytest.raises(UserError, match=r"lies up to 15\.0 voxels beside its image"):
        inferer(SupportSource(PREPROCESSING, support=image, support_label=label)).prepare(network)


def test_make_supports__a_folder_is_no_scan(network, tmp_path):
    _, label = write(tmp_path / "a", "s", scan())
    series = SupportSource(PREPROCESSING, support=tmp_path / "a", support_label=label)
    with pytest.raises(UserError, match="is a folder; one image file is needed"):
        inferer(series).prepare(network)


def test_make_supports__several_scans(network, tmp_path):
    pairs = [write(tmp_path, f"s{shift}", scan(shift, seed=shift)) for shift in (0, 2)]
    images, labels = zip(*pairs, strict=True)
    (both,) = SupportSource(
        PREPROCESSING, support=",".join(images), support_label=list(labels)
    ).supports(network, slice_size=(SIZE, SIZE))
    assert len(both.scans) == 2
    single = inferer(SupportSource(PREPROCESSING, support=images[0], support_label=labels[0]))
    single.prepare(network)
    numbers = [len(part) for parts in network.supports[0].foreground for part in parts]
    twice = [len(part) for parts in both.foreground for part in parts]
    assert all(more > number for more, number in zip(twice, numbers, strict=True))

    with pytest.raises(UserError, match="2 support scans and 1 labels"):
        inferer(SupportSource(PREPROCESSING, support=images, support_label=labels[0])).prepare(
            network
        )


def test_make_supports__one_set_a_modality(network, tmp_path):
    pairs = [write(tmp_path, f"s{ct}", scan(ct=ct)) for ct in (True, False)]
    images, labels = zip(*pairs, strict=True)
    run = inferer(SupportSource(PREPROCESSING, support=images, support_label=labels))
    run.prepare(network)
    assert [each.modality for each in network.supports] == ["CT", "MR"]
    for ct in (True, False):
        volume, truth = query(tmp_path, ct=ct)
        labels = run(volume, network).argmax(dim=1, keepdim=True)
        assert [dice(labels, truth, value) > 0.75 for value in (1, 2)] == [True, True]


def test_make_supports__leaves_the_mode_of_the_network(network, source):
    network.train()
    source.supports(network, slice_size=(SIZE, SIZE))
    assert network.training


def test_support_source__file_of_other_weights(network, source, tmp_path):
    path = save_supports(tmp_path / "p.pt", source.supports(network, slice_size=(SIZE, SIZE)))
    SupportSource(PREPROCESSING, support=path).supports(network, slice_size=(SIZE, SIZE))
    with torch.no_grad():
        network.encoder.scale.add_(1)
    with pytest.raises(UserError, match="made with other weights"):
        SupportSource(PREPROCESSING, support=path).supports(network, slice_size=(SIZE, SIZE))
    with pytest.raises(UserError, match="need no --support_label"):
        SupportSource(PREPROCESSING, support=path, support_label="x").supports(
            network, slice_size=(SIZE, SIZE)
        )


def test_support_source__file_of_other_settings(network, source, tmp_path):
    path = save_supports(tmp_path / "p.pt", source.supports(network, slice_size=(SIZE, SIZE)))
    half = SupportSource(PREPROCESSING, support=path)
    with pytest.raises(UserError, match=r"made with \{'size': \[32, 32\]\}, now it is .*16"):
        half.supports(network, slice_size=(SIZE // 2, SIZE // 2))


def test_support_source__one_file_a_modality(network, source, tmp_path):
    ct = write(tmp_path / "ct", "s", scan(ct=True))
    other = SupportSource(PREPROCESSING, support=ct[0], support_label=ct[1])
    files = []
    for name, each in (("mr", source), ("ct", other)):
        inferer(each).prepare(network)
        files.append(save_supports(tmp_path / f"{name}.pt", network.supports))
    run = inferer(SupportSource(PREPROCESSING, support=",".join(map(str, files))))
    run.prepare(network)
    assert [each.modality for each in network.supports] == ["MR", "CT"]
    for support, message in (
        ([files[0], files[0]], "several supports of MR"),
        ([files[0], ct[0]], "stand with no scan"),
        ([files[0], tmp_path / "no.pt"], "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            inferer(SupportSource(PREPROCESSING, support=support)).prepare(network)


def test_support_source__several_prepared_data_sets(network, tmp_path):
    for name, ct in (("one", False), ("two", True)):
        write(tmp_path / name, "s", scan(ct=ct))
        files = {"image": "images/s.nii.gz", "label": "labels/s.nii.gz"}
        content = {
            "schema": 1,
            "name": name,
            "modality": "MR",
            "intensity": "arbitrary",
            "spacing": "valid",
            "labels": {"0": "background", **{str(i): o for i, o in enumerate(ORGANS, 1)}},
            "annotated": ORGANS,
            "training": [{**files, "subject": name, "support": True}],
            "validation": [],
            "test": [],
            "sha256": {},
        }
        (tmp_path / name / "datalist.json").write_text(json.dumps(content))
    folders = f"{tmp_path / 'one'},{tmp_path / 'two' / 'datalist.json'}"
    inferer(SupportSource(PREPROCESSING, support=folders)).prepare(network)
    assert [each.modality for each in network.supports] == ["CT", "MR"]
    with pytest.raises(UserError, match="knows its labels"):
        inferer(SupportSource(PREPROCESSING, support=folders, support_label="x")).prepare(network)


@pytest.mark.parametrize(
    ("file", "spoil", "message"),
    [
        (0, lambda path: path.write_bytes(path.read_bytes()[:-40]), "s.nii.gz cannot be read"),
        (1, lambda path: path.write_text("hello"), "cannot be read .*copy it again"),
        (0, lambda path: nib.save(nib.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4)), path), "equal"),
    ],
)
def test_make_supports__damaged_files_are_named(network, tmp_path, file, spoil, message):
    pair = write(tmp_path, "s", scan())
    if message == "equal":
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), pair[1])
    spoil(Path(pair[file]))
    support = SupportSource(PREPROCESSING, support=pair[0], support_label=pair[1])
    with pytest.raises(UserError, match=message):
        inferer(support).prepare(network)


def test_support_source__file_of_another_classifier(network, source, tmp_path):
    file = save_supports(tmp_path / "p.pt", source.supports(network, slice_size=(SIZE, SIZE)))
    network.classifier.scale = 10.0  # decides nothing about prototypes
    again = SupportSource(PREPROCESSING, support=file)
    again.supports(network, slice_size=(SIZE, SIZE))
    network.classifier.threshold = 0.3
    with pytest.raises(UserError, match=r"was made with \{'threshold': 0.95\}"):
        again.supports(network, slice_size=(SIZE, SIZE))


@pytest.mark.parametrize("option", ["threshold", "scale", "renormalise_aggregate"])
def test_fingerprint__of_the_network_names_its_classifiers_options(network, option):
    before = network_fingerprint(network)
    setattr(network.classifier, option, not getattr(network.classifier, option))
    assert network_fingerprint(network) != before


def test_support_handler__makes_them_with_the_present_weights(network, source):
    run = inferer(source)
    handler = SupportHandler(run, network)
    digests = []
    for _ in range(2):
        handler(None)
        assert network.supports
        digests.append(network.supports[0].digest)
        with torch.no_grad():
            network.encoder.scale.add_(1)
    assert digests[0] != digests[1]
