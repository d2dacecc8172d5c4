"""What `data prepare` will do: which case goes where, decided before any image is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg_kit.data.datalist import SECTIONS
from medseg_kit.data.findings import Finding
from medseg_kit.data.label_map import with_label_map
from medseg_kit.data.manifest import load_dataset_manifest, load_manifest
from medseg_kit.data.manifest_types import Collection, Manifest, View, choose
from medseg_kit.data.readers import RawCase, find_root
from medseg_kit.data.sources import RawSource
from medseg_kit.data.splits import (
    Sections,
    hidden_subjects,
    site_subjects,
    split_subjects,
    support_subjects,
)
from medseg_kit.typing import PathLike, UserError


@dataclass(frozen=True)
class PlannedCase:
    """One raw case and its place in the prepared data set.

    Attributes:
        raw: Files and subject.
        root: Folder of the raw data set.
        manifest: Manifest of the data set that the case is from.
        view: Numbering of the prepared label.
        section: ``training``, ``validation`` or ``test``.
        site: Site that holds the case, or None.
        annotated: Organs that the label of the whole set annotates.
        labelled: Whether its site has the label, if there is one; the whole set always does.
        support: Whether it is a support scan of one-shot segmentation, never trained on.
    """

    raw: RawCase
    root: Path
    manifest: Manifest
    view: View
    section: str
    site: str | None
    annotated: tuple[str, ...]
    labelled: bool = True
    support: bool = False


@dataclass(frozen=True)
class Plan:
    """A prepared data set before it is made.

    Attributes:
        header: Everything of the datalist but its cases and sums.
        cases: All cases, by section, in the order of the split.
        sites: Site name to the organs that it annotates; empty without a sites setting.
        allow: Kinds of findings that the manifests call harmless, with the reason.
        findings: What is already wrong.
        choices: View, split and sites setting, for the report.
    """

    header: Mapping[str, Any]
    cases: Sequence[PlannedCase]
    sites: Mapping[str, tuple[str, ...]]
    allow: Mapping[str, str]
    findings: Sequence[Finding]
    choices: Mapping[str, str | None]


def make_plan(
    name: PathLike,
    *,
    source: PathLike,
    view: str | None = None,
    split: str | None = None,
    sites: str | None = None,
    label_map: Mapping[int, str] | None = None,
) -> Plan:
    """Decide which raw case goes to which section and site.

    Args:
        name: Manifest of a data set or of a collection: a name or the path of a YAML file.
        source: Folder of the raw data: the data set's own folder or the one that holds it.
        view: Numbering of the organs; the manifest's default if None.
        split: Division into training, validation and test; the manifest's default if None.
        sites: Setting that divides the training and validation cases among sites; none if None. A
            collection is always divided, by default as its manifest says.
        label_map: Raw label value to organ, for a copy that numbers them in its own way; the
            manifest's numbering if None. See `medseg_kit.data.label_map`.

    Returns:
        The plan.

    Raises:
        UserError: When a name is unknown, choices contradict each other, or the source folder does
            not have the layout of the manifest.
    """
    manifest = load_manifest(name)
    if isinstance(manifest, Collection):
        if view or split or label_map:
            raise UserError(
                f"{manifest.name} fixes view and split and takes no label map; choose only its"
                " sites setting"
            )
        return _plan_collection(manifest, Path(source), sites or manifest.default_sites)
    return _plan_dataset(
        manifest, Path(source), view=view, split=split, sites=sites, label_map=label_map
    )


def _plan_dataset(
    manifest: Manifest,
    source: Path,
    *,
    view: str | None,
    split: str | None,
    sites: str | None,
    label_map: Mapping[int, str] | None,
) -> Plan:
    setting = choose("sites setting", sites, manifest.sites, manifest.name) if sites else None
    view_name = _agree("view", view, setting and setting.view, manifest.default_view)
    split_name = _agree("split", split, setting and setting.split, manifest.default_split)
    choose("view", view_name, manifest.views, manifest.name)
    if label_map:
        manifest = with_label_map(manifest, view_name, label_map)
    chosen_view = manifest.views[view_name]
    chosen_split = choose("split", split_name, manifest.splits, manifest.name)
    raw = RawSource.read(manifest, source)
    for section, subjects in chosen_split.sections.items():
        raw.missing(subjects, f"split {split_name} ({section})")
    if setting:
        listed = {subject for subjects in chosen_split.sections.values() for subject in subjects}
        for site, rule in setting.members.items():
            for section, subjects in (rule.sections or {}).items():
                others = [subject for subject in subjects if subject not in listed]
                raw.missing(others, f"site {site} ({section})")
    sections = split_subjects(sorted(raw.cases), chosen_split)
    sites_of = site_subjects(sections, setting) if setting else {}
    hidden = hidden_subjects(sites_of, setting) if setting else set()
    supports = support_subjects(sections, chosen_split, sites_of, setting)
    holders = _holders(sections, sites_of)
    cases = [
        replace(case, labelled=subject not in hidden, support=subject in supports)
        for subject, (section, site) in holders.items()
        for case in _planned(raw, subject, section, chosen_view, site, chosen_view.annotated)
    ]
    raw.unused(list(holders), f"sites setting {sites}" if setting else f"split {split_name}")
    return Plan(
        header=_header([manifest], manifest.name, manifest.title, chosen_view),
        cases=_by_section(cases),
        sites={name: rule.organs for name, rule in setting.members.items()} if setting else {},
        allow=manifest.allow,
        findings=raw.findings,
        choices={
            "view": view_name,
            "split": split_name,
            "sites": sites,
            "label_map": None if label_map is None else str(dict(label_map)),
        },
    )


def _plan_collection(collection: Collection, source: Path, sites: str) -> Plan:
    names = choose("sites setting", sites, collection.sites, collection.name)
    members = {name: collection.members[name] for name in names}
    sources: list[RawSource] = []
    cases: list[PlannedCase] = []
    view = None
    for site, member in members.items():
        manifest = load_dataset_manifest(member.dataset)
        if find_root(source, manifest.folders) == source:
            raise UserError(
                f"{source} holds none of the folders {list(manifest.folders)} for {site}"
            )
        raw = RawSource.read(manifest, source)
        view = choose("view", collection.view, manifest.views, manifest.name)
        split = choose("split", member.split, manifest.splits, manifest.name)
        if unknown := set(member.organs) - set(view.annotated):
            raise UserError(
                f"{collection.name}: {member.dataset} lacks {sorted(unknown)} of {site}"
            )
        sections = split_subjects(sorted(raw.cases), split)
        supports = support_subjects(sections, split, {}, None)
        cases += [
            replace(case, support=subject in supports)
            for section, subjects in sections.items()
            for subject in subjects
            for case in _planned(raw, subject, section, view, site, member.organs)
        ]
        sources.append(raw)
    if view is None:
        raise AssertionError("unreachable: the schema asks for at least one member")
    manifests = [raw.manifest for raw in sources]
    return Plan(
        header=_header(manifests, collection.name, collection.title, view),
        cases=_by_section(cases),
        sites={name: member.organs for name, member in members.items()},
        allow={kind: reason for m in manifests for kind, reason in m.allow.items()},
        findings=[finding for raw in sources for finding in raw.findings],
        choices={"view": collection.view, "split": None, "sites": sites, "label_map": None},
    )


def _planned(
    source: RawSource,
    subject: str,
    section: str,
    view: View,
    site: str | None,
    organs: Sequence[str],
) -> Iterator[PlannedCase]:
    for raw in source.cases.get(subject, []):
        yield PlannedCase(raw, source.root, source.manifest, view, section, site, tuple(organs))


def _agree(kind: str, asked: str | None, fixed: str | None, default: str) -> str:
    if asked and fixed and asked != fixed:
        raise UserError(f"the sites setting needs {kind} {fixed}, not {asked}; leave --{kind} out")
    return asked or fixed or default


def _holders(
    sections: Mapping[str, Sequence[str]], sites: Mapping[str, Sections]
) -> dict[str, tuple[str, str | None]]:
    """Say for each subject its section and site; a site's choice of section counts."""
    holders: dict[str, tuple[str, str | None]] = {}
    for site, own in sites.items():
        for section, subjects in own.items():
            holders.update((subject, (section, site)) for subject in subjects)
    held_out = ("test",) if sites else SECTIONS
    for section in held_out:
        for subject in sections[section]:
            holders.setdefault(subject, (section, None))
    return holders


def _by_section(cases: Sequence[PlannedCase]) -> list[PlannedCase]:
    return sorted(cases, key=lambda case: SECTIONS.index(case.section))


def _header(manifests: Sequence[Manifest], name: str, title: str, view: View) -> dict[str, Any]:
    spacings = sorted({manifest.spacing for manifest in manifests})
    if len(spacings) > 1:
        raise UserError(f"{name} mixes data sets whose spacing is {spacings}")

    def joined(key: str) -> str:
        return " | ".join(dict.fromkeys(str(getattr(manifest, key)) for manifest in manifests))

    return {
        "name": name,
        "description": title,
        "licence": joined("licence"),
        "citation": joined("citation"),
        "spacing": spacings[0],
        "labels": {
            "0": "background",
            **{str(value): organ for value, organ in enumerate(view.organs, start=1)},
        },
    }
