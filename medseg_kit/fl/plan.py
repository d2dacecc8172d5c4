"""The plan of a federation: what the server reads from its bundle before round 1."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medseg_kit.bundle.config import load_config
from medseg_kit.bundle.paths import resolve_bundle
from medseg_kit.bundle.weights import read_weights
from medseg_kit.fl.handshake import config_files, describe_bundle
from medseg_kit.fl.memory import CLIENT_STATES
from medseg_kit.fl.privacy import DEFAULT_MIN_CASES
from medseg_kit.fl.strategy import Strategy
from medseg_kit.typing import PathLike, UserError

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

    from medseg_kit.typing import StateDict


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What a user decides about a federation; the bundle decides the rest.

    Args:
        rounds: Number of rounds; the bundle's ``num_rounds`` if None.
        method: Overlay ``configs/methods/<method>.yaml``, several with commas between them, merged
            from left to right; None for the bundle's own method.
        seed: Seed of everything random, from the initial weights on.
        overrides: Values by id, the same for all sites.
        quorum: Fewest sites that must answer in a round; more than half of them if None.
        min_cases: Fewest validation cases of a site whose mean may leave it.
        initial_weights: Weights to start from (matching keys and shapes), or None for random ones.
    """

    rounds: int | None = None
    method: str | None = None
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    quorum: int | None = None
    min_cases: int = DEFAULT_MIN_CASES
    initial_weights: PathLike | None = None


@dataclass(frozen=True)
class Plan:
    """A federation as the server's bundle describes it; see `read_plan`."""

    bundle: Path
    options: Options
    num_rounds: int
    local_epochs: int
    validate_every: int
    client_state: str
    description: Mapping[str, str]
    strategy: Strategy
    global_state: StateDict
    initial_weights: str
    deployed: Mapping[str, str] | None

    def quorum(self, num_sites: int) -> int:
        """Return the fewest sites that must answer."""
        return num_sites // 2 + 1 if self.options.quorum is None else self.options.quorum

    def identity(self) -> dict[str, Any]:
        """Return what must be unchanged for a federation to be continued."""
        return {
            **{name: self.description[name] for name in ("bundle", "bundle_version", "config")},
            "method": self.options.method,
            "seed": self.options.seed,
            "num_rounds": self.num_rounds,
            "initial_weights": self.initial_weights,
        }


def read_plan(bundle: PathLike, options: Options) -> Plan:
    """Read a federated bundle as the server does: no site's data, all heads, initial weights.

    Args:
        bundle: Path or name of the bundle.
        options: The user's decisions.

    Raises:
        UserError: If the bundle or its federated configuration is missing or incomplete, or an
            option does not fit.
    """
    root = resolve_bundle(bundle)
    files = config_files(options.method)
    unknown = [Path(name).stem for name in files if not (root / name).is_file()]
    if options.method and unknown:
        known = sorted(path.stem for path in (root / "configs" / "methods").glob("*.yaml"))
        raise UserError(
            f"method '{unknown[-1]}' is unknown to {root.name}; "
            f"it has {', '.join(known) or 'no overlays in configs/methods'}"
        )
    parser = load_config(
        root, [name.removeprefix("configs/") for name in files], overrides=options.overrides
    )
    for identifier in ("num_rounds", "local_epochs", "strategy", "organs", "network_def"):
        if identifier not in parser:
            raise UserError(f"{root / files[1]} lacks the id '{identifier}'")
    organs = list(parser.get_parsed_content("organs"))
    if "heads" in parser:
        parser["heads"] = organs  # the server has no data that would say which organs it labels
    num_rounds = options.rounds
    if num_rounds is None:
        num_rounds = int(parser.get_parsed_content("num_rounds"))
    client_state = str(parser.get("client_state", "keep"))
    if num_rounds < 1 or client_state not in CLIENT_STATES:
        raise UserError(
            f"rounds must be at least 1 (is {num_rounds}), client_state one of "
            f"{', '.join(CLIENT_STATES)} (is {client_state})"
        )
    validate_every = int(parser.get_parsed_content("val_interval", default=1))
    if validate_every < 1:
        raise UserError(f"val_interval must be at least 1 round, is {validate_every}")
    strategy = parser.get_parsed_content("strategy")
    if not isinstance(strategy, Strategy):
        raise UserError(
            f"strategy of {root.name} is a {type(strategy).__name__}; "
            "name a class of medseg_kit.fl.strategies"
        )
    return Plan(
        bundle=root,
        options=options,
        num_rounds=num_rounds,
        local_epochs=int(parser.get_parsed_content("local_epochs")),
        validate_every=validate_every,
        client_state=client_state,
        description=describe_bundle(root, files, overrides=options.overrides, organs=organs),
        strategy=strategy,
        global_state=_initial_state(parser, options),
        initial_weights=_weights_name(parser, options),
        deployed=deployed_names(root, parser, options),
    )


