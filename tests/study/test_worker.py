"""What a run's process leaves behind when it cannot be done."""

from __future__ import annotations

import pytest

from medseg_kit.study import worker
from medseg_kit.typing import UserError


@pytest.fixture(autouse=True)
def _no_parent(monkeypatch):
    monkeypatch.setattr(worker, "_end_with_parent", lambda: None)


def test_main__a_users_mistake_inside_a_configuration_is_one_line(monkeypatch, tmp_path):
    def fail(_):
        try:
            raise UserError("folder of registered labels a/labelled_7 does not exist")
        except UserError as error:  # as MONAI does while it builds a configuration
            raise RuntimeError("Failed to instantiate component") from error

    monkeypatch.setattr(worker, "execute", fail)
    assert worker.main(tmp_path) == 1
    found = (tmp_path / "error.txt").read_text()
    assert found == "folder of registered labels a/labelled_7 does not exist"
    assert not (tmp_path / "record.json").exists()


def test_main__a_fault_of_the_program_keeps_its_trace(monkeypatch, tmp_path):
    def fail(_):
        raise ZeroDivisionError

    monkeypatch.setattr(worker, "execute", fail)
    with pytest.raises(ZeroDivisionError):
        worker.main(tmp_path)
    assert not (tmp_path / "error.txt").exists()
