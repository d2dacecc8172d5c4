"""Divisions of subjects: always disjoint, always complete, the same on every machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_kit.data.datalist import SECTIONS
from medseg_kit.data.manifest_types import SiteRule, SiteSetting, Split
from medseg_kit.data.splits import equal_blocks, seeded_order, site_subjects, split_subjects
from medseg_kit.typing import UserError

subject_lists = st.lists(st.text("abc0123456789_", min_size=1, max_size=6), min_size=5, unique=True)
rules = st.sampled_from(["seeded", "last_sorted"])


def counted(rule: str, validation: int, test: int, seed: int = 0) -> Split:
    return Split(rule, counts={"validation": validation, "test": test}, seed=seed)


@given(subject_lists, rules, st.integers(0, 2), st.integers(0, 2), st.integers(0, 99))
def test_split_subjects__disjoint_and_complete(
    subjects: list[str], rule: str, validation: int, test: int, seed: int
) -> None:
    sections = split_subjects(subjects, counted(rule, validation, test, seed))
    everybody = [subject for section in SECTIONS for subject in sections[section]]
    assert sorted(everybody) == sorted(subjects)
    assert (len(sections["validation"]), len(sections["test"])) == (validation, test)
    assert sections == split_subjects(subjects[::-1], counted(rule, validation, test, seed))


@given(subject_lists, st.integers(0, 99), st.data())
def test_seeded_order__subset_keeps_the_order(
    subjects: list[str], seed: int, data: st.DataObject
) -> None:
    part = data.draw(st.lists(st.sampled_from(subjects), unique=True))
    whole = seeded_order(subjects, seed=seed)
    assert seeded_order(part, seed=seed) == [subject for subject in whole if subject in part]


@given(subject_lists, st.integers(1, 4), st.data())
def test_split_subjects__seeded_test_of_the_whole_is_never_trained_on_in_a_part(
    subjects: list[str], test: int, data: st.DataObject
) -> None:
    part = data.draw(st.lists(st.sampled_from(subjects), min_size=test + 1, unique=True))
    whole = split_subjects(subjects, counted("seeded", 0, test))
    assert not set(whole["test"]) & set(
        split_subjects(part, counted("seeded", 0, test))["training"]
    )


def test_seeded_order__is_fixed() -> None:
    assert seeded_order(["a", "b", "c", "d"], seed=2024) == ["c", "b", "a", "d"]


def test_split_subjects__last_sorted_takes_the_last() -> None:
    sections = split_subjects(["c", "a", "d", "b"], counted("last_sorted", 1, 1))
    assert sections == {"training": ["a", "b"], "validation": ["c"], "test": ["d"]}


def test_split_subjects__too_few_subjects() -> None:
    with pytest.raises(UserError, match="3 subjects are too few: the split sets aside 1"):
        split_subjects(["a", "b", "c"], counted("seeded", 1, 2))


@given(st.lists(st.integers()), st.integers(1, 9))
def test_equal_blocks__sizes_differ_by_one_at_most(items: list[int], num_blocks: int) -> None:
    blocks = equal_blocks(items, num_blocks)  # type: ignore[arg-type]  # any items do
    assert [item for block in blocks for item in block] == items
    assert len(blocks) == num_blocks
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


@given(subject_lists.filter(lambda names: len(names) >= 8), st.integers(1, 3))
def test_site_subjects__equal_blocks_are_disjoint_and_leave_test_out(
    subjects: list[str], num_sites: int
) -> None:
    sections = split_subjects(subjects, counted("seeded", 2, 2))
    members = {f"site-{i}": SiteRule(("liver",), None) for i in range(num_sites)}
    sites = site_subjects(sections, SiteSetting("view", "split", members))
    used = [subject for site in sites.values() for section in SECTIONS for subject in site[section]]
    assert sorted(used) == sorted(sections["training"] + sections["validation"])


def test_site_subjects__site_without_training_is_an_error() -> None:
    rule = SiteRule(("liver",), {"training": ("gone",), "validation": (), "test": ()})
    sections = {"training": ["a"], "validation": [], "test": []}
    with pytest.raises(UserError, match="site-liver has no training subject"):
        site_subjects(sections, SiteSetting("view", "split", {"site-liver": rule}))


def test_split_subjects__others_train() -> None:
    split = Split(
        "listed", sections={"training": (), "validation": ("b",), "test": ()}, others=True
    )
    sections = split_subjects(["c", "a", "b"], split)
    assert sections == {"training": ["a", "c"], "validation": ["b"], "test": []}
