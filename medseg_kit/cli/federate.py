"""`medseg federate`: run a federation on this machine, or export it for real sites."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from medseg_kit.cli.overrides import parse_overrides

ENGINES = ("in_process", "nvflare")


def simulate(  # noqa: PLR0913 - every option of the command is an argument
    bundle: str,
    *,
    sites: str,
    out: str,
    rounds: int | None = None,
    method: str | None = None,
    seed: int = 0,
    set: list[str] | None = None,
    quorum: int | None = None,
    min_cases: int = 5,
    initial_weights: str | None = None,
    resume: bool = True,
    engine: str = "in_process",
) -> int:
    """Run all rounds of a federation on this machine, one site per folder.

    Writes OUT/global/model.pt (the deployed network), OUT/ledger.jsonl (one record per round and
    site) and OUT/summary.json. The same command continues a federation that was stopped.

    Args:
        bundle: Path or name of a bundle with configs/federated.yaml.
        sites: Folder with one prepared data set per site; SITE/site.yaml may hold the site's own
            `overrides: {config_id: value}`.
        out: Folder for the results.
        rounds: Number of rounds; the bundle's own by default.
        method: Overlay configs/methods/METHOD.yaml of the bundle; several with commas between
            them, e.g. conventional_marginal,fedprox.
        seed: Seed of everything random.
        set: Values for the configuration of all sites, e.g. `--set learning_rate=1e-3,amp=off`,
            `--set "organs=[liver, spleen]"`.
        quorum: Fewest sites that must answer in a round; more than half by default.
        min_cases: Fewest validation cases of a site whose mean may leave it; where a site has
            fewer, the last round is deployed. Public data may say 1.
        initial_weights: File of weights to start from, e.g. models/model.pt.
        resume: Continue the federation in OUT; --resume=False starts anew.
        engine: `in_process`, or `nvflare` for NVIDIA FLARE's simulator.

    Returns:
        0 when all rounds are complete.

    Example:
        medseg federate simulate hippocampus_mr_segviz --sites data/sites --out runs/federation
    """
    from medseg_kit.fl.plan import Options
    from medseg_kit.typing import UserError

    if engine not in ENGINES:
        raise UserError(f"unknown --engine {engine!r}; choose one of {', '.join(ENGINES)}")
    options = Options(
        rounds=rounds,
        method=method,
        seed=seed,
        overrides=parse_overrides(set or ()),
        quorum=quorum,
        min_cases=min_cases,
        initial_weights=initial_weights,
    )
    if engine == "nvflare":
        run = load_recipe().simulate
    else:
        from medseg_kit.fl.simulation import simulate as run
    summary = run(bundle, sites, out, options=options, resume=resume, progress=True)
    print(describe_summary(summary))
    print(f"deployed weights: {out}/global/model.pt, ledger: {out}/ledger.jsonl")
    return 0


def export(  # noqa: PLR0913 - the options of a command line
    bundle: str,
    *,
    out: str,
    rounds: int | None = None,
    method: str | None = None,
    seed: int = 0,
    set: list[str] | None = None,
    sites: list[str] | None = None,
    quorum: int | None = None,
    server_out: str = "",
    task_timeout: int = 86_400,
) -> int:
    """Write an NVIDIA FLARE job for real sites; it names the bundle and holds no code and no path.

    Every site has the package and the bundle installed, and owns a file `local/medseg_site.yaml` in
    its FLARE workspace, with its `dataset_dir`, `min_cases` and `overrides`.

    Args:
        bundle: Path or name of a bundle with configs/federated.yaml.
        out: Folder for the job; must not exist yet.
        rounds: Number of rounds; the bundle's own by default.
        method: Overlay configs/methods/METHOD.yaml of the bundle; several with commas between
            them, e.g. conventional_marginal,fedprox.
        seed: Seed of everything random.
        set: Plain values for the configuration of all sites, e.g. `--set learning_rate=1e-3`.
        sites: Comma-separated names of the sites; those connected at the start by default.
        quorum: Fewest sites that must answer in a round, and be connected for the job to begin; by
            default more than half of those named, else of those connected at the start.
        server_out: Folder at the server for weights and ledger: the job continues from there when
            it is submitted again. By default each submission begins anew, in its own run folder.
        task_timeout: Seconds after which a round goes on without a site that is connected and does
            not answer; 0 waits for ever.

    Returns:
        0 when the job is written.

    Example:
        medseg federate export hippocampus_mr_segviz --out job
    """
    from medseg_kit.fl.plan import Options

    options = Options(
        rounds=rounds,
        method=method,
        seed=seed,
        overrides=parse_overrides(set or ()),
        quorum=quorum,
    )
    recipe = load_recipe()
    job = recipe.export(
        bundle,
        out,
        options=options,
        sites=sites,
        server_out=server_out,
        task_timeout_s=task_timeout,
    )
    print(f"job: {job}")
    print(f"each site writes `dataset_dir: FOLDER` into {recipe.SITE_FILE} of its FLARE workspace")
    print(
        f"and its administrator adds to class_allow_list in local/resources.json: {recipe.CLASSES}"
    )
    return 0


def load_recipe() -> ModuleType:
    """Return the module that makes FLARE jobs.

    Raises:
        UserError: If NVIDIA FLARE is not installed.
    """
    import importlib
    from importlib.util import find_spec

    from medseg_kit.typing import UserError

    if find_spec("nvflare") is None:
        raise UserError('NVIDIA FLARE is not installed: pip install "medseg-kit[federated]"')
    return importlib.import_module("medseg_kit.fl.adapters.flare.recipe")


def describe_summary(summary: dict[str, Any]) -> str:
    """Return the outcome of a federation in two lines."""
    metric, last = summary["deployed_metric"], summary["last_round"]
    value = "" if metric is None else f", {summary['key_metric']} {metric:.4f}"
    gap = last["worst_site_gap"]
    worst = "" if gap is None else f"; worst site {last['worst_site']}, {gap:.4f} below the mean"
    return (
        f"{summary['num_rounds']} rounds, {len(summary['sites'])} sites, "
        f"{summary['failed_answers']} failed answers{worst}\n"
        f"deployed: round {summary['deployed_round']}{value} ({summary['selection']})"
    )
