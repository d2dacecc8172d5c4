"""Pooling the partial labels of several sites, for central training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medseg_kit.data.datalist import load_datalist, site_folders
from medseg_kit.typing import PathLike, UserError


def load_pooled_datalist(
    sites_dir: PathLike, section: str, *, organs: Sequence[str], labelled_only: bool = False
) -> list[dict[str, Any]]:
    """Load one section of all sites together, for central aggregation of partial labels.

    Args:
        sites_dir: Folder with one prepared data set a site.
        section: As `load_datalist`; a site may have none of it.
        organs: Organs of the network.
        labelled_only: As `load_datalist`.

    Returns:
        The cases of all sites in the form of `load_datalist`, each with its site's `annotated`.

    Raises:
        UserError: As `load_datalist`, for any site, and if no site has a case.
    """
    cases = [
        case
        for folder in site_folders(sites_dir).values()
        for case in load_datalist(
            folder, section, organs=organs, required=False, labelled_only=labelled_only
        )
    ]
    if not cases:
        raise UserError(f"no site below {sites_dir} has {section} cases")
    return cases
