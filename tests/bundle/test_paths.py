"""Finding bundles by path, name and running process."""

from __future__ import annotations

import pytest

from medseg_kit.bundle.paths import (
    command_line_config_files,
    find_bundle_root,
    list_bundles,
    resolve_bundle,
)
from medseg_kit.typing import UserError


def test_resolve_bundle__by_path_name_and_variable(toy_bundle, tmp_path, monkeypatch):
    assert resolve_bundle(toy_bundle) == toy_bundle
    monkeypatch.chdir(tmp_path)
    assert resolve_bundle("toy_mr_net") == toy_bundle
    monkeypatch.chdir(toy_bundle)
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path / "bundles"))
    assert resolve_bundle("toy_mr_net") == toy_bundle
    assert "toy_mr_net" in list_bundles()


def test_resolve_bundle__unknown_name_suggests_the_closest(toy_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did you mean 'toy_mr_net'"):
        resolve_bundle("toy_mr_nett")
    with pytest.raises(UserError, match="MEDSEG_BUNDLES"):
        resolve_bundle("zzzz")


def test_resolve_bundle__folder_without_metadata(tmp_path):
    with pytest.raises(UserError, match=r"no configs/metadata\.json"):
        resolve_bundle(tmp_path)


def test_find_bundle_root__config_file_decides(toy_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(toy_bundle / "configs" / "train.yaml")
    for words in (["--config_file", config], [f"--config_file=['{config}','x.yaml']"]):
        assert find_bundle_root("other_name", ["prog", "run", *words]) == str(toy_bundle)
    assert find_bundle_root("toy_mr_net", ["prog"]) == str(toy_bundle)


@pytest.mark.parametrize("text", ["a.yaml,b.yaml", "['a.yaml', 'b.yaml']", "[a.yaml,b.yaml]"])
def test_command_line_config_files__forms(text):
    assert command_line_config_files(["p", "--config_file", text]) == ["a.yaml", "b.yaml"]
    assert command_line_config_files(["p", f"--config-file={text}"]) == ["a.yaml", "b.yaml"]
