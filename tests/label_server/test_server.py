"""The real MONAI Label server answers with the label maps of ``medseg predict``."""

import hashlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name that its documentation uses

TIES = 5e-4  # share of voxels whose label may be another

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.fixture(scope="module")
def predicted(predict, bundle_copies, bundle_name):
    """Label maps of ``medseg predict`` by file name of the study."""
    return predict(bundle_copies[bundle_name])


def image_id(file_name):
    return file_name.split(".")[0]


def assert_same_image(result, expected, study):
    """The voxels of ``expected``, on the grid of ``study``.

    Two processes add in another order, so a voxel whose two best logits are equal to the last bit
    may take either label (seen: 1 of 14,175); anything that is really different moves far more.
    """
    ours, theirs = sitk.ReadImage(result), sitk.ReadImage(expected)
    grid = sitk.ReadImage(study)
    for image in (ours, theirs):
        assert image.GetSize() == grid.GetSize()
        np.testing.assert_allclose(image.GetSpacing(), grid.GetSpacing(), rtol=1e-5)
        np.testing.assert_allclose(image.GetOrigin(), grid.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(image.GetDirection(), grid.GetDirection(), atol=1e-5)
    differ = sitk.GetArrayFromImage(ours) != sitk.GetArrayFromImage(theirs)
    assert differ.mean() <= TIES, f"{differ.sum()} of {differ.size} voxels differ"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_info__bundle_offers_inference_and_training(server, bundle_name):
    info = server.get("/info/")
    assert info["models"][bundle_name]["type"] == "segmentation"
    assert "background" not in info["models"][bundle_name]["labels"]
    assert bundle_name in info["trainers"]


def test_server__listens_on_loopback_only(server):
    assert "Uvicorn running on http://127.0.0.1:" in server.log.read_text()


def test_server__leaves_out_a_bundle_that_would_stop_it(server):
    reason = "left out broken_ct_net: inference.yaml: network_def cannot be built"
    assert reason in server.log.read_text()
    assert "broken_ct_net" not in server.get("/info/")["models"]


def test_inference__equals_predict(server, bundle_name, predicted, tmp_path):
    for name, expected in predicted.items():
        result = server.infer(bundle_name, image_id(name), tmp_path / name)
        assert_same_image(result, expected, server.studies / name)
        found = np.unique(sitk.GetArrayFromImage(sitk.ReadImage(result)))
        assert len(found) > 1, f"{name}: an empty result would compare equal to anything empty"


def test_batch_inference__equals_predict(server, bundle_name, predicted):
    options = {"device": "cpu", "multi_gpu": False, "label_tag": "original"}
    server.run_task(
        f"/batch/infer/{bundle_name}?images=all",
        "/batch/infer",
        {**options, "result_dtype": "uint8", "max_workers": 1},
    )
    for name, expected in predicted.items():
        result = server.studies / "labels" / "original" / name
        assert_same_image(result, expected, server.studies / name)


def test_training__new_weights_serve_and_the_bundle_stays(
    server, bundle_name, bundle_copies, predict, tmp_path
):
    shipped = bundle_copies[bundle_name] / "models" / "model.pt"
    trained = server.bundles[bundle_name] / "models" / "model.pt"
    assert sha256(trained) == sha256(shipped)
    before = sha256(shipped)
    options = {"device": "cpu", "max_epochs": 1, "val_split": 0.25, "multi_gpu": False}
    server.run_task(f"/train/{bundle_name}", "/train/", {**options, "pretrained": True})
    assert sha256(shipped) == before
    assert sha256(trained) != before
    for name, expected in predict(server.bundles[bundle_name]).items():
        result = server.infer(bundle_name, image_id(name), tmp_path / name)
        assert_same_image(result, expected, server.studies / name)
