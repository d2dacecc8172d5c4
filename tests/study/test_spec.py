import pytest
import yaml

from medseg_kit.study.spec import jobs, load_study
from medseg_kit.typing import UserError

RUN = {"name": "local", "mode": "train", "data": "site"}


def write(tmp_path, **changes):
    content = {"bundle": "toy", "test": {"data": "test"}, "runs": [RUN]} | changes
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value != "leave"})
    )
    return path


def test_load_study__defaults_and_relative_paths(tmp_path):
    study = load_study(write(tmp_path))
    assert (study.name, study.seeds, study.checkpoint_rule, study.policy) == (
        "study",
        (0,),
        "best_validation",
        "strict",
    )
    assert study.runs[0].data == str(tmp_path / "site")
    assert study.test == {"data": str(tmp_path / "test"), "section": "test"}
    assert (study.runs[0].method, study.runs[0].bundle) == ("local", "toy")
    study = load_study(write(tmp_path, runs=[RUN | {"paths": {"registration": "reg"}}]))
    assert study.runs[0].paths == {"registration": str(tmp_path / "reg")}


def test_jobs__configurations_budgets_seeds(tmp_path):
    study = load_study(
        write(tmp_path, seeds=[0, 1], label_budgets=[3, 7], runs=[RUN, RUN | {"name": "b"}])
    )
    names = [job.name for job in jobs(study)]
    assert len(set(names)) == 8
    assert names[:3] == ["local_labels3_seed0", "b_labels3_seed0", "local_labels3_seed1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, r"unknown entries \['seed'\]"),
        ({"test": "leave"}, r"lacks \['test'\]"),
        ({"runs": [RUN | {"epochs": 3}]}, r"run local has unknown entries \['epochs'\]"),
        ({"runs": [RUN, RUN]}, "distinct names"),
        ({"runs": [RUN | {"mode": "trian"}]}, "mode of local is 'trian'"),
        ({"runs": [{"name": "f", "mode": "federate"}]}, "needs `sites`"),
        ({"runs": [RUN | {"name": "a b"}]}, "'a b'"),
        ({"checkpoint_rule": "luckiest"}, "checkpoint_rule is 'luckiest'"),
        ({"policy": "kind"}, "policy is 'kind'"),
        ({"reference": "nothing"}, "reference is 'nothing'"),
        ({"budget": {"hours": 3}}, "local_steps"),
        ({"budget": 1500}, "`budget` of the study must be a mapping, got 1500"),
        ({"test": {"data": "d", "sectoin": "validation"}}, r"unknown entries \['sectoin'\]"),
        ({"test": "d"}, "`test` of the study must be a mapping"),
        ({"seeds": ["one"]}, "`seeds` holds 'one'"),
        ({"seeds": None}, "`seeds` holds None"),
        ({"label_budgets": [1.5]}, "`label_budgets` holds 1.5"),
        ({"runs": ["local"]}, "`runs` must be a list of mappings"),
        ({"runs": [RUN | {"inference": {"overlay": []}}]}, r"unknown entries \['overlay'\]"),
        ({"runs": [RUN | {"inference": "a.yaml"}]}, "`inference` of run local must be a mapping"),
        ({"runs": [RUN | {"overrides": ["x"]}]}, "`overrides` of run local must be a mapping"),
    ],
)
def test_load_study__mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_study(write(tmp_path, **changes))


def test_load_study__a_single_item_is_a_list(tmp_path):
    run = RUN | {"overlays": "methods/a.yaml", "inference": {"overlays": "methods/b.yaml"}}
    study = load_study(write(tmp_path, seeds=3, label_budgets=7, runs=[run]))
    assert (study.seeds, study.label_budgets) == ((3,), (7,))
    assert study.runs[0].overlays == ("methods/a.yaml",)
    assert study.runs[0].inference == {"overlays": ("methods/b.yaml",)}


def test_load_study__a_link_to_the_data_is_their_place(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "site").symlink_to(tmp_path / "elsewhere")
    study = load_study(write(tmp_path))
    assert study.portable(study.runs[0])["data"] == "site"


def test_load_study__missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        load_study(tmp_path / "none.yaml")


def test_printed__a_list_or_a_file_with_one(tmp_path):
    rows = "- {method: a, label: mean, dice: 0.9, source: table 1}\n"
    (tmp_path / "printed.yaml").write_text(rows)
    base = "test: {data: d}\nruns: [{name: a, mode: evaluate, bundle: b}]\n"
    file = tmp_path / "study.yaml"
    file.write_text(base + "printed: printed.yaml\n")
    assert load_study(file).printed[0]["dice"] == 0.9
    file.write_text(base + "printed: missing.yaml\n")
    with pytest.raises(UserError, match=r"missing\.yaml, which does not exist"):
        load_study(file)
    file.write_text(base + "printed: [{method: a}]\n")
    with pytest.raises(UserError, match="needs method, label, dice and source"):
        load_study(file)


def test_printed_cost__names_columns_of_the_cost_table(tmp_path):
    base = "test: {data: d}\nruns: [{name: a, mode: evaluate, bundle: b}]\n"
    file = tmp_path / "study.yaml"
    file.write_text(base + "printed_cost: [{method: a, gflops: 3.0, source: table 1}]\n")
    assert load_study(file).printed_cost[0]["gflops"] == 3.0
    for row in ("{method: a, source: table 1}", "{method: a, source: table 1, flops: 3.0}"):
        file.write_text(base + f"printed_cost: [{row}]\n")
        with pytest.raises(UserError, match="some of parameters, gflops, seconds_per_step"):
            load_study(file)


def test_sweep__names_methods_of_the_study(tmp_path):
    file = tmp_path / "study.yaml"
    base = "test: {data: d}\nruns: [{name: a, mode: evaluate, bundle: b}]\n"
    file.write_text(base + "sweep: {name: beta0, values: {a: 0.1}}\n")
    assert load_study(file).sweep["values"] == {"a": 0.1}
    file.write_text(base + "sweep: {name: beta0, values: {c: 0.1}}\n")
    with pytest.raises(UserError, match="methods that no run has"):
        load_study(file)
