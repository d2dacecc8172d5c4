"""What a site runs for a job: the client of the installed package, whatever the job says.

FLARE's own executor starts the command that a job carries, so an administrator who allowed it would
let every job run everything. This one builds the command itself, from names and plain values.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.executors.client_api_executor import ClientAPIExecutor, ExecutionMode
from nvflare.client.config import ExchangeFormat

from medseg_kit.fl.adapters.flare.exchange import scalar_overrides
from medseg_kit.typing import UserError

# By its place: FLARE starts it in the folder that the job ships, where `-m` would look first
CLIENT = Path(__file__).with_name("client.py")
SITE_FILE_NAME = "medseg_site.yaml"  # in the local folder of the site's FLARE workspace
SITE_FILES_VARIABLE = "MEDSEG_SITE_FILES"  # the simulator's: one file a site, {site} is its name
STARTUP_S = 300
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class SiteExecutor(ClientAPIExecutor):
    """Starts ``client.py`` beside this file with this process's interpreter.

    Args:
        bundle: Name of a bundle that the site has installed; no path.
        seed: Seed of the federation.
        method: Names of method overlays of the bundle, with commas between them; none if empty.
        overrides: Plain values by configuration id that hold for all sites.

    Raises:
        UserError: For a name that is none, or a value that is not plain.
    """

    def __init__(
        self,
        bundle: str,
        seed: int = 0,
        method: str = "",
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.bundle = bundle
        self.seed = seed
        self.method = method
        self.overrides = dict(overrides or {})
        super().__init__(
            execution_mode=ExecutionMode.EXTERNAL_PROCESS,
            command=self.command(SITE_FILE_NAME),
            launch_timeout=STARTUP_S,
            params_exchange_format=ExchangeFormat.NUMPY,
            server_expected_format=ExchangeFormat.NUMPY,
        )

    def command(self, site_file: str) -> list[str]:
        """Return what the site starts.

        Args:
            site_file: The file that the site owns.
        """
        for name in (self.bundle, *(self.method.split(",") if self.method else ())):
            if not _NAME.fullmatch(name.strip()):
                raise UserError(
                    f"a job names bundles and methods by letters, digits, - and _: {name!r} is no"
                    " name"
                )
        words = [sys.executable, "-u", str(CLIENT), "--site_file", site_file]
        words += ["--bundle", self.bundle, "--seed", str(int(self.seed))]
        for identifier, value in scalar_overrides(self.overrides).items():
            words += ["--set", f"{identifier}={json.dumps(value)}"]
        return words + (["--method", self.method] if self.method else [])

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Name the site's own file before FLARE starts the command; else as the base class."""
        if event_type == EventType.START_RUN:
            local = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_site_config_dir()
            files = os.environ.get(SITE_FILES_VARIABLE, str(Path(local) / SITE_FILE_NAME))
            # the base class keeps it there and takes it at this event
            self._command = self.command(files.replace("{site}", fl_ctx.get_identity_name()))
        super().handle_event(event_type, fl_ctx)
