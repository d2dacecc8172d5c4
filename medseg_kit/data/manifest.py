"""Reading and validation of data set manifests (``data_manifests/*.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medseg_kit.data.datalist import SECTIONS, organ_names
from medseg_kit.data.findings import check_allowed
from medseg_kit.data.manifest_types import (
    Collection,
    Manifest,
    Member,
    SiteRule,
    SiteSetting,
    Split,
    StoredIntensity,
    View,
    choose,
)
from medseg_kit.data.schema_check import check_schema
from medseg_kit.typing import PathLike, UserError

# A wheel carries the manifests beside this file, a checkout at the top level.
MANIFEST_FOLDERS = (
    Path(__file__).parent / "manifests",
    Path(__file__).parents[2] / "data_manifests",
)


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
        spacing_unknown=tuple(content["spacing_unknown"]) if "spacing_unknown" in content else None,
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
        others = content.get("training") == "others"
        sections = _parse_sections({**content, "training": ()} if others else content)
        support = content.get("support", 0)
        return Split("listed", sections=sections, others=others, support=support)
    counts = {section: content[section] for section in ("validation", "test")}
    return Split(content["rule"], counts=counts, seed=content.get("seed", 0))


def _parse_setting(content: Mapping[str, Any]) -> SiteSetting:
    blocks = "partition" in content
    members = {
        name: SiteRule(
            tuple(rule["organs"]),
            None if blocks else _parse_sections(rule),
            labelled=rule.get("labelled"),
            support=rule.get("support", 0),
        )
        for name, rule in content["members"].items()
    }
    return SiteSetting(content["view"], content["split"], members)


def _check_references(manifest: Manifest, source: str) -> None:
    """Raise `UserError` where names or label values inside a manifest contradict each other."""
    try:
        check_allowed(manifest.allow)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
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
        num_listed = len(rule.sections["training"]) if rule.sections else None
        if num_listed is not None and (rule.labelled or 0) > num_listed:
            raise UserError(
                f"{source}: {name} has labelled {rule.labelled} of {num_listed} training subjects"
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
