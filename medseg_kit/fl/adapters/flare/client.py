"""The site in NVIDIA FLARE, a Client API script that `SiteExecutor` starts.

The job names the bundle and carries scalars; paths are in a file that the site owns::

    dataset_dir: /data/prepared      # required
    bundle: /opt/bundles/name        # where the bundle is installed, if its name does not find it
    output_dir: /data/federation     # the site's own files; beside this file by default
    min_cases: 5                     # fewest validation cases whose mean may leave the site
    overrides: {batch_size: 2}       # the site's own values by configuration id
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_kit.bundle.paths import resolve_bundle
from medseg_kit.fl.adapters.flare.exchange import scalar_overrides, to_model, to_request
from medseg_kit.fl.client import SiteClient
from medseg_kit.fl.privacy import DEFAULT_MIN_CASES
from medseg_kit.fl.site import SiteConfig, quiet_monai, read_site_yaml
from medseg_kit.typing import UserError

logger = logging.getLogger(__name__)

SITE_KEYS = ("dataset_dir", "bundle", "output_dir", "min_cases", "overrides")


def read_site_config(path: Path, *, name: str, job: argparse.Namespace) -> SiteConfig:
    """Return what a site is built from: its own file and the job's scalars.

    Args:
        path: The site's own file.
        name: Name under which the site is known.
        job: Arguments of the job: ``bundle``, ``method``, ``seed``, ``set``.

    Raises:
        UserError: If the file is missing or incomplete, or the job carries more than scalars.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; write `dataset_dir: FOLDER` into it")
    content: dict[str, Any] = read_site_yaml(path)
    unknown = sorted(set(content) - set(SITE_KEYS))
    if unknown or "dataset_dir" not in content:
        raise UserError(f"{path}: give dataset_dir, and of {', '.join(SITE_KEYS)} what you need")
    return SiteConfig(
        name=name,
        bundle=resolve_bundle(content.get("bundle") or _named(job.bundle)),
        dataset_dir=Path(content["dataset_dir"]),
        output_dir=Path(content.get("output_dir", path.parent / "medseg")),
        method=job.method,
        seed=job.seed,
        shared_overrides=scalar_overrides(
            {item.partition("=")[0]: json.loads(item.partition("=")[2]) for item in job.set}
        ),
        site_overrides=content.get("overrides", {}),
        min_cases=int(content.get("min_cases", DEFAULT_MIN_CASES)),
    )


def _named(bundle: str) -> str:
    """Return the name of a bundle; a job chooses among those that the site has installed."""
    if Path(bundle).name != bundle or bundle in (".", ".."):
        raise UserError(f"the job names the bundle {bundle!r}: a path is the site's own to give")
    return bundle


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer the server's requests until the job ends."""
    import nvflare.client as flare

    parser = argparse.ArgumentParser()
    parser.add_argument("--site_file", type=Path, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="ID=JSON")
    job = parser.parse_args(arguments)
    # FLARE starts this in the folder that the job ships: no bundle of that name is looked for there
    job.site_file = job.site_file.absolute()
    os.chdir(job.site_file.parent)
    quiet_monai()
    flare.init()
    client = SiteClient(read_site_config(job.site_file, name=flare.get_site_name(), job=job))
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        reply = client.handle(to_request(model))
        if reply.error:
            logger.error("round %d: %s", reply.round_number, reply.error)
        flare.send(to_model(reply))


if __name__ == "__main__":
    main()
