"""The datalist of a prepared data set: reading, writing, validation and loading for training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medseg_kit.data.schema_check import check_schema
from medseg_kit.files import write_json
from medseg_kit.typing import PathLike, UserError

logger = logging.getLogger(__name__)

DATALIST_NAME = "datalist.json"
SITE_FILE = "site.yaml"  # beside it: a site's own values for a federation
SECTIONS = ("training", "validation", "test")
SUPPORT = "support"  # training cases that are support scans of one-shot segmentation
MIXED = "mixed"  # modality and intensity of a collection of CT and MR
FILE_KEYS = ("image", "label", "registered_label")
SCHEMA_VERSION = 1
MAX_FILES_NAMED = 5


def read_datalist(dataset_dir: PathLike) -> dict[str, Any]:
    """Read and validate ``dataset_dir/datalist.json``.

    Args:
        dataset_dir: Folder of a prepared data set.

    Returns:
        The datalist as it stands in the file, paths relative to the folder.

    Raises:
        UserError: When the folder or the file is missing, is no JSON, or breaks the schema.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise UserError(
            f"data set folder {folder} does not exist; prepare one with `medseg data prepare`"
        )
    path = folder / DATALIST_NAME
    if not path.is_file():
        raise UserError(
            f"{folder} holds no {DATALIST_NAME}; prepare the data with `medseg data prepare`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no valid JSON ({error}); prepare the data again") from error
    validate_datalist(content, source=str(path))
    return dict(content)


def validate_datalist(content: Mapping[str, Any], *, source: str) -> None:
    """Check a datalist against the schema and for contradictions inside it.

    Args:
        content: The parsed datalist.
        source: Name of the file, for the message.

    Raises:
        UserError: When the schema is broken, label values leave a gap, an annotated organ has no
            label value, or a subject stands in two sections.
    """
    check_schema(content, "datalist.schema.json", source=source)
    organs = organ_names(content["labels"], source=source)
    cases = [case for section in SECTIONS for case in content[section]]
    named = set(content["annotated"]).union(*(case.get("annotated", []) for case in cases))
    if unknown := sorted(named - set(organs)):
        raise UserError(f"{source}: annotated {unknown} have no value in labels {list(organs)}")
    section_of: dict[str, str] = {}
    for section in SECTIONS:
        for case in content[section]:
            other = section_of.setdefault(case["subject"], section)
            if other != section:
                raise UserError(
                    f"{source}: subject {case['subject']} stands in {other} and in {section};"
                    " a subject belongs to one section"
                )


def write_datalist(dataset_dir: PathLike, content: Mapping[str, Any]) -> Path:
    """Validate a datalist and write it atomically as ``dataset_dir/datalist.json``.

    Args:
        dataset_dir: Existing folder of the data set.
        content: The datalist, paths relative to the folder.

    Returns:
        Path of the written file.

    Raises:
        UserError: When the content is no valid datalist.
    """
    path = Path(dataset_dir) / DATALIST_NAME
    validate_datalist(content, source=str(path))
    write_json(path, content)
    return path


def organ_names(labels: Mapping[str, str], *, source: str) -> tuple[str, ...]:
    """List the organs of a label map in the order of their values.

    Args:
        labels: Label value (as a string) to name; ``"0"`` is the background.
        source: Name of the file, for the message.

    Returns:
        Organ of value 1, of value 2, ...

    Raises:
        UserError: When values leave a gap or two values have the same name.
    """
    values = sorted(int(value) for value in labels)
    if values != list(range(len(values))):
        raise UserError(f"{source}: label values {values} must count up from 0 without a gap")
    names = tuple(labels[str(value)] for value in values[1:])
    if len(set(names)) != len(names):
        raise UserError(f"{source}: two label values share a name in {list(names)}")
    return names


def load_datalist(
    dataset_dir: PathLike,
    section: str,
    *,
    organs: Sequence[str],
    required: bool = True,
    labelled_only: bool = False,
) -> list[dict[str, Any]]:
    """Load one section of a prepared data set as MONAI data dictionaries.

    Args:
        dataset_dir: Folder of a prepared data set, or of one site.
        section: ``training`` (without the support scans of one-shot segmentation), ``support``,
            ``validation`` or ``test``.
        organs: Organs of the network; label value ``i + 1`` must be ``organs[i]``. Data that
            annotate none of its further organs also serve a network of its first organs.
        required: Whether an empty section is an error.
        labelled_only: Leave out cases without a label, for training that has no use for them.

    Returns:
        One dictionary a case with absolute paths ``image`` and, where there is one, ``label``
        (and the optional keys of the schema), ``subject``, ``site`` (where known) and
        ``annotated``: a list of 1 + K booleans, index 0 (background) always true, that says which
        organs the label file annotates. An organ that is not annotated is unknown, not background.

    Raises:
        UserError: When the folder, the list or a file is missing, the section is unknown, or
            empty though required, or the label values of the data do not mean `organs`.
    """
    known = (*SECTIONS, SUPPORT)
    if section not in known:
        raise UserError(f"section {section!r} is unknown; choose one of {', '.join(known)}")
    folder = Path(dataset_dir).absolute()
    datalist = read_datalist(folder)
    _check_organs(datalist, organs, folder)
    chosen = cases_of(datalist, section)
    if labelled_only:
        whole, chosen = len(chosen), [case for case in chosen if "label" in case]
        if len(chosen) < whole:
            logger.info("%s: %d cases without a label left out", section, whole - len(chosen))
        if required and whole and not chosen:
            raise UserError(
                f"none of the {whole} {section} cases of {folder / DATALIST_NAME} has a label;"
                " this training needs one"
            )
    if required and not chosen:
        sizes = {name: len(cases_of(datalist, name)) for name in known}
        filled = [f"{name} ({size})" for name, size in sizes.items() if size] or ["none"]
        raise UserError(
            f"{folder / DATALIST_NAME} has no {section} cases; filled are {', '.join(filled)}"
        )
    cases = [_load_case(case, datalist, folder, organs) for case in chosen]
    _check_files(cases, folder)
    return cases


