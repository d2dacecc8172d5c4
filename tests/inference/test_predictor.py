from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from medseg_kit.inference.options import PredictOptions
from medseg_kit.inference.slices import SliceInferer
from medseg_kit.inference.volume import VolumeInferer
from medseg_kit.transforms.pipelines import volume_postprocessing, volume_preprocessing
from medseg_kit.typing import UserError

SHAPE = (14, 15, 9)
QUIET = {"progress": False, "device": "cpu"}


def _fill(kit, folder: Path, names=("a", "b", "c")):
    for seed, name in enumerate(names):
        kit.write_nifti(folder / f"{name}.nii.gz", kit.smooth(SHAPE, seed))


def _labels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_predict__label_maps_records_and_summary(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in")

    summary = make_predictor().predict()

    assert (summary["cases"], summary["done"], summary["failed"]) == (3, 3, 0)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    labels = _labels(tmp_path / "out" / "a.nii.gz")
    assert labels.shape == SHAPE
    assert record["status"] == "done"
    assert set(record["seconds"]) == {"read", "prepare", "network", "finish"}
    assert record["volumes_ml"]["liver"] == pytest.approx(
        (labels == 1).sum() * 1.5 * 0.9 * 2.5 / 1000, rel=1e-3
    )
    assert record["voxels"]["spleen"] == (labels == 2).sum()
    assert 0.5 <= record["confidence"]["liver"] <= 1
    np.testing.assert_array_equal(
        nib.load(tmp_path / "out/a.nii.gz").affine, nib.load(tmp_path / "in/a.nii.gz").affine
    )
    assert not list((tmp_path / "out").glob("*.partial"))


def test_predict__transforms_give_the_same_label_maps(
    kit, make_predictor, tmp_path, geometry, caplog
):
    kit.write_nifti(tmp_path / "in" / "a.nii.gz", kit.smooth((21, 18, 11)), geometry)
    preprocessing = volume_preprocessing(spacing=[2, 2, 2], window=[-200, 200])
    plain = Compose(preprocessing.transforms)
    transforms = {
        "preprocessing": plain,
        "postprocessing": Compose(volume_postprocessing(plain, output_dir="x").transforms),
    }
    with caplog.at_level(logging.INFO):
        make_predictor().predict()
        make_predictor(output_dir=tmp_path / "plain", **transforms).predict()

    lean, reference = _labels(tmp_path / "out/a.nii.gz"), _labels(tmp_path / "plain/a.nii.gz")
    assert len(np.unique(reference)) == 3
    np.testing.assert_array_equal(lean, reference)
    assert "lean route" in caplog.text
    assert "the bundle's transforms run as they are" in caplog.text
    routes = [json.loads((tmp_path / d / "a.json").read_text())["route"] for d in ("out", "plain")]
    assert routes == ["lean", "transforms"]
    assert not Path("x").exists()


def test_predict__finished_cases_are_skipped_until_something_changes(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in")
    make_predictor().predict()

    def run(**changes):
        return make_predictor(**changes).predict()["this_run"]

    assert run()["skipped"] == 3
    kit.write_nifti(tmp_path / "in" / "b.nii.gz", kit.smooth(SHAPE, 7))
    assert (run()["done"], run()["skipped"]) == (1, 3)
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"cut")
    assert run()["done"] == 1
    assert run(inferer=VolumeInferer([12, 12, 12], overlap=0.5))["done"] == 3
    assert run(options=PredictOptions(**QUIET, overwrite=True))["done"] == 3


def test_predict__a_corrected_label_map_is_kept(kit, make_predictor, tmp_path, caplog):
    _fill(kit, tmp_path / "in", ["a"])
    make_predictor().predict()
    path = tmp_path / "out" / "a.nii.gz"
    corrected = np.ones(SHAPE, np.uint8)
    nib.save(nib.Nifti1Image(corrected, nib.load(path).affine), path)
    assert make_predictor().predict()["this_run"]["skipped"] == 1
    assert "was changed since it was predicted and is kept" in caplog.text
    np.testing.assert_array_equal(_labels(path), corrected)
    again = make_predictor(options=PredictOptions(**QUIET, overwrite=True)).predict()
    assert again["this_run"]["done"] == 1
    assert len(np.unique(_labels(path))) > 1


def test_predict__images_that_are_away_take_no_result_along(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in", ["a"])
    (tmp_path / "in" / "datalist.json").write_text('{"test": ["a.nii.gz"]}')
    make_predictor().predict()
    (tmp_path / "in" / "a.nii.gz").rename(tmp_path / "away.nii.gz")
    with pytest.raises(UserError, match="1 of 1 cases failed"):
        make_predictor().predict()
    assert (tmp_path / "out" / "a.nii.gz").is_file()
    (tmp_path / "away.nii.gz").rename(tmp_path / "in" / "a.nii.gz")
    assert make_predictor().predict()["this_run"]["skipped"] == 1


def test_predict__a_file_name_that_is_no_text(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in", ["a", "c"])
    name = os.fsdecode(b"M\xfcller.nii.gz")
    kit.write_nifti(tmp_path / "b.nii.gz", kit.smooth(SHAPE)).rename(tmp_path / "in" / name)
    summary = make_predictor().predict()
    assert (summary["done"], summary["failed"]) == (3, 0)
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_predict__other_weights_are_another_prediction(kit, make_predictor, network, tmp_path):
    _fill(kit, tmp_path / "in", ["a"])
    make_predictor().predict()
    with torch.no_grad():
        network.second.bias += 1
    assert make_predictor().predict()["this_run"]["done"] == 1


def test_predict__a_bad_case_costs_only_itself(kit, make_predictor, tmp_path):
    folder = tmp_path / "in"
    _fill(kit, folder)
    kit.write_nifti(folder / "2d.nii.gz", np.ones((5, 6), np.int16))
    kit.write_nifti(folder / "4d.nii.gz", kit.smooth((5, 6, 4, 2)))
    kit.write_nifti(folder / "nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
    (folder / "empty.nii.gz").touch()
    (folder / "cut.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:300])
    (folder / "text.mha").write_text("not an image")

    with pytest.raises(UserError, match=r"6 of 9 cases failed: .*2d .*2-D image"):
        make_predictor().predict()

    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["done"], summary["failed"]) == (3, 6)
    assert "4-D" in json.loads((tmp_path / "out" / "4d.json").read_text())["error"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        "a.nii.gz",
        "b.nii.gz",
        "c.nii.gz",
    ]
    kit.write_nifti(folder / "cut.nii.gz", kit.smooth(SHAPE, 9))
    with pytest.raises(UserError, match="5 of 9"):
        make_predictor().predict()
    assert (tmp_path / "out" / "cut.nii.gz").is_file()


def test_predict__a_failed_case_keeps_no_older_answer(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in", ["a"])
    make_predictor().predict()
    (tmp_path / "in" / "a.nii.gz").write_bytes(b"broken")
    with pytest.raises(UserError, match="1 of 1"):
        make_predictor().predict()
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_predict__a_network_error_is_the_cases_own(kit, make_predictor, network, tmp_path):
    _fill(kit, tmp_path / "in")
    calls = []

    def picky(volume, net):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no luck")
        return VolumeInferer([12, 12, 12])(volume, net)

    with pytest.raises(UserError, match=r"1 of 3 cases failed: b \(network: RuntimeError: no luck"):
        make_predictor(inferer=picky).predict()


def test_predict__formats_and_series(kit, make_predictor, tmp_path):
    folder = tmp_path / "in"
    kit.write_nifti(folder / "p1" / "image.nii.gz", kit.smooth(SHAPE))
    kit.write_nifti(folder / "p2" / "image.nii", kit.smooth(SHAPE, 1))
    kit.write_series(folder / "p3", kit.smooth(SHAPE, 2), uid="1.2.3")
    kit.write_series(folder / "p4", kit.smooth(SHAPE, 3), uid="1.2.4")
    kit.write_series(folder / "p4", kit.smooth(SHAPE, 4), uid="1.2.5")

    summary = make_predictor().predict()

    names = [result["case"] for result in summary["results"]]
    assert names[:3] == ["p1/image", "p2/image", "p3"]
    assert len({name for name in names if name.startswith("p4_")}) == 2
    assert all((tmp_path / "out" / f"{name}.nii.gz").is_file() for name in names)
    assert make_predictor().predict()["this_run"]["skipped"] == 5


def test_predict__series_through_transforms(kit, make_predictor, tmp_path):
    kit.write_series(tmp_path / "in" / "p", kit.smooth((16, 15, 8)))
    preprocessing = volume_preprocessing(spacing=[2, 2, 2], window=[-200, 200])
    plain = Compose(preprocessing.transforms)
    make_predictor().predict()
    make_predictor(
        output_dir=tmp_path / "plain",
        preprocessing=plain,
        postprocessing=Compose(volume_postprocessing(plain).transforms),
    ).predict()
    np.testing.assert_array_equal(
        _labels(tmp_path / "out/p.nii.gz"), _labels(tmp_path / "plain/p.nii.gz")
    )


def test_predict__probabilities_have_the_label_map_as_argmax(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in", ["a"])
    make_predictor(options=PredictOptions(**QUIET, save_probabilities=True)).predict()
    probability = _labels(tmp_path / "out" / "a.probabilities.nii.gz")
    np.testing.assert_allclose(probability.sum(-1), 1, atol=1e-5)
    agree = probability.argmax(-1) == _labels(tmp_path / "out" / "a.nii.gz")
    assert agree.mean() > 0.9999


def test_predict__lost_probabilities_are_made_again(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in", ["a"])
    make_predictor(options=PredictOptions(**QUIET, save_probabilities=True)).predict()
    (tmp_path / "out" / "a.probabilities.nii.gz").unlink()
    make_predictor(options=PredictOptions(**QUIET)).predict()
    assert not (tmp_path / "out" / "a.probabilities.nii.gz").exists()  # not asked for: skipped
    make_predictor(options=PredictOptions(**QUIET, save_probabilities=True)).predict()
    assert (tmp_path / "out" / "a.probabilities.nii.gz").is_file()


def test_predict__lost_spacing_has_no_volumes(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in" / "images", ["a"])
    datalist = {"spacing": "lost", "test": [{"image": "images/a.nii.gz"}]}
    (tmp_path / "in" / "datalist.json").write_text(json.dumps(datalist))
    make_predictor().predict()
    record = json.loads((tmp_path / "out" / "a.json").read_text())
    assert record["volumes_ml"] == {}
    assert record["voxels"]["liver"] > 0
    assert "voxel size" in record["warnings"][0]


def test_predict__parts_and_processes_cover_all_cases_once(
    kit, make_predictor, tmp_path, monkeypatch
):
    _fill(kit, tmp_path / "in", ["a", "b", "c", "d", "e"])
    done = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for part in range(2):
        for rank in range(2):
            monkeypatch.setenv("RANK", str(rank))
            options = PredictOptions(**QUIET, num_parts=2, part_id=part)
            summary = make_predictor(options=options).predict()
            done.append(summary["this_run"]["done"])
            assert summary["this_run"]["skipped"] == 0
    assert done == [2, 1, 1, 1]
    assert summary["pending"] == 0


def test_predict__slice_wise_network(kit, make_predictor, tmp_path, caplog):
    torch.manual_seed(3)
    network = kit.network(dims=2)
    volume = kit.smooth((16, 17, 6))
    kit.write_nifti(tmp_path / "in" / "a.nii.gz", volume, "oblique")
    preprocessing = volume_preprocessing(orientation=None, window=[-200, 200])
    with caplog.at_level(logging.DEBUG):
        make_predictor(
            network=network,
            inferer=SliceInferer(),
            preprocessing=preprocessing,
            postprocessing=volume_postprocessing(preprocessing),
        ).predict()
    scaled = ((torch.from_numpy(volume).float() + 200) / 400).clamp(0, 1)
    with torch.no_grad():
        expected = [network(part[None, None]).argmax(1)[0] for part in scaled.unbind(2)]
    np.testing.assert_array_equal(
        _labels(tmp_path / "out/a.nii.gz"), torch.stack(expected, dim=2).numpy()
    )
    assert "slices along stored axis 2" in caplog.text


@pytest.mark.slow
def test_predict__never_more_than_a_few_cases_in_memory(kit, make_predictor, tmp_path, monkeypatch):
    from medseg_kit.inference import predictor as module

    _fill(kit, tmp_path / "in", [f"{index:02d}" for index in range(30)])
    lock, alive, most = threading.Lock(), set(), []
    read, release = module.read_volume, module.Job.release

    def counted_read(case, digest):
        with lock:
            alive.add(case.name)
            most.append(len(alive))
        return read(case, digest)

    def counted_release(job):
        with lock:
            alive.discard(job.case.name)
        release(job)

    monkeypatch.setattr(module, "read_volume", counted_read)
    monkeypatch.setattr(module.Job, "release", counted_release)
    make_predictor().predict()
    assert not alive
    assert max(most) <= 4


def test_run__one_line_instead_of_a_stack_trace(make_predictor):
    with pytest.raises(SystemExit, match=r"error: .* does not exist"):
        make_predictor().run()


def test_predict__wrong_number_of_organs(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in", ["a"])
    with pytest.raises(UserError, match="3 classes"):
        make_predictor(options=PredictOptions(**QUIET, organs=["liver"])).predict()


def test_predict__weights_of_another_network_leave_no_folder(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in", ["a"])
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), tmp_path / "other.pt")
    options = PredictOptions(**QUIET, checkpoint=tmp_path / "other.pt")
    with pytest.raises(UserError, match="does not fit"):
        make_predictor(options=options).predict()
    assert not (tmp_path / "out").exists()


def test_predict__two_images_for_one_result(kit, make_predictor, tmp_path):
    _fill(kit, tmp_path / "in", ["a", "a.probabilities"])
    with pytest.raises(UserError, match="would be written for"):
        make_predictor().predict()


@pytest.mark.parametrize("place", ["in", "in/labels", "link"])
def test_predict__never_overwrites_an_image_or_its_label(kit, make_predictor, tmp_path, place):
    folder = tmp_path / "in"
    _fill(kit, folder / "images", ["b"])
    _fill(kit, folder / "labels", ["b"])
    _fill(kit, folder, ["a"])
    (tmp_path / "link").symlink_to(folder)
    entries = [{"image": "a.nii.gz"}, {"image": "images/b.nii.gz", "label": "labels/b.nii.gz"}]
    (folder / "datalist.json").write_text(json.dumps({"test": entries}))
    before = {path: path.read_bytes() for path in folder.rglob("*.nii.gz")}
    predictor = make_predictor(input=folder, output_dir=tmp_path / place)
    with pytest.raises(UserError, match="is an input and would be overwritten"):
        predictor.predict()
    assert {path: path.read_bytes() for path in folder.rglob("*.nii.gz")} == before
