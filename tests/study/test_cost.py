import json

from medseg_kit.study.cost import describe_cost
from medseg_kit.study.spec import Job, RunSpec


def cost(**options):
    job = Job(RunSpec(name="a", mode="command", command=("true",), **options), 0, None)
    return describe_cost(job, seconds={"train": 30.0, "predict": 8.0}, local_steps=60, num_cases=4)


def test_cost__seconds_a_step_and_a_case():
    found = cost()
    assert (found["seconds_per_step"], found["seconds_per_case"]) == (0.5, 2.0)
    assert found["parameters"] is None


def test_cost__registration_of_the_folder_that_the_run_uses(tmp_path):
    assert cost()["registration_seconds"] is None
    assert cost(paths={"registration": str(tmp_path)})["registration_seconds"] is None
    (tmp_path / "report.json").write_text(json.dumps({"pairs": {"seconds": 12.5}}))
    assert cost(paths={"registration": str(tmp_path)})["registration_seconds"] == 12.5