def cases_of(datalist: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    """Return the cases of a section; support scans stand among the training cases of the file."""
    if section not in ("training", SUPPORT):
        return list(datalist.get(section, []))
    wanted = section == SUPPORT
    cases = datalist.get("training", [])
    return [case for case in cases if _is_support(case) == wanted]


def _is_support(case: Any) -> bool:
    """Whether a case is a support scan; lists of others may hold mere paths."""
    return isinstance(case, Mapping) and bool(case.get(SUPPORT, False))


def annotated_organs(dataset_dir: PathLike, organs: Sequence[str]) -> list[str]:
    """List the organs that a data set annotates, in the order of `organs`.

    Args:
        dataset_dir: Folder of a prepared data set. A folder without a datalist (MONAI Label's
            studies) counts as fully annotated.
        organs: Organs of the network.

    Returns:
        The annotated organs; those of single cases are included.

    Raises:
        UserError: When the folder is missing or its labels do not mean `organs`.
    """
    folder = Path(dataset_dir)
    if folder.is_dir() and not (folder / DATALIST_NAME).exists():
        return list(organs)
    datalist = read_datalist(folder)
    _check_organs(datalist, organs, folder)
    cases = (case for section in SECTIONS for case in datalist[section])
    named = set(datalist["annotated"]).union(*(case.get("annotated", []) for case in cases))
    return [organ for organ in organs if organ in named]


def site_folders(sites_dir: PathLike) -> dict[str, Path]:
    """List the site folders below a folder, sorted by name.

    Args:
        sites_dir: Folder with one prepared data set a site.

    Returns:
        Site name (the folder's name) to folder.

    Raises:
        UserError: When the folder is missing or holds no prepared site.
    """
    folder = Path(sites_dir)
    sites = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{DATALIST_NAME}"))}
    if not sites:
        below = next(iter(sorted(folder.glob(f"*/*/{DATALIST_NAME}"))), None)
        fix = (
            f"it has some in {below.parents[1]}: give that folder"
            if below
            else "make them with `medseg data prepare ... --sites SETTING`"
        )
        raise UserError(f"{folder} holds no site folders (SITE/{DATALIST_NAME}); {fix}")
    return sites


def _check_organs(datalist: Mapping[str, Any], organs: Sequence[str], folder: Path) -> None:
    found = organ_names(datalist["labels"], source=str(folder / DATALIST_NAME))
    # A network of the first organs only reads data that annotate none of the others.
    fits = list(found[: len(organs)]) == list(organs)
    if not fits or not set(datalist["annotated"]).issubset(organs):
        raise UserError(
            f"{folder / DATALIST_NAME} labels the organs {list(found)} (values 1, 2, ...) but the"
            f" network expects {list(organs)}; prepare the data with a view of these organs"
        )


def _load_case(
    case: Mapping[str, Any], datalist: Mapping[str, Any], folder: Path, organs: Sequence[str]
) -> dict[str, Any]:
    loaded = {**case, **{key: str(folder / case[key]) for key in FILE_KEYS if key in case}}
    known = set(case.get("annotated", datalist["annotated"])) if "label" in case else set()
    loaded["annotated"] = [True, *(organ in known for organ in organs)]
    site = case.get("site") or datalist.get("site")
    loaded.pop("site", None)
    # None does not pass MONAI's collate, so a case without a site has no such key.
    return {**loaded, "site": site} if site else loaded


def _check_files(cases: Iterable[Mapping[str, Any]], folder: Path) -> None:
    paths = (case[key] for case in cases for key in FILE_KEYS if key in case)
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        more = (
            f" and {len(missing) - MAX_FILES_NAMED} more" if len(missing) > MAX_FILES_NAMED else ""
        )
        raise UserError(
            f"{folder / DATALIST_NAME} names missing files: {', '.join(missing[:MAX_FILES_NAMED])}"
            f"{more}; prepare the data again"
        )