def _initial_state(parser: ConfigParser, options: Options) -> StateDict:
    torch.manual_seed(options.seed)
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    state: StateDict = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    frozen = {key for key, value in network.named_parameters() if not value.requires_grad}
    if options.initial_weights is None:
        if frozen:
            raise UserError(
                f"{len(frozen)} parameters of the network do not learn, e.g. {min(frozen)}; "
                "give their weights with --initial_weights"
            )
        return state
    given = read_weights(options.initial_weights)
    fitting = {
        key: value.to(state[key].dtype)
        for key, value in given.items()
        if key in state and value.shape == state[key].shape
    }
    if not fitting:
        raise UserError(
            f"initial weights {options.initial_weights} share no key with the network of the bundle"
        )
    if absent := sorted(frozen - fitting.keys()):
        raise UserError(
            f"initial weights {options.initial_weights} lack {len(absent)} parameters that do not "
            f"learn, e.g. {absent[0]}; give the weights of a federation of the same network"
        )
    if len(fitting) < len(state):
        logger.warning(
            "initial weights %s fit %d of %d keys of the network; the others start at random",
            options.initial_weights,
            len(fitting),
            len(state),
        )
    return {**state, **fitting}


def _weights_name(parser: ConfigParser, options: Options) -> str:
    """Return what identifies the initial weights: their digest, as no path belongs in a ledger.

    They are those of the whole network, or of a part of it (the ids ``pretrained_path``).
    """
    paths = [options.initial_weights] if options.initial_weights else _pretrained(parser.get())
    if not paths:
        return "random"
    digest = hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths))
    return f"sha256:{digest.hexdigest()[:16]}"


def _pretrained(config: Any) -> list[str]:
    """Return the files that a configuration's networks start from."""
    if isinstance(config, list):
        return [path for item in config for path in _pretrained(item)]
    if not isinstance(config, dict):
        return []
    own = config.get("pretrained_path")
    found = [own] if isinstance(own, str) and not own.startswith("@") else []
    return found + [path for item in config.values() for path in _pretrained(item)]


def deployed_names(
    bundle: Path, parser: ConfigParser, options: Options
) -> Mapping[str, str] | None:
    """Return the keys of the deployed network and what training calls them; None if all are its.

    Where training holds more than it deploys (a second student, projectors), the id ``deployed``
    of train.yaml names that part of ``network_def``. A method overlay deploys what its training
    configuration says, the bundle's own method what inference.yaml loads.

    Raises:
        UserError: If inference.yaml deploys keys that training lacks.
    """
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    names = {key: key for key in network.state_dict()}
    if "deployed" in parser:
        # first the part: building it may move the network's weights to a device or memory format
        part: torch.nn.Module = parser.get_parsed_content("deployed")
        places = {value.data_ptr(): key for key, value in network.state_dict().items()}
        names = {key: places[value.data_ptr()] for key, value in part.state_dict().items()}
    if options.method or not (bundle / "configs" / "inference.yaml").is_file():
        return names if "deployed" in parser else None
    wanted = _inference_keys(bundle, options)
    if missing := sorted(wanted - names.keys()):
        raise UserError(
            f"inference.yaml of {bundle.name} deploys {len(missing)} keys that training lacks, "
            f"e.g. {missing[0]}; give both the same network_def, or train.yaml the id `deployed`"
        )
    return {key: names[key] for key in sorted(wanted)}


def _inference_keys(bundle: Path, options: Options) -> frozenset[str]:
    deployed = load_config(bundle, ["inference.yaml"])
    shared = {
        key: value
        for key, value in options.overrides.items()
        if key.replace("::", "#").partition("#")[0] in deployed
    }
    parser = load_config(bundle, ["inference.yaml"], overrides=shared)
    return frozenset(parser.get_parsed_content("network_def").state_dict())
