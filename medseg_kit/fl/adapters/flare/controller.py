"""The server in NVIDIA FLARE: the same rounds as in one process, one task per site."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nvflare.app_common.workflows.model_controller import ModelController

from medseg_kit.files import write_json
from medseg_kit.fl.adapters.flare.exchange import received, to_model
from medseg_kit.fl.messages import Reply, Request
from medseg_kit.fl.plan import Options, read_plan
from medseg_kit.fl.privacy import DEFAULT_MIN_CASES, scrub
from medseg_kit.fl.server import Server
from medseg_kit.fl.store import ServerStore
from medseg_kit.typing import UserError

ERROR_FILE = "error.json"
POLL_S = 0.05


class FederationController(ModelController):
    """Runs a federated bundle; sends every site its own weights.

    An aggregator of FLARE's cannot do this, because it broadcasts one model.

    Args:
        bundle: Name of the bundle installed at the server.
        options: The user's decisions, as in `medseg_kit.fl.plan.Options`.
        sites: Names of the sites; those that are connected at the start if empty.
        out: Folder for weights and ledger; ``federation`` in the job's run folder if empty.
        task_timeout_s: Longest wait for the answers to one request; 0 waits for ever.
    """

    def __init__(
        self,
        bundle: str,
        options: dict[str, Any],
        sites: list[str] | None = None,
        out: str = "",
        task_timeout_s: int = 0,
    ) -> None:
        super().__init__(persistor_id="", ignore_result_error=True, task_check_period=POLL_S)
        self.bundle = bundle
        self.options = options
        self.sites = sites
        self.out = out
        self.task_timeout_s = task_timeout_s

    def run(self) -> None:
        """Run all rounds; a failure stops the job and is written to the output folder."""
        folder = Path(self.out or Path(self.get_run_dir()) / "federation")
        (folder / ERROR_FILE).unlink(missing_ok=True)
        options = Options(**{"min_cases": DEFAULT_MIN_CASES, **self.options})
        try:
            plan = read_plan(self.bundle, options)
            sites = self.sites or self.sample_clients()
            Server(plan, sites, ServerStore(folder), ask=self._ask, on_round=self._report).run()
        except UserError as error:
            write_json(folder / ERROR_FILE, {"error": str(error)})
            self.panic(scrub(str(error)))

    def _ask(self, requests: Mapping[str, Request]) -> Iterator[Reply]:
        """Send each connected site its task and yield the answers that come back."""
        answers: queue.Queue[Any] = queue.Queue()
        connected = {client.name for client in self.engine.get_clients()}
        for site in sorted(requests.keys() & connected):
            self.send_model(
                data=to_model(requests[site]),
                targets=[site],
                timeout=self.task_timeout_s,
                callback=answers.put,
            )
        while self.get_num_standing_tasks() and not self.abort_signal.triggered:
            time.sleep(POLL_S)
        while not answers.empty():
            model = answers.get()
            # the name that FLARE has authenticated, not the one that the message claims
            yield received(model, requests[model.meta["client_name"]], model.meta["client_name"])

    def _report(self, record: dict[str, Any]) -> None:
        self.info(f"round {record['round']} complete: {record['mean_metric']}")
