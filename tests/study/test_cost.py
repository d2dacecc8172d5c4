import json
from pathlib import Path

import pytest

from medseg_kit.study.cost import describe_cost
from medseg_kit.study.spec import Job, RunSpec


def cost(**options):
    job = Job(RunSpec(name="a", mode="command", command=("true",), **options), 0, None)
    return describe_cost(job, seconds={"train": 30.0, "predict": 8.0}, local_steps=60, num_cases=4)


def test_cost__seconds_a_step_and_a_case():
    found = cost()
    assert (found["seconds_per_step"], found["seconds_per_case"]) == (0.5, 2.0)
    assert found["parameters"] is None


def test_cost__of_a_federation_a_step_is_one_of_any_site(tmp_path):
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "datalist.json").write_text("{}")
    job = Job(RunSpec(name="a", mode="federate", sites=str(tmp_path)), 0, None)
    spent = {"train": 30.0, "predict": 8.0}
    found = describe_cost(job, seconds=spent, local_steps=60, num_cases=4)
    assert found["seconds_per_step"] == 0.25


@pytest.mark.parametrize(
    ("bundle", "overlays", "parameters", "gflops"),
    [
        ("cardiac_mr_mcsc_v2", (), 1_813_764, 1.475),  # of the pair the U-Net alone answers
        # 0.964 without attention (4 T L d for T tokens, windows of L and d channels a block) and
        # with a head of 1 x 1
        (
            "cardiac_mr_mcsc",
            ("methods/transformer_inference.yaml",),
            6_811_912,
            0.964 + 0.0228 + 0.0503,
        ),
    ],
)
def test_cost__network_that_answers_with_its_attention(bundle, overlays, parameters, gflops):
    root = Path(__file__).parents[2] / "bundles" / bundle
    spec = RunSpec(name="a", mode="train", bundle=str(root), inference={"overlays": overlays})
    spent = {"train": 1.0, "predict": 1.0}
    found = describe_cost(Job(spec, 0, None), seconds=spent, local_steps=1, num_cases=1)
    assert found["parameters"] == parameters
    assert found["gflops"] == pytest.approx(gflops, abs=1e-3)


def test_cost__registration_of_the_folder_that_the_run_uses(tmp_path):
    assert cost()["registration_seconds"] is None
    assert cost(paths={"registration": str(tmp_path)})["registration_seconds"] is None
    (tmp_path / "report.json").write_text(json.dumps({"pairs": {"seconds": 12.5}}))
    assert cost(paths={"registration": str(tmp_path)})["registration_seconds"] == 12.5
