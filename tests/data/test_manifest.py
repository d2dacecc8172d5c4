"""The manifests that come with the package: golden counts, one numbering, clear errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medseg_kit.data.datalist import SECTIONS
from medseg_kit.data.findings import ALLOWABLE, WARNING
from medseg_kit.data.manifest import (
    load_dataset_manifest,
    load_manifest,
    manifest_names,
)
from medseg_kit.data.manifest_types import Collection, Manifest
from medseg_kit.data.plan import Plan, make_plan
from medseg_kit.data.readers import READERS
from medseg_kit.typing import UserError
from tests.data.conftest import tiny_manifest

NAMES = manifest_names()
DATASETS = [name for name in NAMES if isinstance(load_manifest(name), Manifest)]
ABDOMEN = ("liver", "spleen", "pancreas", "kidneys")
# Labelled cases of the public sets
PUBLIC = {"msd_liver": 131, "msd_spleen": 41, "msd_pancreas": 281, "kits19": 210}


def touch_msd(folder: Path, subjects: list[str]) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
        for subject in subjects:
            (folder / name / f"{subject}.nii.gz").touch()


@pytest.fixture(scope="module")
def public_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty files in the layout and number of the public sets; a plan opens none of them."""
    tmp_path = tmp_path_factory.mktemp("public")
    touch_msd(tmp_path / "Task03_Liver", [f"liver_{i}" for i in range(131)])
    touch_msd(tmp_path / "Task09_Spleen", [f"spleen_{i}" for i in range(41)])
    touch_msd(tmp_path / "Task07_Pancreas", [f"pancreas_{i:03d}" for i in range(281)])
    (tmp_path / "Task03_Liver" / "imagesTr" / "._liver_0.nii.gz").touch()
    for index in range(300):
        case = tmp_path / "kits19" / "data" / f"case_{index:05d}"
        case.mkdir(parents=True)
        (case / "imaging.nii.gz").touch()
        if index < 210:
            (case / "segmentation.nii.gz").touch()
    return tmp_path


def count(plan: Plan, section: str, site: str | None = None) -> int:
    return sum(c.section == section and site in (None, c.site) for c in plan.cases)


@pytest.mark.parametrize("name", DATASETS)
def test_manifest__is_valid_and_named_like_its_file(name: str) -> None:
    manifest = load_dataset_manifest(name)
    assert manifest.name == name
    assert manifest.layout in READERS
    assert set(manifest.allow) <= set(ALLOWABLE) | set(WARNING)
    assert all((manifest.source, manifest.licence, manifest.citation))


@pytest.mark.parametrize("name", DATASETS)
def test_manifest__views_of_one_name_number_organs_alike(name: str) -> None:
    for view_name, view in load_dataset_manifest(name).views.items():
        if view_name.startswith("abdomen4"):
            assert view.organs == ABDOMEN


def test_manifest__data_sets_that_the_foundation_needs_are_there() -> None:
    assert {*PUBLIC, "hippocampus", "btcv", "btcv_8bit", "segviz"} <= set(NAMES)
    assert {name: load_dataset_manifest(name).num_subjects for name in PUBLIC} == PUBLIC


@pytest.mark.parametrize("name", ["btcv", "btcv_8bit"])
def test_btcv__published_split_has_18_and_12_disjoint_scans(name: str) -> None:
    manifest = load_dataset_manifest(name)
    split = manifest.splits["published"].sections
    assert (len(split["training"]), len(split["test"])) == (18, 12)
    assert not set(split["training"]) & set(split["test"])
    everybody = {f"{i:04d}" for i in (*range(1, 11), *range(21, 41))}
    assert set(split["training"]) | set(split["test"]) == everybody
    assert set(manifest.splits["external"].sections["test"]) == everybody
    assert manifest.views["abdomen4"].raw == ((6,), (1,), (11,), (2, 3))


@pytest.mark.parametrize("name", ["btcv", "btcv_8bit"])
def test_btcv__four_sites_share_the_training_scans(name: str) -> None:
    manifest = load_dataset_manifest(name)
    members = manifest.sites["four_organs"].members
    sizes = {
        site: [len(rule.sections[section]) for section in SECTIONS]
        for site, rule in members.items()
        if rule.sections
    }
    assert sizes == {
        "site-liver": [3, 1, 0],
        "site-spleen": [3, 1, 0],
        "site-pancreas": [4, 1, 0],
        "site-kidneys": [4, 1, 0],
    }
    used = [
        s for rule in members.values() for group in (rule.sections or {}).values() for s in group
    ]
    assert sorted(used) == sorted(manifest.splits["published"].sections["training"])


def test_btcv_8bit__gives_the_window_it_was_stored_with() -> None:
    stored = load_dataset_manifest("btcv_8bit").stored_intensity
    assert 0 * stored.slope + stored.intercept == -125
    assert 255 * stored.slope + stored.intercept == pytest.approx(275)


@pytest.mark.parametrize(("num_cases", "per_site"), [(220, 80), (260, 100)])
def test_hippocampus__sites_share_what_test_and_validation_leave(
    tmp_path: Path, num_cases: int, per_site: int
) -> None:
    touch_msd(tmp_path / "Task04_Hippocampus", [f"hippocampus_{i:03d}" for i in range(num_cases)])
    plan = make_plan("hippocampus", source=tmp_path, sites="two_parts")
    assert [count(plan, section) for section in SECTIONS] == [2 * per_site, 20, 40]
    for site in ("site-anterior", "site-posterior"):
        assert [count(plan, section, site) for section in SECTIONS] == [per_site, 10, 0]
    assert len({case.raw.subject for case in plan.cases}) == num_cases


