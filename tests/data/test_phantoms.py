"""Synthetic patients: seeded, valid, different at each site, and no task for a threshold."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_kit.data.datalist import annotated_organs, load_datalist, read_datalist
from medseg_kit.data.phantom_image import Phantom
from medseg_kit.data.phantoms import (
    ABDOMEN,
    ANATOMIES,
    CARDIAC,
    HIPPOCAMPUS,
    Scanner,
    draw_phantom,
    site_scanner,
    write_phantom_dataset,
    write_phantom_raw,
    write_phantom_sites,
)
from medseg_kit.data.plan import make_plan
from medseg_kit.data.prepare import prepare_dataset
from medseg_kit.typing import UserError

ORGANS = ["liver", "spleen", "pancreas", "kidneys"]
SIZE = (32, 32, 32)


def patient(seed: int = 0, scanner: Scanner | None = None) -> Phantom:
    return draw_phantom(ABDOMEN, scanner or Scanner(), organs=ORGANS, size=SIZE, seed=seed)


def centroid(phantom: Phantom, value: int) -> np.ndarray:
    index = np.argwhere(phantom.label.array == value).mean(axis=0)
    return phantom.label.affine[:3, :3] @ index + phantom.label.affine[:3, 3]


def test_draw_phantom__same_seed_same_patient() -> None:
    first, again, other = patient(3), patient(3), patient(4)
    assert np.array_equal(first.image.array, again.image.array)
    assert np.array_equal(first.label.array, again.label.array)
    assert np.array_equal(first.image.affine, again.image.affine)
    assert not np.array_equal(first.image.array, other.image.array)


@pytest.mark.parametrize("seed", range(5))
def test_draw_phantom__organs_lie_where_they_belong(seed: int) -> None:
    phantom = patient(seed)
    voxels = np.bincount(phantom.label.array.ravel(), minlength=5)
    assert (voxels[1:] > 30).all()
    assert voxels[1] == max(voxels[1:]), "the liver is the largest"
    liver, spleen = centroid(phantom, 1), centroid(phantom, 2)
    assert liver[0] > spleen[0], "RAS: the liver lies right of the spleen"
    assert phantom.image.array.dtype == np.int16
    assert phantom.image.array.min() < -900


def test_draw_phantom__no_threshold_finds_an_organ() -> None:
    phantom = patient(1)
    image, label = phantom.image.array, phantom.label.array
    for value in (2, 3, 4):
        low, high = np.percentile(image[label == value], (5, 95))
        inside = (image >= low) & (image <= high)
        overlap = 2 * (inside & (label == value)).sum() / (inside.sum() + (label == value).sum())
        assert overlap < 0.5


@given(st.sampled_from(["RAS", "LPS", "PIR", "SLA"]), st.integers(0, 9))
@settings(max_examples=8)
def test_draw_phantom__orientation_moves_storage_not_anatomy(orientation: str, seed: int) -> None:
    stored = patient(seed, Scanner(orientation=orientation))
    straight = patient(seed)
    assert stored.image.orientation == orientation
    for value in (1, 4):
        assert centroid(stored, value) == pytest.approx(centroid(straight, value), abs=1e-3)


def test_draw_phantom__mr_and_few_thick_slices() -> None:
    scanner = site_scanner(None, modality="MR")
    organs = ["right ventricle", "myocardium", "left ventricle"]
    phantom = draw_phantom(CARDIAC, scanner, organs=organs, size=(64, 60, 9), seed=1)
    assert phantom.image.array.shape[2] == 8
    assert phantom.image.spacing[2] > 2 * phantom.image.spacing[0]
    assert phantom.image.array.min() >= 0
    assert set(np.unique(phantom.label.array)) == {0, 1, 2, 3}


def test_draw_phantom__what_cannot_be_drawn() -> None:
    with pytest.raises(UserError, match=r"abdomen phantoms have no \['heart'\]; choose \['liver'"):
        draw_phantom(ABDOMEN, Scanner(), organs=["heart"], size=SIZE, seed=0)
    with pytest.raises(UserError, match=r"size \(3, 32, 32\) is too small"):
        draw_phantom(ABDOMEN, Scanner(), organs=ORGANS, size=(3, 32, 32), seed=0)
    with pytest.raises(UserError, match="modality 'PET' is unknown"):
        site_scanner(0, modality="PET")


def test_write_phantom_sites__each_site_labels_its_organ(tmp_path) -> None:
    folders = write_phantom_sites(
        tmp_path, organs=ORGANS, patients_per_site=4, num_outside=2, size=(24, 24, 24)
    )
    assert list(folders) == [f"site-{organ}" for organ in ORGANS] + ["outside"]
    for value, organ in enumerate(ORGANS, start=1):
        folder = folders[f"site-{organ}"]
        assert folder == tmp_path / "sites" / f"site-{organ}"
        assert annotated_organs(folder, ORGANS) == [organ]
        assert len(load_datalist(folder, "training", organs=ORGANS)) == 3
        (case,) = load_datalist(folder, "validation", organs=ORGANS)
        assert set(np.unique(nib.load(case["label"]).dataobj)) == {0, value}
    outside = load_datalist(folders["outside"], "test", organs=ORGANS)
    assert [case["annotated"] for case in outside] == [[True] * 5] * 2
    assert all("ynthetic" in read_datalist(f)["description"] for f in folders.values())


def test_write_phantom_sites__sites_look_different_and_repeat(tmp_path) -> None:
    options = {"organs": ORGANS, "patients_per_site": 2, "num_outside": 1, "size": (24, 24, 24)}
    first = write_phantom_sites(tmp_path / "a", **options)
    second = write_phantom_sites(tmp_path / "b", **options)
    looks = set()
    for site, folder in first.items():
        assert read_datalist(folder)["sha256"] == read_datalist(second[site])["sha256"]
        section = "test" if site == "outside" else "training"
        image = nib.load(load_datalist(folder, section, organs=ORGANS)[0]["image"])
        looks.add((nib.aff2axcodes(image.affine), image.shape))
    assert len(looks) == 5


def test_write_phantom_sites__mistakes(tmp_path) -> None:
    with pytest.raises(UserError, match="patients_per_site is 1; at least 2"):
        write_phantom_sites(tmp_path, organs=ORGANS, patients_per_site=1)
    write_phantom_dataset(tmp_path / "x", organs=["liver"], counts={"test": 1}, size=(8, 8, 8))
    with pytest.raises(UserError, match="x exists"):
        write_phantom_dataset(tmp_path / "x", organs=["liver"], counts={"test": 1}, size=(8, 8, 8))
    with pytest.raises(
        UserError, match="must name patients of support, training, validation, test"
    ):
        write_phantom_dataset(tmp_path / "y", organs=["liver"], counts={"train": 1})


def test_write_phantom_raw__passes_preparation(tmp_path) -> None:
    organs = ["anterior", "posterior"]
    manifest = write_phantom_raw(
        tmp_path / "raw", organs=organs, num_patients=5, size=(16, 20, 16), anatomy=HIPPOCAMPUS
    )
    prepare_dataset(make_plan(manifest, source=tmp_path / "raw"), tmp_path / "out")
    assert len(load_datalist(tmp_path / "out", "training", organs=organs)) == 3
    assert len(load_datalist(tmp_path / "out", "test", organs=organs)) == 1


@pytest.mark.parametrize("name", sorted(ANATOMIES))
def test_anatomies__every_organ_is_drawn_and_left_is_left(name: str) -> None:
    anatomy = ANATOMIES[name]
    phantom = draw_phantom(anatomy, Scanner(), organs=anatomy.organs, size=(48, 48, 32), seed=1)
    voxels = np.bincount(phantom.label.array.ravel(), minlength=len(anatomy.organs) + 1)
    assert (voxels[1:] > 10).all(), dict(zip(anatomy.organs, voxels[1:], strict=True))
    if "left kidney" in anatomy.organs:
        left, right = (anatomy.organs.index(f"{side} kidney") + 1 for side in ("left", "right"))
        assert centroid(phantom, left)[0] < centroid(phantom, right)[0]


def test_write_phantom_sites__a_folder_in_use_is_left_as_it_was(tmp_path):
    (tmp_path / "outside").mkdir()
    with pytest.raises(UserError, match="outside exists; choose another folder"):
        write_phantom_sites(tmp_path, organs=["liver"], size=SIZE)
    assert not (tmp_path / "sites").exists()
