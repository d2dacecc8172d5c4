"""The ``medseg`` command: dispatch, help, exit codes, start-up time."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time

import pytest

from medseg_kit.cli import main as cli
from medseg_kit.typing import UserError


def run(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    captured = capsys.readouterr()
    return caught.value.code, captured.out, captured.err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_main__overview_names_every_command(words, capsys):
    code, out, _ = run(words, capsys)
    assert code == 0
    assert all(name in out for name in cli.COMMANDS)


def test_main__group_shows_its_commands(capsys):
    code, out, _ = run(["data"], capsys)
    assert code == 0
    assert "data prepare" in out
    assert "predict" not in out


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["predit"], "did you mean 'predict'"), (["data", "prepar"], "did you mean 'prepare'")],
)
def test_main__unknown_command(words, hint, capsys):
    code, _, err = run(words, capsys)
    assert code == 2
    assert hint in err


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (UserError("a.nii: empty; give another"), 1, "error: a.nii: empty; give another\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(30, "Read-only file system", "/cd/x"), 1, "error: /cd/x: Read-only file system\n"),
    ],
)
def test_main__exit_codes(outcome, code, message, capsys, monkeypatch):
    def command() -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(cli, "load_command", lambda _name: command)
    assert run(["doctor"], capsys) == (code, "", message)


def test_main__wrong_option_points_to_help(capsys, monkeypatch):
    def command(*, out: str = "x") -> None:
        pytest.fail("the command ran")

    monkeypatch.setattr(cli, "load_command", lambda _name: command)
    code, _, err = run(["doctor", "--outt", "y"], capsys)
    assert code == 2
    assert "did you mean --out?" in err
    assert "medseg doctor --help" in err


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_command__has_a_docstring_with_an_example(name, capsys):
    module = cli.COMMANDS[name][0].partition(":")[0]
    assert importlib.util.find_spec(f"medseg_kit.cli.{module}"), f"{module}.py is missing"
    code, out, _ = run([*name.split(), "--help"], capsys)
    assert code == 0
    assert "Example" in out


def _seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


@pytest.mark.slow
def test_help__starts_in_a_quarter_of_importing_monai():
    help_code = (
        "import sys; sys.argv = ['medseg', '--help']; import medseg_kit.cli.main as m; m.main()"
    )
    ratios = [_seconds(help_code) / _seconds("import monai") for _ in range(3)]
    assert sorted(ratios)[1] <= 0.25


def test_output__a_reader_that_leaves_is_no_stack_trace():
    script = f"{sys.executable} -m medseg_kit.cli doctor | true"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, encoding="utf-8", check=False
    )
    assert "Traceback" not in done.stderr
