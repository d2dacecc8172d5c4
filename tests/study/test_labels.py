import json

import pytest

from medseg_kit.fl.site import read_site_file
from medseg_kit.study.labels import data_digest, limit_labels
from medseg_kit.typing import UserError
from tests.study.conftest import save_label, two_organs, write_datalist


@pytest.fixture
def training_set(tmp_path):
    folder = tmp_path / "data"
    cases = []
    for index in range(6):
        for kind in ("images", "labels"):
            save_label(folder / kind / f"p{index}.nii.gz", two_organs())
        cases.append(
            {
                "image": f"images/p{index}.nii.gz",
                "label": f"labels/p{index}.nii.gz",
                "subject": f"p{index}",
            }
        )
    write_datalist(folder, training=cases)
    return folder


def labelled(folder):
    cases = json.loads((folder / "datalist.json").read_text())["training"]
    return {case["subject"] for case in cases if "label" in case}


def test_limit_labels__budgets_are_nested_and_seeded(training_set, tmp_path):
    chosen = {}
    for budget in (1, 3, 6):
        view = limit_labels(
            training_set, tmp_path / str(budget), num_subjects=budget, seed=0, keep_unlabelled=False
        )
        chosen[budget] = labelled(view)
        assert len(chosen[budget]) == budget
    assert chosen[1] < chosen[3] < chosen[6]
    others = {
        frozenset(
            labelled(
                limit_labels(
                    training_set,
                    tmp_path / f"s{seed}",
                    num_subjects=3,
                    seed=seed,
                    keep_unlabelled=False,
                )
            )
        )
        for seed in range(5)
    }
    assert len(others) > 1


def test_limit_labels__keeps_the_others_without_label(training_set, tmp_path):
    view = limit_labels(
        training_set, tmp_path / "view", num_subjects=2, seed=0, keep_unlabelled=True
    )
    cases = json.loads((view / "datalist.json").read_text())["training"]
    assert len(cases) == 6
    assert sum(case.get("labelled") is False and "label" not in case for case in cases) == 4
    assert all((view / case["image"]).is_file() for case in cases)


def test_limit_labels__more_than_there_are(training_set, tmp_path):
    with pytest.raises(UserError, match=r"label budget 7 .* 6 labelled"):
        limit_labels(training_set, tmp_path / "view", num_subjects=7, seed=0, keep_unlabelled=True)


def test_data_digest__follows_the_datalist(training_set):
    before = data_digest(training_set)
    assert before == data_digest(training_set)
    write_datalist(training_set, name="other")
    assert data_digest(training_set) != before
    assert data_digest(training_set.parent) != data_digest(training_set)
    with pytest.raises(UserError, match=r"datalist\.json"):
        data_digest(training_set / "images")


def test_limit_labels__listed_order_without_a_seed(training_set, tmp_path):
    view = limit_labels(training_set, tmp_path / "v", num_subjects=2, keep_unlabelled=True)
    assert labelled(view) == {"p0", "p1"}


def test_limit_labels__a_site_keeps_its_own_file(training_set, tmp_path):
    before = data_digest(training_set)
    (training_set / "site.yaml").write_text("overrides: {batch_size: 2}\n")
    assert data_digest(training_set) != before
    view = limit_labels(training_set, tmp_path / "view", num_subjects=1, keep_unlabelled=True)
    assert read_site_file(view) == {"batch_size": 2}
