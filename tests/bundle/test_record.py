"""A training keeps what it was made with, and who uses its weights otherwise is told."""

import json

import pytest

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.record import TRAINING, differences, record_training

FILES = ["train.yaml", "methods/mean_teacher.yaml"]


@pytest.fixture
def bundle(repository):
    return repository / "bundles" / "cardiac_mr_semi_supervised"


@pytest.fixture
def trained(bundle, tmp_path):
    """Return the weights of a training at 64 px that was only recorded."""
    overrides = {"output_dir": str(tmp_path / "run"), "image_size": 64, "labelled": 3}
    record_training(load_config(bundle, FILES, overrides=overrides), FILES)
    return tmp_path / "run" / "model.pt"


def test_record__options_of_the_method_without_paths(trained, repository):
    text = trained.with_name(TRAINING).read_text()
    content = json.loads(text)
    assert content["configuration"] == FILES
    options = content["options"]
    assert options["type"] == "medseg_kit.methods.mean_teacher.MeanTeacherStep"
    assert options["consistency"] == 0.1  # its default, which no file names
    assert (options["settings"]["image_size"], options["settings"]["labelled"]) == (64, 3)
    assert "output_dir" not in options["settings"]
    assert str(trained.parent) not in text
    assert str(repository) not in text


def test_record__of_a_configuration_that_was_read_before(bundle, tmp_path):
    parser = load_config(bundle, FILES, overrides={"output_dir": str(tmp_path)})
    parser.get_parsed_content("dataset_dir")  # as the check before a training does
    record_training(parser, FILES)
    assert (tmp_path / TRAINING).is_file()


def test_record__the_number_of_patients_that_are_named(bundle, tmp_path):
    overrides = {"output_dir": str(tmp_path), "labelled": ["patient099", "patient038"]}
    record_training(load_config(bundle, FILES, overrides=overrides), FILES)
    text = (tmp_path / TRAINING).read_text()
    assert json.loads(text)["options"]["settings"]["labelled"] == 2
    assert "patient099" not in text
    overrides["labelled"] = {"patient099_ED": None, "patient099_ES": [0, 1, 2, 4, 8, 9, 10]}
    record_training(load_config(bundle, FILES, overrides=overrides), FILES)
    text = (tmp_path / TRAINING).read_text()
    named = json.loads(text)["options"]["settings"]["labelled"]
    assert named == {"cases": 2, "slices": ["all", 7]}
    assert "patient099" not in text


def test_differences__of_what_uses_the_weights(bundle, trained):
    (found,) = differences(trained, load_config(bundle, ["inference.yaml"]))
    assert "image_size was 64 in the training" in found
    assert "here it is 128" in found
    same = load_config(bundle, ["inference.yaml"], overrides={"image_size": 64})
    assert differences(trained, same) == []
    assert differences(trained.parent.parent / "other.pt", same) == []  # nothing is known


def test_differences__of_what_leaves_no_trace_in_the_weights(repository, tmp_path):
    bundle = repository / "bundles" / "abdomen_multimodal_cowpro"
    trained = {
        "output_dir": str(tmp_path),
        "slice_direction": "A",
        "classifier#renormalise_aggregate": True,
    }
    record_training(load_config(bundle, ["train.yaml"], overrides=trained), ["train.yaml"])
    found = differences(tmp_path / "model.pt", load_config(bundle, ["inference.yaml"]))
    assert [each.partition(" ")[0] for each in found] == ["slice_direction", "classifier"]
    del trained["output_dir"]
    same = load_config(bundle, ["inference.yaml"], overrides=trained)
    assert differences(tmp_path / "model.pt", same) == []


@pytest.mark.parametrize("files", [["inference.yaml"], ["train.yaml", "evaluate.yaml"]])
def test_record__nothing_of_what_does_not_train(bundle, tmp_path, files):
    parser = load_config(bundle, files, overrides={"output_dir": str(tmp_path / "run")})
    record_training(parser, files)
    assert not (tmp_path / "run").exists()


def test_record__by_the_first_process_only(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    parser = load_config(bundle, FILES, overrides={"output_dir": str(tmp_path / "run")})
    record_training(parser, FILES)
    assert not (tmp_path / "run").exists()


def test_record__does_not_join_the_other_processes(repository, tmp_path, monkeypatch):
    def join(*_):
        pytest.fail("the record started a process group")

    monkeypatch.setattr("medseg_kit.engines.distributed.Distributed.__init__", join)
    files = ["train.yaml", "multi_gpu_train.yaml"]
    overrides = {"output_dir": str(tmp_path / "run"), "organs": ["liver"]}
    for name in ("cardiac_mr_cct_r", "cardiac_mr_mcsc", "hippocampus_mr_segviz"):
        parser = load_config(repository / "bundles" / name, files, overrides=overrides)
        record_training(parser, files)
        assert (tmp_path / "run" / TRAINING).is_file()
        (tmp_path / "run" / TRAINING).unlink()
