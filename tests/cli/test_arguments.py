"""Arguments are checked before a command runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg_kit.cli.arguments import UsageError, call
from medseg_kit.typing import PathLike


def command(
    bundle: str,
    input: PathLike,
    out: PathLike,
    *,
    overlap: float = 0.25,
    num_parts: int = 1,
    overwrite: bool = False,
    organs: list[str] | None = None,
    table: Path | None = None,
):
    return dict(locals())


def collect(*runs: str, out: str = "x"):
    return runs, out


def test_call__short_options_paths_and_types():
    words = ["hippo", "-i", "1e3", "-o", "007", "--overlap=0.5", "--num-parts", "4", "--overwrite"]
    values = call(command, words)
    assert values == {
        "bundle": "hippo",
        "input": "1e3",
        "out": "007",
        "overlap": 0.5,
        "num_parts": 4,
        "overwrite": True,
        "organs": None,
        "table": None,
    }


@pytest.mark.parametrize("text", ["liver,spleen", "['liver', 'spleen']", "[liver,spleen]"])
def test_call__lists(text):
    assert call(command, ["b", "i", "o", "--organs", text])["organs"] == ["liver", "spleen"]


def test_call__list_options_repeat_and_keep_brackets():
    words = ["b", "i", "o", "--organs", "set=[liver, spleen]", "--organs=a=1,b=(2, 3)"]
    assert call(command, words)["organs"] == ["set=[liver, spleen]", "a=1", "b=(2, 3)"]


def test_call__switches_can_be_negated():
    assert call(command, ["b", "i", "o", "--no-overwrite"])["overwrite"] is False
    assert call(command, ["b", "i", "o", "--overwrite=false"])["overwrite"] is False


def test_call__variadic_words():
    assert call(collect, ["a", "1e3", "--out", "y"]) == (("a", "1e3"), "y")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["b", "i", "o", "--overlp", "1"], "unknown option --overlp; did you mean --overlap"),
        (["b", "i", "o", "--zzz"], "unknown option --zzz; options: .*--num_parts"),
        (["b", "i"], "OUT is missing"),
        (["b", "i", "o", "p"], "unexpected argument 'p'"),
        (["b", "i", "o", "-o", "p"], "OUT is given twice"),
        (["b", "i", "o", "--overlap", "1", "--overlap=2"], "--overlap is given twice"),
        (["b", "i", "o", "--num_parts", "1e3"], "--num_parts: '1e3' does not fit"),
        (["b", "i", "o", "--overlap", "--overwrite"], "--overlap needs a value"),
        (["b", "i", "o", "--overwrite=perhaps"], "--overwrite: 'perhaps'"),
    ],
)
def test_call__nothing_runs_on_wrong_usage(words, message):
    def spy(*args, **kwargs):
        pytest.fail("the command ran")

    spy.__signature__ = __import__("inspect").signature(command)
    spy.__annotations__ = command.__annotations__
    with pytest.raises(UsageError, match=message):
        call(spy, words)
