import json

import torch

from medseg_kit.engines.schedules import poly
from medseg_kit.losses.soft_dice import DiceCrossEntropy
from medseg_kit.methods.cross_teaching import CrossTeachingStep
from medseg_kit.methods.mcsc import BalancedContrast
from medseg_kit.study.options import options_of


def test_options__defaults_terms_and_schedules_by_name():
    step = CrossTeachingStep(
        supervised_loss=DiceCrossEntropy(),
        total_steps=9,
        lr_schedule=poly(),
        terms=[BalancedContrast(patches={"full": 11})],
    )
    options = options_of(step)
    assert options["type"] == "medseg_kit.methods.cross_teaching.CrossTeachingStep"
    assert (options["total_steps"], options["amp"], options["teacher"]) == (9, "off", None)
    assert options["lr_schedule"]["power"] == 0.9
    assert options["terms"][0]["patches"] == {"full": 11}
    assert options["terms"][0]["crossed"] is True
    assert "global_step" not in options
    json.dumps(options, allow_nan=False)


def test_options__parts_of_other_libraries_are_named():
    assert options_of(torch.nn.Linear(2, 1)) == {"type": "torch.nn.modules.linear.Linear"}


def test_options__numbers_that_json_does_not_have():
    assert options_of([float("inf"), 1.5]) == ["inf", 1.5]
