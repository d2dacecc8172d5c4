"""Strict composing, in process and through MONAI's own command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medseg_kit.bundle.config import (
    check_overrides,
    command_line_options,
    component_parameters,
    load_config,
)
from medseg_kit.typing import UserError

PROGRAM = str(Path("site") / "monai" / "bundle" / "__main__.py")


def _argv(bundle: Path, *options: str) -> list[str]:
    return [PROGRAM, "run", "--config_file", str(bundle / "configs" / "train.yaml"), *options]


def test_load_config__sets_root_and_overrides(toy_bundle):
    parser = load_config(
        toy_bundle, ["train.yaml"], overrides={"train#trainer#max_epochs": 7, "learning_rate": 0.5}
    )
    assert parser["train"]["trainer"]["max_epochs"] == 7
    assert parser.get_parsed_content("bundle_root") == str(toy_bundle)
    assert parser["_meta_"]["version"] == "0.1.0"


def test_load_config__misspelt_override_names_the_closest_id(toy_bundle):
    with pytest.raises(UserError, match=r"'learning_rat'.*did you mean 'learning_rate'"):
        load_config(toy_bundle, ["train.yaml"], overrides={"learning_rat": 1})


def test_load_config__missing_file_lists_the_existing_ones(toy_bundle):
    with pytest.raises(UserError, match=r"trian\.yaml does not exist; .*train\.yaml"):
        load_config(toy_bundle, ["trian.yaml"])


def test_load_config__broken_yaml_names_the_file(toy_bundle):
    (toy_bundle / "configs" / "train.yaml").write_text("a: [1, 2")
    with pytest.raises(UserError, match=r"train\.yaml"):
        load_config(toy_bundle, ["train.yaml"])


@pytest.mark.parametrize(
    "option",
    [
        ["--learning_rate", "3"],
        ["--learning-rate=3"],
        ["--train::trainer::max_epochs", "3"],
        ["--train#trainer#max_epochs=3"],
        ["--train#handlers#0#interval", "3"],
        ["--network_def#kernel_size", "3"],  # an argument of the component that the file leaves out
        ["--_meta_#version", "2"],
        ["--bundle_root", "/data/x=y"],
        ["--run_id", "evaluating"],
        ["--tracking", "mlflow", "--experiment_name", "first"],
        ["--learning_rate", "-3"],
    ],
)
def test_check_overrides__accepts_existing_ids(toy_bundle, option):
    check_overrides(_argv(toy_bundle, *option))


@pytest.mark.parametrize(
    ("option", "close"),
    [
        (["--learning_rte", "3"], "learning_rate"),
        (["--lerning_rate=a=b"], "learning_rate"),
        (["--train#trainer#max_epoch", "3"], "train::trainer::max_epochs"),
        (["--train::trianer::max_epochs=3"], "train::trainer::max_epochs"),
        (["--max_epochs", "3"], "train::trainer::max_epochs"),
        (["--network_def#kernel", "3"], "network_def"),
        (["--train#handlers#1#interval", "3"], "train::handlers::0::interval"),
    ],
)
def test_check_overrides__names_the_closest_id(toy_bundle, option, close):
    with pytest.raises(SystemExit, match=f"error: unknown override .*did you mean '{close}"):
        check_overrides(_argv(toy_bundle, *option))


def test_check_overrides__a_lower_case_truth_value_is_an_error(toy_bundle):
    with pytest.raises(SystemExit, match="write False"):
        check_overrides(_argv(toy_bundle, "--learning_rate", "false"))


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        (["--learning_rate", "fast"], "learning_rate is 0.1 in train.yaml and takes a number"),
        (["--train::trainer::max_epochs=many"], "takes a number, not 'many'"),
    ],
)
def test_check_overrides__text_in_the_place_of_a_number(toy_bundle, option, wanted):
    with pytest.raises(SystemExit, match=wanted):
        check_overrides(_argv(toy_bundle, *option))
    check_overrides(_argv(toy_bundle, "--learning_rate", "$1/2"))


@pytest.mark.parametrize(
    ("value", "text", "wanted"),
    [(True, "off", "True or False"), ([8, 8], "large", "a list of numbers"), (2, "x", "a number")],
)
def test_load_config__text_in_the_place_of_something_else(toy_bundle, value, text, wanted):
    (toy_bundle / "configs" / "value.yaml").write_text(f"value: {value}\n")
    with pytest.raises(UserError, match=f"takes {wanted}, not '{text}'"):
        load_config(toy_bundle, ["train.yaml", "value.yaml"], overrides={"value": text})
    changed = load_config(toy_bundle, ["train.yaml", "value.yaml"], overrides={"value": None})
    assert changed["value"] is None


def test_load_config__a_number_for_which_a_component_takes_text():
    changed = load_config(
        "abdomen_multimodal_cowpro", ["train.yaml"], overrides={"mr_body": "otsu"}
    )
    assert changed["mr_body"] == "otsu"
    files = ["train.yaml", "methods/masked_images.yaml"]  # labelled: 0, a Budget
    changed = load_config("cardiac_mr_semi_supervised", files, overrides={"labelled": "all"})
    assert changed["labelled"] == "all"


def test_check_overrides__none_which_monai_leaves_out(toy_bundle):
    with pytest.raises(SystemExit, match=r"write --learning_rate '\$None'"):
        check_overrides(_argv(toy_bundle, "--learning_rate", "None"))
    check_overrides(_argv(toy_bundle, "--learning_rate", "$None"))
    with pytest.raises(SystemExit, match="MONAI ignores"):  # its default is another
        check_overrides(_argv(toy_bundle, "--network_def#stride", "None"))


def test_check_overrides__reads_args_file(toy_bundle, tmp_path):
    arguments = tmp_path / "args.yaml"
    config = toy_bundle / "configs" / "train.yaml"
    arguments.write_text(f"config_file: {config}\nlearning_rte: 1\n")
    with pytest.raises(SystemExit, match="learning_rte"):
        check_overrides([PROGRAM, "run", "--args_file", str(arguments)])


def test_check_overrides__ignores_other_processes(toy_bundle):
    check_overrides(["pytest", *_argv(toy_bundle, "--nonsense", "1")[1:]])


def test_component_parameters__with_those_passed_on_to_a_base_class():
    names = component_parameters({"_target_": "medseg_kit.methods.segviz.SegVizStep"})
    assert {"organs", "loss_function", "terms", "amp"} <= names
    assert "options" not in names


def test_command_line_options__reads_like_fire():
    words = ["training", "--a::b", "-1.5", "--flag", "--c#d=x=y", "--", "--verbose"]
    assert command_line_options(words) == {"a::b": "-1.5", "flag": True, "c#d": "x=y"}


@pytest.mark.slow
@pytest.mark.parametrize(("option", "code"), [("--learning_rate", 0), ("--learning_rte", 1)])
def test_monai_run__from_a_foreign_directory(toy_bundle, tmp_path, option, code):
    command = [sys.executable, "-m", "monai.bundle", *_argv(toy_bundle, option, "0.25")[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == code, done.stderr
    if code:
        assert "did you mean 'learning_rate'" in done.stderr.splitlines()[-1]
        assert "ran" not in done.stdout
    else:
        assert f"ran 0.25 2 {toy_bundle}" in done.stdout
