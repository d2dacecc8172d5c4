"""Every bundle trains, evaluates and predicts through MONAI's own command line, from anywhere."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

pytestmark = [pytest.mark.slow, pytest.mark.integration]

MULTI_GPU = ["train.yaml", "multi_gpu_train.yaml"]


def succeed(done):
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def weights(smoke):
    """Return the weights that one epoch leaves behind."""
    out = smoke.folder / "train"
    overrides = {**smoke.tiny("train.yaml"), "dataset_dir": smoke.data, "output_dir": out}
    succeed(smoke.run(["train.yaml"], overrides))
    path = out / "model.pt"
    assert (out / "training.json").is_file()
    state = torch.load(path, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    return path


def test_train__then_evaluate_and_predict(smoke, weights):
    out = smoke.folder / "evaluate"
    overrides = {**smoke.tiny("train.yaml"), "dataset_dir": smoke.data, "output_dir": out}
    succeed(smoke.run(["train.yaml", "evaluate.yaml"], {**overrides, "checkpoint": weights}))
    assert any(out.rglob("*")), "evaluation left no result"
    if smoke.root.name.endswith("_segviz"):
        rows = (out / "val_mean_dice_raw.csv").read_text().splitlines()[1:]
        assert all(row.split(",")[0].endswith(".nii.gz") for row in rows)

    out = smoke.folder / "predict"
    images = sorted((smoke.data / "images").glob("*.nii.gz"))[:2]
    source = smoke.folder / "some images"
    source.mkdir()
    for image in images:
        (source / image.name).symlink_to(image)
    overrides = {**smoke.tiny("inference.yaml"), "dataset_dir": source, "output_dir": out}
    succeed(smoke.run(["inference.yaml"], {**overrides, "checkpoint": weights}))
    written = sorted(out.rglob("*.nii.gz"))
    assert len(written) == len(images)
    for image, label in zip(images, written, strict=True):
        grid, result = nib.load(image), nib.load(label)
        assert result.shape == grid.shape
        np.testing.assert_allclose(result.affine, grid.affine, atol=1e-4)


@pytest.mark.parametrize("name", ["train.yaml", "inference.yaml"])
def test_misspelt_override__names_the_closest_id(smoke, name):
    done = smoke.run([name], {"dataset_dirr": smoke.data})
    assert done.returncode == 1
    assert "did you mean 'dataset_dir'?" in done.stderr.strip().splitlines()[-1]


def test_empty_dataset__is_an_error(smoke):
    empty = smoke.folder / "empty"
    empty.mkdir(exist_ok=True)
    overrides = {"dataset_dir": empty, "output_dir": smoke.folder / "nothing"}
    done = smoke.run(["train.yaml"], {**smoke.tiny("train.yaml"), **overrides})
    assert done.returncode == 1
    assert not (smoke.folder / "nothing").exists()  # no record of a training that did not begin
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: {empty}")
    assert "medseg data prepare" in last


@pytest.mark.parametrize(("kind", "name"), [("train", "train.yaml"), ("infer", "inference.yaml")])
@pytest.mark.filterwarnings("ignore")
def test_properties__of_monai_are_all_there(smoke, weights, kind, name):
    workflow = ConfigWorkflow(
        config_file=str(smoke.root / "configs" / name),
        workflow_type=kind,
        logging_file=False,
        bundle_root=str(smoke.root),
        dataset_dir=str(smoke.data if kind == "train" else smoke.data / "images"),
        output_dir=str(smoke.folder / "properties"),
        **({"checkpoint": str(weights)} if kind == "infer" else {}),
        **smoke.tiny(name),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    workflow.finalize()


def test_two_processes__keep_equal_replicas(smoke):
    out = smoke.folder / "two"
    save = (
        "$torch.save(@model.state_dict(), @output_dir + '/rank' + str(@distributed.rank) + '.pt')"
    )
    overrides = {**smoke.tiny("train.yaml"), "dataset_dir": smoke.data, "output_dir": out}
    # torchrun would take --run for one of its own options
    overrides["finalize"] = f'["{save}", "$@distributed.close()"]'
    overrides.pop("device")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    succeed(smoke.run(MULTI_GPU, overrides, launcher=launcher))
    first, second = (torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
