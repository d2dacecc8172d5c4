"""One line instead of a stack trace, where the user can mend it."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.handlers import StatsHandler

from medseg_kit.bundle.errors import report_user_errors, user_message
from medseg_kit.typing import UserError


def _wrapped(error: Exception) -> RuntimeError:
    """Return an error as MONAI's configuration parser raises it."""
    outer, middle = RuntimeError("Failed to evaluate"), RuntimeError("Failed to instantiate")
    middle.__cause__, outer.__cause__ = error, middle
    return outer


def test_user_message__finds_what_monai_has_wrapped():
    assert user_message(_wrapped(UserError("data is empty; prepare it"))) == (
        "data is empty; prepare it"
    )


def test_user_message__names_the_file_that_cannot_be_used():
    with pytest.raises(OSError, match="No such file") as caught:
        open("/nowhere/file")  # noqa: PTH123, SIM115
    assert user_message(_wrapped(caught.value)) == "/nowhere/file: No such file or directory"


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_user_message__what_a_component_says_about_an_argument(kind):
    wrapped = _wrapped(kind("heads ['x'] are not among the organs"))
    assert user_message(wrapped) == "Failed to instantiate: heads ['x'] are not among the organs"
    assert user_message(kind("shape")) is None


@pytest.mark.parametrize("error", [RuntimeError("x"), OSError("no file"), KeyError("x")])
def test_user_message__a_fault_of_the_program_keeps_its_trace(error):
    assert user_message(_wrapped(error)) is None


def test_user_message__weights_of_another_network():
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 1).load_state_dict(torch.nn.Linear(3, 1).state_dict())
    assert "the weights of this Linear" in user_message(_wrapped(caught.value))


def test_report_user_errors__one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    report_user_errors()
    sys.excepthook(RuntimeError, _wrapped(UserError("data is empty")), None)
    assert capsys.readouterr().err == "error: data is empty\n"
    sys.excepthook(RuntimeError, RuntimeError("a fault"), None)
    assert "RuntimeError: a fault" in capsys.readouterr().err


class Failing(torch.nn.Module):
    def forward(self, image):
        raise self.error


@pytest.mark.parametrize(("error", "is_traced"), [(UserError("empty"), False), (KeyError(0), True)])
def test_report_user_errors__no_trace_in_the_log_before_the_line(
    error, is_traced, monkeypatch, caplog
):
    network = Failing()
    network.error = error
    evaluator = SupervisedEvaluator(
        "cpu", [{"image": torch.zeros(1)}], network, val_handlers=[StatsHandler()]
    )
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])
    own = logging.getLogger("monai.handlers.StatsHandler")
    for logger in (own, caplog.handler):
        monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setattr(own, "handlers", [caplog.handler])
    report_user_errors()
    with pytest.raises(type(error)):
        evaluator.run()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert bool(errors) is is_traced
