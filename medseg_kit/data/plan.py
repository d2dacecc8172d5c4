"""What `data prepare` will do: which case goes where, decided before any image is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medseg_kit.data.datalist import SECTIONS
from medseg_kit.data.findings import Finding
from medseg_kit.data.manifest import load_dataset_manifest, load_manifest
from medseg_kit.data.manifest_types import Collection, Manifest, View, choose
from medseg_kit.data.readers import RawCase, find_root, read_cases
from medseg_kit.data.splits import Sections, hidden_subjects, site_subjects, split_subjects
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
        labelled: Whether its site has the label; the whole set always does.
    """

    raw: RawCase
    root: Path
    manifest: Manifest
    view: View
    section: str
    site: str | None
    annotated: tuple[str, ...]
    labelled: bool = True


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


@dataclass
class _Source:
    """The cases of one raw data set, by subject, and what is missing among them."""

    root: Path
    manifest: Manifest
    cases: dict[str, list[RawCase]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def read(cls, manifest: Manifest, source: Path) -> _Source:
        result = cls(find_root(source, manifest.folders), manifest)
        for case in read_cases(result.root, manifest.layout):
            result.cases.setdefault(case.subject, []).append(case)
        found, published = len(result.cases), manifest.num_subjects
        if found != published:
            message = f"{found} labelled subjects found, the published set has {published}"
            result.findings.append(Finding(manifest.name, "incomplete-set", message))
        return result

    def missing(self, subjects: Sequence[str], where: str) -> None:
        """Note the listed subjects that are not there."""
        self.findings += [
            Finding(f"{self.manifest.name}/{subject}", "missing-subject", f"{where} lists it")
            for subject in subjects
            if subject not in self.cases
        ]

    def unused(self, subjects: Sequence[str], where: str) -> None:
        """Note the subjects that are there and not used."""
        self.findings += [
            Finding(f"{self.manifest.name}/{subject}", "unlisted-subject", f"{where} leaves it out")
            for subject in sorted(set(self.cases) - set(subjects))
        ]

    def plan(
        self, subject: str, section: str, view: View, site: str | None, organs: Sequence[str]
    ) -> Iterator[PlannedCase]:
        for raw in self.cases.get(subject, []):
            yield PlannedCase(raw, self.root, self.manifest, view, section, site, tuple(organs))


def make_plan(
    name: PathLike,
    *,
    source: PathLike,
    view: str | None = None,
    split: str | None = None,
    sites: str | None = None,
) -> Plan:
    """Decide which raw case goes to which section and site.

    Args:
        name: Manifest of a data set or of a collection: a name or the path of a YAML file.
        source: Folder of the raw data: the data set's own folder or the one that holds it.
        view: Numbering of the organs; the manifest's default if None.
        split: Division into training, validation and test; the manifest's default if None.
        sites: Setting that divides the training and validation cases among sites; none if None. A
            collection is always divided, by default as its manifest says.

    Returns:
        The plan.

    Raises:
        UserError: When a name is unknown, choices contradict each other, or the source folder does
            not have the layout of the manifest.
    """
    manifest = load_manifest(name)
    if isinstance(manifest, Collection):
        if view or split:
            raise UserError(f"{manifest.name} fixes view and split; choose only its sites setting")
        return _plan_collection(manifest, Path(source), sites or manifest.default_sites)
    return _plan_dataset(manifest, Path(source), view=view, split=split, sites=sites)


def _plan_dataset(
    manifest: Manifest, source: Path, *, view: str | None, split: str | None, sites: str | None
) -> Plan:
    setting = choose("sites setting", sites, manifest.sites, manifest.name) if sites else None
    view_name = _agree("view", view, setting and setting.view, manifest.default_view)
    split_name = _agree("split", split, setting and setting.split, manifest.default_split)
    chosen_view: View = choose("view", view_name, manifest.views, manifest.name)
    chosen_split = choose("split", split_name, manifest.splits, manifest.name)
    raw = _Source.read(manifest, source)
    for section, subjects in chosen_split.sections.items():
        raw.missing(subjects, f"split {split_name} ({section})")
    sections = split_subjects(sorted(raw.cases), chosen_split)
    sites_of = site_subjects(sections, setting) if setting else {}
    hidden = hidden_subjects(sites_of, setting) if setting else set()
    holders = _holders(sections, sites_of)
    cases = [
        replace(case, labelled=subject not in hidden)
        for subject, (section, site) in holders.items()
        for case in raw.plan(subject, section, chosen_view, site, chosen_view.annotated)
    ]
    raw.unused(list(holders), f"sites setting {sites}" if setting else f"split {split_name}")
    return Plan(
        header=_header([manifest], manifest.name, manifest.title, chosen_view),
        cases=_by_section(cases),
        sites={name: rule.organs for name, rule in setting.members.items()} if setting else {},
        allow=manifest.allow,
        findings=raw.findings,
        choices={"view": view_name, "split": split_name, "sites": sites},
    )


def _plan_collection(collection: Collection, source: Path, sites: str) -> Plan:
    names = choose("sites setting", sites, collection.sites, collection.name)
    members = {name: collection.members[name] for name in names}
    sources: list[_Source] = []
    cases: list[PlannedCase] = []
    view = None
    for site, member in members.items():
        manifest = load_dataset_manifest(member.dataset)
        if find_root(source, manifest.folders) == source:
            raise UserError(
                f"{source} holds none of the folders {list(manifest.folders)} for {site}"
            )
        raw = _Source.read(manifest, source)
        view = choose("view", collection.view, manifest.views, manifest.name)
        split = choose("split", member.split, manifest.splits, manifest.name)
        if unknown := set(member.organs) - set(view.annotated):
            raise UserError(
                f"{collection.name}: {member.dataset} lacks {sorted(unknown)} of {site}"
            )
        for section, subjects in split_subjects(sorted(raw.cases), split).items():
            for subject in subjects:
                cases += raw.plan(subject, section, view, site, member.organs)
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
        choices={"view": collection.view, "split": None, "sites": sites},
    )


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
    def common(key: str) -> str:
        values = {getattr(manifest, key) for manifest in manifests}
        if len(values) > 1:
            raise UserError(f"{name} mixes data sets whose {key} is {sorted(values)}")
        return str(values.pop())

    def joined(key: str) -> str:
        return " | ".join(dict.fromkeys(str(getattr(manifest, key)) for manifest in manifests))

    return {
        "name": name,
        "description": title,
        "licence": joined("licence"),
        "citation": joined("citation"),
        **{key: common(key) for key in ("modality", "intensity", "spacing")},
        "labels": {
            "0": "background",
            **{str(value): organ for value, organ in enumerate(view.organs, start=1)},
        },
    }
