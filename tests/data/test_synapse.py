"""The eight Synapse organs of BTCV, and copies with numbers of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_kit.cli.data import prepare
from medseg_kit.data.datalist import read_datalist
from medseg_kit.data.findings import DataProblemsError
from medseg_kit.data.label_map import parse_label_map
from medseg_kit.data.manifest import load_dataset_manifest
from medseg_kit.data.plan import make_plan
from medseg_kit.data.prepare import prepare_dataset
from medseg_kit.typing import UserError

ORGANS = [
    *("aorta", "gallbladder", "left kidney", "right kidney"),
    *("liver", "pancreas", "spleen", "stomach"),
]


@pytest.mark.parametrize("name", ["btcv", "btcv_8bit"])
def test_synapse__view_and_lists(name: str) -> None:
    manifest = load_dataset_manifest(name)
    view = manifest.views["synapse8"]
    assert list(view.organs) == ORGANS
    # algorithms of the community: raw -> target, other raw values are background
    assert view.mapping(ORGANS) == {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}
    for value, target in view.mapping(ORGANS).items():
        assert manifest.labels[value] == view.organs[target - 1]
    published = manifest.splits["published"].sections
    assert (len(published["training"]), len(published["test"])) == (18, 12)
    assert published["training"][:4] == ("0031", "0007", "0009", "0005")
    everybody = {*published["training"], *published["test"]}
    assert everybody == {f"{n:04d}" for n in (*range(1, 11), *range(21, 41))}
    development = manifest.splits["development"].sections
    assert development["training"] == published["training"][:16]


# The tiny set of conftest with raw values 1 and 3 on the right and left, 2 the liver.
TINY = {"1": "left part", "2": "liver", "3": "right part"}


def test_label_map__replaces_the_manifest(
    raw_set: Path, manifest_file: Callable[..., Path], tmp_path: Path
) -> None:
    manifest = str(manifest_file(laterality=[]))
    code = prepare(
        manifest,
        source=str(raw_set),
        out=str(tmp_path / "out"),
        label_map="1:liver,2:parts,3:parts",
    )
    assert code == 0
    raw = np.asarray(nib.load(raw_set / "labelsTr" / "case_0.nii.gz").dataobj)
    label = np.asarray(nib.load(tmp_path / "out" / "labels" / "case_0.nii.gz").dataobj)
    assert np.array_equal(label, np.array([0, 1, 2, 2])[raw])


def test_label_map__sides_are_still_checked(
    raw_set: Path, manifest_file: Callable[..., Path], tmp_path: Path
) -> None:
    view = {1: {"name": "liver", "raw": [2]}, 2: {"name": "right part", "raw": [1]}}
    manifest = manifest_file(views={"two": view}, sites={})
    swapped = {int(value): organ for value, organ in TINY.items()}
    plan = make_plan(manifest, source=raw_set, label_map=swapped)
    with pytest.raises(DataProblemsError, match=r"\[laterality\].*right part .* left of left part"):
        prepare_dataset(plan, tmp_path / "out")
    plan = make_plan(
        manifest, source=raw_set, label_map={2: "liver", 1: "right part", 3: "left part"}
    )
    prepare_dataset(plan, tmp_path / "out")
    assert read_datalist(tmp_path / "out")["annotated"] == ["liver", "right part"]


def test_label_map__mistakes_are_named(raw_set: Path, manifest_file: Callable[..., Path]) -> None:
    def plan(text: str) -> None:
        make_plan(manifest_file(), source=raw_set, label_map=parse_label_map(text))

    for text in ("liver", "1", "x:liver", "1:"):
        with pytest.raises(UserError, match="must read VALUE:ORGAN"):
            plan(text)
    with pytest.raises(UserError, match=r"no organ 'livr'.*did you mean liver"):
        plan("1:livr")
    with pytest.raises(UserError, match="value 0 is the background"):
        plan("0:liver")
    with pytest.raises(UserError, match="names no organ of view two"):
        plan("1:right part")
    with pytest.raises(UserError, match="no organ 'heart'"):
        plan("4:heart")
