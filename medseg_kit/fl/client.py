"""The client of a federation: answers every request for one site and never raises.

What goes wrong at a site becomes a short text without paths or patients; the details stay in the
site's own ``errors.log``.
"""

from __future__ import annotations

import time
import traceback
from typing import TYPE_CHECKING, Any

from medseg_kit.fl.messages import Reply, Request
from medseg_kit.fl.privacy import describe_error
from medseg_kit.fl.site import Site, SiteConfig, case_names
from medseg_kit.fl.state import copy_state, describe, select

if TYPE_CHECKING:
    from medseg_kit.typing import StateDict

Answer = tuple[dict[str, Any], "StateDict"]


class SiteClient:
    """Answers the requests of a federation for one site.

    The site is built from its own folder at the first request (seconds) and then kept; if that
    fails, the next request tries again.

    Args:
        config: What the site is built from.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self._site: Site | None = None

    def handle(self, request: Request) -> Reply:
        """Answer a request; an exception becomes the reply's ``error``."""
        verbs = {
            "hello": self._hello,
            "train": self._train,
            "compare": self._compare,
            "validate": self._validate,
        }
        reply = Reply(self.config.name, request.kind, request.round_number)
        started = time.perf_counter()
        try:
            if self._site is None:
                self._site = Site(self.config, request.num_rounds)
            reply.content, reply.state = verbs[request.kind](self._site, request)
        except Exception as error:  # noqa: BLE001 - whatever fails costs this site its round only
            reply.error = describe_error(
                error,
                case_names(self.config.dataset_dir),
                places=[
                    str(place)
                    for folder in (self.config.dataset_dir, self.config.output_dir)
                    for place in (folder, folder.absolute(), folder.absolute().parent)
                ],
            )
            self._log_locally(request)
        reply.content["seconds"] = round(time.perf_counter() - started, 3)
        return reply

    @staticmethod
    def _hello(site: Site, request: Request) -> Answer:
        del request
        keys = site.shared(site.network_state())
        return {
            **site.description,
            "keys": {key: describe(value) for key, value in keys.items()},
            "annotated": site.annotated(),
            "num_training": site.num_training,
            "num_samples": site.num_samples,
            "num_validation": site.num_validation,
        }, {}

    @staticmethod
    def _train(site: Site, request: Request) -> Answer:
        site.memory.begin(
            request.run_id, request.round_number, request.num_rounds, site.local_epochs
        )
        state = site.train(site.complete(request.state))
        site.memory.private = select(state, site.stays)
        site.memory.end(request.run_id, request.round_number)
        return {
            "num_samples": site.num_samples,
            "num_steps": site.num_steps,
            "losses": sorted(getattr(site.step, "loss_names", ())),
        }, site.shared(state)

    @staticmethod
    def _compare(site: Site, request: Request) -> Answer:
        del request
        return _measured(site, copy_state(site.network_state()))

    @staticmethod
    def _validate(site: Site, request: Request) -> Answer:
        return _measured(site, site.complete(request.state))

    def _log_locally(self, request: Request) -> None:
        folder = self.config.output_dir
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "errors.log").open("a", encoding="utf-8") as file:
            file.write(f"round {request.round_number}, {request.kind}\n{traceback.format_exc()}\n")


def _measured(site: Site, state: StateDict) -> Answer:
    metrics, suppressed = site.measure(state)
    return {
        "metrics": metrics,
        "suppressed": suppressed,
        "num_validation": site.num_validation,
        "key_metric": site.key_metric,
    }, {}
