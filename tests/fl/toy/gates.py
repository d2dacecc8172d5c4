"""Gates that every bundle with a federated configuration must pass."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow

from medseg_kit.fl.handshake import config_files
from medseg_kit.fl.ledger import read_ledger
from medseg_kit.fl.plan import Options, read_plan
from medseg_kit.fl.simulation import simulate
from medseg_kit.fl.state import copy_state, digest, select
from medseg_kit.fl.store import ServerStore


def toy_options(**options):
    """Return options under which the toy's single validation case of a site may be reported."""
    return Options(**{"min_cases": 1, **options})


def records(out, kind):
    """Return the ledger records of one type."""
    return [record for record in read_ledger(out / "ledger.jsonl") if record["type"] == kind]


def global_state(out):
    """Return the global weights after the last complete round of a federation."""
    store = ServerStore(Path(out))
    return store.load_round(store.completed())["strategy"]["global"]


def train_locally(bundle, site_folder, out, *, options, rounds):
    """Return the weights after ordinary local training of as many epochs as a federation's."""
    plan = read_plan(bundle, options)
    overrides = {
        **options.overrides,
        "bundle_root": str(bundle),
        "dataset_dir": str(site_folder),
        "output_dir": str(out),
        "site": Path(site_folder).name,
        "seed": options.seed,
        "num_rounds": rounds,
        "train#trainer#max_epochs": rounds * plan.local_epochs,
    }
    workflow = ConfigWorkflow(
        [str(Path(bundle) / name) for name in config_files(options.method)],
        logging_file=False,
        **overrides,
    )
    workflow.initialize()
    trainer = workflow.trainer
    keys = trainer.network.state_dict().keys()
    trainer.network.load_state_dict(select(plan.global_state, keys.__contains__))
    step = workflow.parser.get_parsed_content("train#step")
    step.total_steps = rounds * plan.local_epochs * trainer.state.epoch_length
    trainer.run()
    return copy_state(trainer.network.state_dict())


def assert_one_site_equals_local(bundle, site_folder, out, *, options, rounds=3):
    """Compare one site, federated with kept state, with local training, bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        simulate(
            bundle, {Path(site_folder).name: Path(site_folder)}, out / "federated", options=options
        )
        local = train_locally(bundle, site_folder, out / "local", options=options, rounds=rounds)
    finally:
        torch.set_num_threads(threads)
    federated = select(global_state(out / "federated"), local.__contains__)
    assert digest(federated) == digest(local)
