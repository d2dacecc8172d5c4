"""A whole federation in one process: every site is an object built from its own folder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medseg_kit.bundle.paths import resolve_bundle
from medseg_kit.data.datalist import site_folders
from medseg_kit.fl.client import SiteClient
from medseg_kit.fl.messages import Reply, Request
from medseg_kit.fl.plan import Options, read_plan
from medseg_kit.fl.server import Server
from medseg_kit.fl.site import SiteConfig, quiet_monai, read_site_file
from medseg_kit.fl.store import ServerStore
from medseg_kit.typing import PathLike


class InProcess:
    """A transport that calls the sites of this process one after the other.

    Args:
        clients: The sites by name.
    """

    def __init__(self, clients: Mapping[str, SiteClient]) -> None:
        self.clients = dict(clients)

    def __call__(self, requests: Mapping[str, Request]) -> Iterator[Reply]:
        """Yield the replies in sorted site order."""
        for name in sorted(requests):
            yield self.clients[name].handle(requests[name])


def make_clients(
    bundle: PathLike, folders: Mapping[str, Path], out: PathLike, options: Options
) -> dict[str, SiteClient]:
    """Return one client per site folder; nothing is loaded before its first request.

    Args:
        bundle: Path or name of the bundle that all sites have installed.
        folders: Site name to its folder.
        out: Output folder; a site's own files go to ``out/sites/<name>``.
        options: Those of the federation.
    """
    root = resolve_bundle(bundle)
    return {
        name: SiteClient(
            SiteConfig(
                name=name,
                bundle=root,
                dataset_dir=Path(folder).absolute(),
                output_dir=Path(out).absolute() / "sites" / name,
                method=options.method,
                seed=options.seed,
                shared_overrides=options.overrides,
                site_overrides=read_site_file(Path(folder)),
                min_cases=options.min_cases,
            )
        )
        for name, folder in folders.items()
    }


def simulate(
    bundle: PathLike,
    sites: PathLike | Mapping[str, Path],
    out: PathLike,
    *,
    options: Options | None = None,
    resume: bool = True,
    progress: bool = False,
    on_round: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Run a federation in this process and return its summary.

    Writes ``out/global/model.pt`` (the deployed network), ``out/ledger.jsonl`` and
    ``out/summary.json``. A federation that was killed continues from its last complete round and
    ends with the same weights.

    Args:
        bundle: Path or name of a bundle with a federated configuration.
        sites: Folder of site folders, or site name to folder.
        out: Output folder.
        options: The user's decisions.
        resume: Continue the federation in ``out``, if any; otherwise start anew.
        progress: Show a progress bar.
        on_round: Called with the record of every completed round.

    Raises:
        UserError: If the bundle, a site folder or an option is wrong, the handshake fails, or too
            few sites answer in a round.
    """
    options = options or Options()
    quiet_monai()
    folders = dict(sites) if isinstance(sites, Mapping) else site_folders(sites)
    plan = read_plan(bundle, options)
    transport = InProcess(make_clients(bundle, folders, out, options))
    store = ServerStore(Path(out).absolute())
    with tqdm(
        total=plan.num_rounds, unit="round", desc=plan.bundle.name, disable=not progress
    ) as bar:

        def report(record: dict[str, Any]) -> None:
            bar.n = record["round"]
            if record["mean_metric"] is not None:
                bar.set_postfix({str(record["key_metric"]): f"{record['mean_metric']:.3f}"})
            bar.refresh()
            if on_round is not None:
                on_round(record)

        return Server(plan, list(folders), store, ask=transport, on_round=report).run(resume=resume)
