"""Support scans to prototypes: what they are made of, where they come from, and bad files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg_kit.inference.fingerprint import network_fingerprint
from medseg_kit.inference.support import SupportHandler, SupportSource
from medseg_kit.networks.one_shot import OneShotNetwork
from medseg_kit.networks.prototypes import PrototypeClassifier
from medseg_kit.networks.support_prototypes import save_supports
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


def test_support__prototypes_are_of_two_by_two_cells(network, source, monkeypatch):
    """ALPNet pools by 2 outside training, by 4 in it."""
    seen, prototypes = set(), PrototypeClassifier.prototypes

    def note(self, features, mask, *, window):
        seen.add((window, self.threshold))
        return prototypes(self, features, mask, window=window)

    monkeypatch.setattr(PrototypeClassifier, "prototypes", note)
    source.supports(network, slice_size=(SIZE, SIZE))
    assert seen == {(2, 0.95)}


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
