"""What a study would stop at hours later is named before its first run."""

import pytest

from medseg_kit.study.checks import check_budgets, check_runs
from medseg_kit.study.spec import Job, RunSpec
from medseg_kit.typing import UserError
from tests.study.conftest import write_datalist


def test_check_runs__a_configuration_that_does_not_spend_the_budget(repository):
    bundle = str(repository / "bundles" / "cardiac_mr_mcsc")
    shorter = {"train#trainer#max_epochs": 2, "steps_per_epoch": 10}
    runs = [RunSpec("a", "train", bundle=bundle, overrides=shorter)]
    check_runs(runs)
    check_runs(runs, local_steps=20)
    with pytest.raises(UserError, match=r"run a: it trains 2 epochs of 10 steps, .* is 1500 steps"):
        check_runs(runs, local_steps=1500)


@pytest.mark.parametrize("mode", ["train", "federate"])
def test_check_budgets__more_labels_than_there_are(tmp_path, mode):
    folder = tmp_path / "north"
    folder.mkdir()
    cases = [{"image": f"{i}.nii.gz", "label": f"{i}.nii.gz", "subject": f"p{i}"} for i in range(3)]
    write_datalist(folder, training=cases)
    where = {"data": str(folder)} if mode == "train" else {"sites": str(tmp_path)}
    spec = RunSpec("a", mode, **where)
    check_budgets([Job(spec, 0, 3), Job(spec, 0, None), Job(RunSpec("b", "command"), 0, 9)])
    with pytest.raises(UserError, match=r"run a_labels4_seed0: label budget 4 .* it has 3"):
        check_budgets([Job(spec, 0, 4)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"overlays": ("methods/glcll.yaml",)}, r"run a: .*glcll\.yaml does not exist"),
        ({"overrides": {"learning_rat": 1}}, "run a: .*learning_rat.*learning_rate"),
        ({"inference": {"overlays": ["methods/no.yaml"]}}, r"run a: .*no\.yaml does not exist"),
        ({"inference": {"overrides": {"fst": True}}}, "run a: .*fst"),
        ({"paths": {"dataset_dir": "/nowhere"}}, r"run a: /nowhere \(dataset_dir\) does not exist"),
        ({"mode": "federate", "overrides": {"num_round": 2}}, "run a: .*num_round"),
        ({"mode": "evaluate", "inference": {"overrides": {"fst": True}}}, "run a: .*fst"),
    ],
)
def test_check_runs__names_run_and_mistake(repository, changes, message):
    bundle = str(repository / "bundles" / "cardiac_mr_mcsc")
    check_runs([RunSpec("good", "train", bundle=bundle), RunSpec("own", "command")])
    with pytest.raises(UserError, match=message):
        check_runs([RunSpec(**{"name": "a", "mode": "train", "bundle": bundle, **changes})])
