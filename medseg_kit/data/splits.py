"""Division of subjects into sections and sites; never of slices or files."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence

from medseg_kit.data.datalist import SECTIONS
from medseg_kit.data.manifest_types import SiteSetting, Split
from medseg_kit.typing import UserError

Sections = dict[str, list[str]]


def split_subjects(subjects: Sequence[str], split: Split) -> Sections:
    """Divide the available subjects into training, validation and test.

    Rules: ``listed`` takes the lists of the manifest, in their order and as far as available, and
    with ``training: others`` trains on all that no list names, sorted;
    ``last_sorted`` sorts the subjects, the last `test` are test, the `validation` before them
    validation; ``seeded`` orders them with `seeded_order`, the first `test` are test, the next
    `validation` validation. The rest is training.

    Args:
        subjects: Subjects found in the raw data, each once.
        split: Rule of the manifest.

    Returns:
        Section name to subjects. Subjects that no list names appear in no section.

    Raises:
        UserError: When fewer subjects are there than the rule sets aside.
    """
    if split.rule == "listed":
        available = set(subjects)
        listed = {s: [name for name in split.sections[s] if name in available] for s in SECTIONS}
        if split.others:
            listed["training"] = sorted(available.difference(*listed.values()))
        return listed
    num_test, num_validation = split.counts["test"], split.counts["validation"]
    if len(subjects) <= num_test + num_validation:
        raise UserError(
            f"{len(subjects)} subjects are too few: the split sets aside {num_validation} for"
            f" validation and {num_test} for test; use the whole data set or a manifest of your own"
        )
    if split.rule == "seeded":
        ordered = seeded_order(subjects, seed=split.seed)
    else:
        ordered = sorted(subjects, reverse=True)
    sections = {
        "training": ordered[num_test + num_validation :],
        "validation": ordered[num_test : num_test + num_validation],
        "test": ordered[:num_test],
    }
    if split.rule == "last_sorted":
        sections = {name: names[::-1] for name, names in sections.items()}
    return sections


def seeded_order(subjects: Sequence[str], *, seed: int) -> list[str]:
    """Order subjects by the SHA-256 of ``<seed>:<subject>``.

    Two subjects keep their order whoever else is there, so a model trained on a part of a data set
    was never trained on a test subject that the same rule finds in the whole set.

    Args:
        subjects: Subjects, in any order.
        seed: Another seed gives another order.

    Returns:
        The same subjects, ordered.
    """
    return sorted(subjects, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def equal_blocks(subjects: Sequence[str], num_blocks: int) -> list[list[str]]:
    """Cut an ordered list into consecutive blocks whose sizes differ by one at most.

    Args:
        subjects: Ordered subjects.
        num_blocks: Number of blocks, at least 1; the first blocks are the larger ones.

    Returns:
        The blocks.
    """
    size, rest = divmod(len(subjects), num_blocks)
    ends = [block * size + min(block, rest) for block in range(num_blocks + 1)]
    return [list(subjects[a:b]) for a, b in itertools.pairwise(ends)]


def site_subjects(
    sections: Mapping[str, Sequence[str]], setting: SiteSetting
) -> dict[str, Sections]:
    """Divide the training and validation subjects of a split among sites.

    Args:
        sections: Result of `split_subjects` for the split of the setting.
        setting: Sites of the manifest, with listed subjects or with equal blocks.

    Returns:
        Site name to its sections; test subjects belong to no site unless the setting lists them.

    Raises:
        UserError: When a site is left without a training subject.
    """
    available = {name for names in sections.values() for name in names}
    sites: dict[str, Sections] = {
        name: {
            section: [subject for subject in subjects if subject in available]
            for section, subjects in (rule.sections or dict.fromkeys(SECTIONS, ())).items()
        }
        for name, rule in setting.members.items()
    }
    if all(rule.sections is None for rule in setting.members.values()):
        for section in ("training", "validation"):
            blocks = equal_blocks(sections[section], len(sites))
            for site, block in zip(sites.values(), blocks, strict=True):
                site[section] = block
    for name, site in sites.items():
        if not site["training"]:
            raise UserError(f"{name} has no training subject among the {len(available)} available")
    return sites


def support_subjects(
    sections: Mapping[str, Sequence[str]],
    split: Split,
    sites: Mapping[str, Sections],
    setting: SiteSetting | None,
) -> set[str]:
    """Name the support scans of one-shot segmentation: of each site, or of the whole split.

    Args:
        sections: Result of `split_subjects`.
        split: Rule of the manifest.
        sites: Result of `site_subjects`; empty without sites.
        setting: Sites of the manifest, or None.

    Returns:
        The first training subjects that are there, as many as the rule says.

    Raises:
        UserError: When no training subject would be left beside the support.
    """
    if setting is None:
        groups = {"the split": (sections["training"], split.support)}
    else:
        rules = setting.members.items()
        groups = {name: (sites[name]["training"], rule.support) for name, rule in rules}
    for name, (training, number) in groups.items():
        if number and len(training) <= number:
            raise UserError(
                f"{name} has {len(training)} training scan(s) and sets aside {number} as support:"
                " nothing is left to train on; give more scans"
            )
    return {subject for training, number in groups.values() for subject in training[:number]}


def hidden_subjects(sites: Mapping[str, Sections], setting: SiteSetting) -> set[str]:
    """Name the training subjects whose labels their site does not have.

    Args:
        sites: Result of `site_subjects`.
        setting: Sites of the manifest; ``labelled`` counts in the order of its list, also where
            some of the listed subjects are not available.

    Returns:
        The subjects after the first ``labelled`` of each site.
    """
    hidden: set[str] = set()
    for name, rule in setting.members.items():
        if rule.labelled is not None:
            listed = rule.sections["training"] if rule.sections else sites[name]["training"]
            hidden |= set(sites[name]["training"]) - set(listed[: rule.labelled])
    return hidden
