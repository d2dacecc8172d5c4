"""Slices of training are those of inference; budgets hide labels; bad volumes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medseg_kit.data.slices import SliceDataset
from medseg_kit.inference.cases import Case
from medseg_kit.inference.lean import prepare
from medseg_kit.inference.reading import digest_of, read_volume
from medseg_kit.inference.slices import SliceInferer
from medseg_kit.transforms.pipelines import volume_preprocessing
from medseg_kit.typing import UserError
from tests.data.slice_cases import AFFINE, write_case


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, Any]]:
    names = ["b_ED", "b_ES", "a_ED", "a_ES", "c_ED", "c_ES"]
    return [
        write_case(tmp_path, name, seed=seed, shape=(12, 10, 3 + seed), frame=name[-2:])
        for seed, name in enumerate(names)
    ]


def dataset(cases: list[dict[str, Any]], **changes: Any) -> SliceDataset:
    return SliceDataset(cases, **{"image_size": 8, "num_classes": 3, **changes})


def seen_by_network(image: MetaTensor, **changes: Any) -> torch.Tensor:
    """Return all slices that `SliceInferer` hands to a network, in the order of the volume."""
    seen = []

    def network(slices: torch.Tensor) -> torch.Tensor:
        seen.append(slices)
        return slices

    SliceInferer(slice_size=(8, 8), sw_batch_size=3, **changes)(image[None], network)
    return torch.cat(seen)


OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [20, -13, 35], degrees=True).as_matrix() @ np.diag(
    [1.4, 1.4, 6.0]
)
PERMUTED = np.array([[0, 0, -3.0, 0], [1.1, 0, 0, 0], [0, -0.8, 0, 0], [0, 0, 0, 1]])
LOST = np.eye(4)


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE, PERMUTED, LOST])
@pytest.mark.parametrize(
    "settings",
    [
        {"intensity": "minmax"},
        {"intensity": "percentile"},
        {"window": [-100, 300]},
        {"intensity": "minmax", "orientation": "RAS"},
    ],
)
def test_slices__equal_those_of_inference(tmp_path: Path, affine: np.ndarray, settings) -> None:
    case = write_case(tmp_path, "a")
    image = nib.load(case["image"])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), case["image"])
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), affine), case["label"])
    preprocessing = volume_preprocessing(**{"orientation": None, **settings})
    path = Path(case["image"])
    lean, _ = prepare(read_volume(Case("a", path, (path,)), digest_of([path])), preprocessing)

    images = dataset([case], **settings).store.images

    assert torch.equal(images, seen_by_network(preprocessing({"image": str(path)})["image"]))
    assert torch.equal(images, seen_by_network(lean))


def test_slices__nearest_equal_those_of_inference(cases) -> None:
    volume = volume_preprocessing(orientation=None, intensity="minmax")(cases[0])["image"]
    images = dataset(cases[:1], interpolation="nearest").store.images
    assert torch.equal(images, seen_by_network(volume, interpolation="nearest"))


def test_slices__stay_in_0_1_and_labels_lie_on_their_image(tmp_path: Path) -> None:
    case = write_case(tmp_path, "a", shape=(16, 16, 2))
    label = np.zeros((16, 16, 2), np.uint8)
    label[4:8, 2:14] = 2
    nib.save(nib.Nifti1Image(label, AFFINE), case["label"])
    nib.save(nib.Nifti1Image(label.astype(np.float32), AFFINE), case["image"])
    store = dataset([case]).store
    assert store.images.dtype == torch.float32
    assert (float(store.images.min()), float(store.images.max())) == (0, 1)
    assert torch.equal(store.images[:, 0] > 0.5, store.labels > 0)
    assert store.labels[0, 2:4, 1:7].eq(2).all()


def test_slices__tables_of_volume_and_slice(cases) -> None:
    data = dataset(cases)
    assert len(data) == sum(range(3, 9))
    assert data.store.volume[:4].tolist() == [0, 0, 0, 1]
    assert data.store.index[:4].tolist() == [0, 1, 2, 0]
    assert data.case_keys[0] == "b_ED"
    item = data[3]
    assert (item["image"].shape, item["label"].shape) == ((1, 8, 8), (1, 8, 8))
    assert (int(item["volume"]), int(item["slice"])) == (1, 0)
    assert data.batch(torch.tensor([0, 2, 3]))["position"].tolist() == pytest.approx(
        [1 / 6, 5 / 6, 1 / 8]
    )


def test_slices__budget_hides_labels(cases) -> None:
    data = dataset(cases, labelled=1)
    batch = data.batch(torch.arange(len(data)))
    assert data.case_labelled == [True, True, False, False, False, False]
    assert batch["labelled"].sum() == 7
    assert batch["label"][batch["labelled"]].any()
    assert not batch["label"][~batch["labelled"]].any()
    # kept aside for the evaluation of pseudo-labels
    assert data.store.labels[~data.labelled].any()


def test_slices__budget_of_single_slices(cases) -> None:
    data = dataset(cases, labelled={"b_ED": [0, 2]})
    assert data.labelled.nonzero()[:, 0].tolist() == [0, 2]


def test_slices__registered_labels(cases, tmp_path: Path) -> None:
    folder = tmp_path / "registered"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.full((12, 10, 3), 2, np.uint8), AFFINE), folder / "b_ED.nii.gz")
    data = dataset(cases, registered_labels=folder)
    batch = data.batch(torch.arange(7))
    assert batch["has_registered"].tolist() == [True] * 3 + [False] * 4
    assert batch["registered_label"][:3].eq(2).all()
    assert not batch["registered_label"][3:].any()
    assert "registered_label" not in dataset(cases).batch(torch.tensor([0]))


def test_slices__tells_of_unlabelled_volumes_without_a_registered_label(
    cases, tmp_path: Path, caplog
) -> None:
    label = nib.Nifti1Image(np.zeros((12, 10, 3), np.uint8), AFFINE)
    nib.save(label, tmp_path / "b_ED.nii.gz")
    dataset(cases, registered_labels=tmp_path, labelled=["a"])
    (record,) = caplog.records
    text = "3 of 4 unlabelled volumes have no registered label, for example b_ES, c_ED, c_ES"
    assert (record.levelname, record.message) == ("WARNING", text)


def test_slices__registered_labels_of_another_list(cases, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no registered label"):
        dataset(cases, registered_labels=tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        dataset(cases, registered_labels=tmp_path / "absent")


def test_slices__registered_label_of_another_grid(cases, tmp_path: Path) -> None:
    folder = tmp_path / "registered"
    folder.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((12, 10, 4), np.uint8), AFFINE), folder / "b_ED.nii.gz")
    with pytest.raises(UserError, match="lies on the grid of its image"):
        dataset(cases, registered_labels=folder).store  # noqa: B018 - reads


def test_slices__one_slice_and_other_spacings(tmp_path: Path) -> None:
    one = write_case(tmp_path, "one", shape=(12, 10, 1))
    other = write_case(tmp_path, "other", shape=(5, 30, 20))
    # 5 slices, 4 mm apart, along the first stored axis
    for kind in ("image", "label"):
        array = np.asarray(nib.load(other[kind]).dataobj)
        nib.save(nib.Nifti1Image(array, np.diag([4.0, 1, 1, 1])), other[kind])
    store = dataset([one, other]).store
    assert store.volume.tolist() == [0, 1, 1, 1, 1, 1]
    assert store.images.shape == (6, 1, 8, 8)


def test_slices__unlabelled_case(tmp_path: Path) -> None:
    case = {key: value for key, value in write_case(tmp_path, "a").items() if key != "label"}
    data = dataset([case])
    assert not data.labelled.any()
    assert not data.store.labels.any()


def test_slices__cache_gives_the_same_and_follows_the_inputs(cases, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plain = dataset(cases).store
    for _ in range(2):  # written, then read
        kept = dataset(cases, cache_dir=cache).store
        assert torch.equal(kept.images, plain.images)
        assert torch.equal(kept.labels, plain.labels)
        assert len(list(cache.iterdir())) == 1
    dataset(cases, cache_dir=cache, image_size=6).store  # noqa: B018 - reads
    write_case(tmp_path, "b_ED", seed=9, shape=(12, 10, 3))
    changed = dataset(cases, cache_dir=cache).store
    assert not torch.equal(changed.images, plain.images)
    assert len(list(cache.iterdir())) == 3


def overwrite(path: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("image", np.full((12, 10, 3), np.nan, np.float32), "NaN"),
        ("image", np.ones((12, 10), np.float32), "3-D volume"),
        ("label", np.full((12, 10, 3), 3, np.uint8), "holds the value 3; the network has the cl"),
        ("label", np.full((12, 10, 3), 0.5, np.float32), "no whole numbers"),
        ("label", np.zeros((12, 10, 5), np.uint8), "lies on the grid of its image"),
    ],
)
def test_slices__bad_files_are_named(cases, key: str, array: np.ndarray, message: str) -> None:
    overwrite(cases[0][key], array)
    with pytest.raises(UserError, match=message) as error:
        dataset(cases).store  # noqa: B018 - reads
    assert "b_ED.nii.gz" in str(error.value)


def test_slices__wrong_arguments(cases) -> None:
    with pytest.raises(UserError, match="empty"):
        dataset([])
    with pytest.raises(ValueError, match="interpolation"):
        dataset(cases, interpolation="cubic")
    with pytest.raises(ValueError, match="image_size"):
        dataset(cases, image_size=[1, 2, 3])
    with pytest.raises(ValueError, match="num_classes"):
        dataset(cases, num_classes=1)
    with pytest.raises(ValueError, match="intensity"):
        dataset(cases, intensity="max")
    with pytest.raises(UserError, match="does not annotate every organ"):
        dataset([{**cases[0], "annotated": [True, True, False]}])
    cases[0]["image"] += "x"
    with pytest.raises(UserError, match="does not exist"):
        dataset(cases).store  # noqa: B018 - reads
