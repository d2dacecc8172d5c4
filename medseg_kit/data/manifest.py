"""Data set manifests (``data_manifests/*.yaml``): reading and validation."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from medseg_kit.data.datalist import SECTIONS, organ_names
from medseg_kit.data.schema_check import check_schema
from medseg_kit.typing import PathLike, UserError

# An installed wheel carries the manifests beside this file, a checkout at the repository's top level.
MANIFEST_FOLDERS = (
    Path(__file__).parent / "manifests",
    Path(__file__).parents[2] / "data_manifests",
)


@dataclass(frozen=True)
class View:
    """A numbering of organs in the prepared label files.

    Attributes:
        organs: Organ of value 1, of value 2, ...
        raw: Raw label values that make up each organ; empty where the data set lacks the organ.
    """

    organs: tuple[str, ...]
    raw: tuple[tuple[int, ...], ...]

    @property
    def annotated(self) -> tuple[str, ...]:
        """Organs that the data set annotates."""
        return tuple(o for o, raw in zip(self.organs, self.raw, strict=True) if raw)

    def mapping(self, organs: Sequence[str]) -> dict[int, int]:
        """Map raw values to prepared values, for the named organs only."""
        return {
            value: index
            for index, (organ, raw) in enumerate(zip(self.organs, self.raw, strict=True), start=1)
            for value in raw
            if organ in organs
        }


@dataclass(frozen=True)
class Split:
    """How subjects are divided; see `medseg_kit.data.splits`."""

    rule: str
    sections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class SiteRule:
    """What one site annotates, and its subjects where they are listed."""

    organs: tuple[str, ...]
    sections: Mapping[str, tuple[str, ...]] | None


@dataclass(frozen=True)
class SiteSetting:
    """A named division of one data set among sites."""

    view: str
    split: str
    members: Mapping[str, SiteRule]


@dataclass(frozen=True)
class StoredIntensity:
    """What the stored numbers mean: ``value = stored * slope + intercept``.

    Attributes:
        slope: Factor to the unit of the manifest.
        intercept: Offset to the unit of the manifest.
        limits: Smallest and largest stored value that can occur, or None.
        reaches_below: A stored value that every image falls below (air, in Hounsfield units), or None.
    """

    slope: float
    intercept: float
    limits: tuple[float, float] | None
    reaches_below: float | None

    @property
    def is_identity(self) -> bool:
        """Whether the stored numbers are used as they are."""
        return self.slope == 1 and self.intercept == 0


@dataclass(frozen=True)
class Manifest:
    """One public data set: where it is from, how it is stored, and how it is divided."""

    name: str
    title: str
    source: str
    licence: str
    citation: str
    modality: str
    intensity: str
    spacing: str
    layout: str
    folders: tuple[str, ...]
    num_subjects: int
    stored_intensity: StoredIntensity
    labels: Mapping[int, str]
    laterality: tuple[tuple[int, int], ...]
    views: Mapping[str, View]
    default_view: str
    splits: Mapping[str, Split]
    default_split: str
    sites: Mapping[str, SiteSetting]
    allow: Mapping[str, str]


@dataclass(frozen=True)
class Member:
    """A data set that is one site of a collection."""

    dataset: str
    split: str
    organs: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """A federation whose sites are whole data sets."""

    name: str
    title: str
    source: str
    view: str
    members: Mapping[str, Member]
    sites: Mapping[str, tuple[str, ...]]
    default_sites: str


def manifest_names() -> list[str]:
    """List the names of the manifests that come with the package."""
    return sorted({path.stem for folder in MANIFEST_FOLDERS for path in folder.glob("*.yaml")})


def load_manifest(name: PathLike) -> Manifest | Collection:
    """Read and validate a manifest.

    Args:
        name: Name of a manifest of the package (``hippocampus``), or the path of a YAML file.

    Returns:
        The manifest of a data set, or of a collection of data sets.

    Raises:
        UserError: When there is no such manifest, or it is not valid; names file, place and value.
    """
    path = _find(name)
    try:
        content = _with_string_keys(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no valid YAML: {error}") from error
    if isinstance(content, dict) and content.get("kind") == "collection":
        return _parse_collection(content, str(path))
    return _parse_dataset(content, str(path))


def load_dataset_manifest(name: PathLike) -> Manifest:
    """Read the manifest of a single data set; `UserError` when it is a collection."""
    manifest = load_manifest(name)
    if isinstance(manifest, Collection):
        raise UserError(f"{name} is a collection of data sets; a single data set is needed here")
    return manifest


def choose(kind: str, name: str, known: Mapping[str, Any], source: str) -> Any:
    """Look a name up, or say which names there are.

    Args:
        kind: What the name names, for the message.
        name: The name to look up.
        known: What there is.
        source: Where it should be, for the message.

    Raises:
        UserError: When the name is unknown.
    """
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    names = ", ".join(known) or "none"
    raise UserError(f"{source} has no {kind} {name!r}, known are: {names}{hint}")


def _find(name: PathLike) -> Path:
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise UserError(f"manifest file {path} does not exist")
    for folder in MANIFEST_FOLDERS:
        if (found := folder / f"{path}.yaml").is_file():
            return found
    known = dict.fromkeys(manifest_names())
    choose("manifest", str(name), known, "the package (a path to a .yaml file works as well)")
    raise AssertionError("unreachable: choose raises for an unknown name")


def _with_string_keys(content: Any) -> Any:
    """Turn YAML's integer keys into strings, as JSON has them."""
    if isinstance(content, dict):
        return {str(key): _with_string_keys(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_with_string_keys(value) for value in content]
    return content


def _parse_dataset(content: Any, source: str) -> Manifest:
    check_schema(content, "manifest.schema.json", source=source)
    stored = content["stored_intensity"]
    limits = stored.get("range")
    manifest = Manifest(
        **{
            key: content[key]
            for key in (
                *("name", "title", "source", "licence", "citation", "modality", "intensity"),
                *("spacing", "layout", "num_subjects", "default_view", "default_split"),
            )
        },
        folders=tuple(content["folders"]),
        stored_intensity=StoredIntensity(
            slope=stored["slope"],
            intercept=stored["intercept"],
            limits=(limits[0], limits[1]) if limits else None,
            reaches_below=stored.get("reaches_below"),
        ),
        labels={int(value): label for value, label in content["labels"].items()},
        laterality=tuple((right, left) for right, left in content.get("laterality", [])),
        views={name: _parse_view(view, source) for name, view in content["views"].items()},
        splits={name: _parse_split(split) for name, split in content["splits"].items()},
        sites={name: _parse_setting(setting) for name, setting in content["sites"].items()},
        allow=content.get("allow", {}),
    )
    _check_references(manifest, source)
    return manifest


def _parse_view(content: Mapping[str, Any], source: str) -> View:
    names = {"0": "background", **{value: entry["name"] for value, entry in content.items()}}
    organs = organ_names(names, source=source)
    values = range(1, len(organs) + 1)
    return View(organs, tuple(tuple(content[str(value)].get("raw", ())) for value in values))


def _parse_sections(content: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {section: tuple(content.get(section, ())) for section in SECTIONS}


def _parse_split(content: Mapping[str, Any]) -> Split:
    if content["rule"] == "listed":
        return Split("listed", sections=_parse_sections(content))
    counts = {section: content[section] for section in ("validation", "test")}
    return Split(content["rule"], counts=counts, seed=content.get("seed", 0))


def _parse_setting(content: Mapping[str, Any]) -> SiteSetting:
    blocks = "partition" in content
    members = {
        name: SiteRule(tuple(rule["organs"]), None if blocks else _parse_sections(rule))
        for name, rule in content["members"].items()
    }
    return SiteSetting(content["view"], content["split"], members)


def _check_references(manifest: Manifest, source: str) -> None:
    """Raise `UserError` where names or label values inside a manifest contradict each other."""
    choose("view", manifest.default_view, manifest.views, source)
    choose("split", manifest.default_split, manifest.splits, source)
    raw = {value for view in manifest.views.values() for values in view.raw for value in values}
    raw |= {value for pair in manifest.laterality for value in pair}
    if unknown := sorted(raw - set(manifest.labels)):
        raise UserError(f"{source}: raw label values {unknown} do not stand in labels")
    for name, view in manifest.views.items():
        used = [value for values in view.raw for value in values]
        if len(set(used)) < len(used):
            raise UserError(f"{source}: view {name} gives one raw label value to two organs")
    for split in manifest.splits.values():
        _check_disjoint(
            [subject for s in SECTIONS for subject in split.sections.get(s, ())], source
        )
    for setting in manifest.sites.values():
        _check_setting(manifest, setting, source)


def _check_setting(manifest: Manifest, setting: SiteSetting, source: str) -> None:
    view = choose("view", setting.view, manifest.views, source)
    split = choose("split", setting.split, manifest.splits, source)
    listed = [
        subject
        for rule in setting.members.values()
        for subjects in (rule.sections or {}).values()
        for subject in subjects
    ]
    _check_disjoint(listed, source)
    if held_out := set(listed) & set(split.sections.get("test", ())):
        raise UserError(f"{source}: sites use test subjects {sorted(held_out)}")
    for name, rule in setting.members.items():
        if unknown := set(rule.organs) - set(view.annotated):
            raise UserError(
                f"{source}: {name} cannot annotate {sorted(unknown)}; view {setting.view} has"
                f" {list(view.annotated)}"
            )


def _check_disjoint(subjects: Sequence[str], source: str) -> None:
    repeated = sorted({subject for subject in subjects if subjects.count(subject) > 1})
    if repeated:
        raise UserError(f"{source}: subjects {repeated} stand in two sections or sites")


def _parse_collection(content: Any, source: str) -> Collection:
    check_schema(content, "collection.schema.json", source=source)
    members = {
        name: Member(member["dataset"], member["split"], tuple(member["organs"]))
        for name, member in content["members"].items()
    }
    sites = {name: tuple(names) for name, names in content["sites"].items()}
    for names in sites.values():
        for name in names:
            choose("member", name, members, source)
    choose("sites setting", content["default_sites"], sites, source)
    keys = ("name", "title", "source", "view", "default_sites")
    return Collection(**{key: content[key] for key in keys}, members=members, sites=sites)
