"""Values of a configuration on the command line."""

from __future__ import annotations

import pytest

from medseg_kit.cli.arguments import value_parsers
from medseg_kit.cli.federate import simulate
from medseg_kit.cli.overrides import parse_overrides
from medseg_kit.typing import UserError


def test_parse_overrides__reads_numbers_and_words():
    assert parse_overrides(["lr=1e-3", "amp=off", "name=a=b"]) == {
        "lr": 0.001,
        "amp": "off",
        "name": "a=b",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("organs=[liver, spleen]", ["liver", "spleen"]),
        ('organs=["liver","spleen"]', ["liver", "spleen"]),
        ("roi=[96,96,32]", [96, 96, 32]),
        ("windows={liver: [-200, 200]}", {"liver": [-200, 200]}),
    ],
)
def test_parse_overrides__lists_survive_the_command_line(text, value):
    (item,) = value_parsers(simulate)["set"](text)
    assert list(parse_overrides([item]).values()) == [value]


@pytest.mark.parametrize(
    ("text", "message"), [("learning_rate", "write id=value"), ("a=[1, 2", "cannot be read")]
)
def test_parse_overrides__what_cannot_be_read(text, message):
    with pytest.raises(UserError, match=message):
        parse_overrides([text])