@pytest.mark.parametrize(
    ("setting", "validation"),
    [
        ("two_nodes", {"site-liver": 25, "site-spleen": 9}),
        ("three_nodes", {"site-liver": 25, "site-spleen": 9, "site-pancreas": 56}),
        (
            "four_nodes",
            {"site-liver": 25, "site-spleen": 9, "site-pancreas": 56, "site-kidneys": 42},
        ),
    ],
)
def test_segviz__validation_counts_of_the_published_nodes(
    public_layout: Path, setting: str, validation: dict[str, int]
) -> None:
    plan = make_plan("segviz", source=public_layout, sites=setting)
    assert {site: count(plan, "validation", site) for site in plan.sites} == validation
    datasets = {"liver": "msd_liver", "spleen": "msd_spleen", "pancreas": "msd_pancreas"}
    total = sum(PUBLIC[datasets.get(o, "kits19")] for (o,) in plan.sites.values())
    assert len(plan.cases) == total
    assert count(plan, "test") == 0
    assert not plan.findings


def test_segviz__validation_is_the_last_of_the_sorted_names(public_layout: Path) -> None:
    plan = make_plan("segviz", source=public_layout)
    spleen = [
        c.raw.subject for c in plan.cases if (c.site, c.section) == ("site-spleen", "validation")
    ]
    everybody = sorted(f"spleen_{i}" for i in range(41))
    assert spleen == everybody[-9:]
    assert [c.annotated for c in plan.cases if c.site == "site-spleen"] == [("spleen",)] * 41
    assert count(plan, "validation") == 132


@pytest.mark.parametrize("name", list(PUBLIC))
def test_public_sets__one_site_each_and_condistfl_sizes(public_layout: Path, name: str) -> None:
    sizes = {"kits19": 126, "msd_liver": 79, "msd_pancreas": 169, "msd_spleen": 25}
    plan = make_plan(name, source=public_layout, split="condistfl_sizes")
    assert count(plan, "training") == sizes[name]
    assert len(make_plan(name, source=public_layout, sites="segviz").sites) == 1


def test_segviz__missing_member_names_its_folders(tmp_path: Path) -> None:
    touch_msd(tmp_path / "Task03_Liver", [f"liver_{i}" for i in range(131)])
    with pytest.raises(UserError, match=r"none of the folders \['Task09_Spleen'\] for site-spleen"):
        make_plan("segviz", source=tmp_path, sites="two_nodes")


def test_segviz__fixes_view_and_split(tmp_path: Path) -> None:
    assert isinstance(load_manifest("segviz"), Collection)
    with pytest.raises(UserError, match="segviz fixes view and split"):
        make_plan("segviz", source=tmp_path, view="abdomen4")
    with pytest.raises(UserError, match="single data set is needed"):
        load_dataset_manifest("segviz")


def test_load_manifest__unknown_name_offers_the_closest() -> None:
    with pytest.raises(UserError, match="did you mean hippocampus"):
        load_manifest("hipocampus")
    with pytest.raises(UserError, match=r"mine\.yaml does not exist"):
        load_manifest("mine.yaml")


def replaced(*path: str, value: Any) -> dict[str, Any]:
    """The tiny manifest's top-level entry with one nested value replaced."""
    content = tiny_manifest()
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return {path[0]: content[path[0]]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "PET"}, "modality: 'PET' is not one of"),
        ({"colour": "red"}, r"unknown key\(s\) colour"),
        ({"default_view": "tow"}, "no view 'tow', known are: three, two; did you mean two"),
        ({"allow": {"non-finite": "why not"}}, "cannot allow non-finite"),
        ({"default_split": "none"}, "no split 'none'"),
        ({"laterality": [[1, 9]]}, r"raw label values \[9\] do not stand in labels"),
        (replaced("views", "two", value={1: {"name": "liver", "raw": [2, 7]}}), r"\[7\]"),
        (
            replaced(
                "views", "two", value={1: {"name": "a", "raw": [2]}, 2: {"name": "b", "raw": [2]}}
            ),
            "gives one raw label value to two organs",
        ),
        (
            replaced("splits", "listed", "training", value=[1, 7]),
            "splits.listed: should be: a split",
        ),
        (replaced("splits", "listed", "training", value=["case_4"]), r"\['case_4'\] stand in two"),
        (
            replaced("sites", "pair", "members", value={"s": {"organs": ["heart"]}}),
            r"s cannot annotate \['heart'\]; view two has",
        ),
        (
            replaced(
                *("sites", "pair", "members"),
                value={"s": {"organs": ["liver"], "training": ["case_5"]}},
            ),
            r"sites use test subjects \['case_5'\]",
        ),
    ],
)
def test_load_manifest__mistakes_are_named(
    manifest_file: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_manifest(manifest_file(**changes))
    assert "tiny.yaml" in str(caught.value)


def test_load_manifest__broken_yaml(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="no valid YAML"):
        load_manifest(tmp_path / "bad.yaml")


def test_make_plan__choices_that_contradict_each_other(
    raw_set: Path, manifest_file: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match="needs view two, not three; leave --view out"):
        make_plan(manifest_file(), source=raw_set, view="three", sites="pair")
    with pytest.raises(UserError, match=r"no sites setting 'pairs'.*did you mean pair"):
        make_plan(manifest_file(), source=raw_set, sites="pairs")
