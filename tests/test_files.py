import pytest

from medseg_kit.files import only_process, replacing, write_json, write_text
from medseg_kit.typing import UserError


def test_replacing__a_failure_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "new" / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        temporary.rename(tmp_path / "taken away")
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_write_json__refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_write_text__with_the_permissions_of_any_new_file(tmp_path):
    write_text(tmp_path / "a.txt", "µ")
    (tmp_path / "b.txt").touch()
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_only_process__a_second_one_is_told(tmp_path):
    folder = tmp_path / "run"
    with only_process(folder), pytest.raises(UserError, match="in use"), only_process(folder):
        pass
    with only_process(folder):
        pass
