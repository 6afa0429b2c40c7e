"""The command line. Results go to stdout, progress to stderr; `--json` prints one object and nothing else on stdout.

Exit codes: 0 done; 1 a finding; 2 wrong usage or input; 3 a missing extra; 4 a round was aborted; 5 refused by budget
or policy; 130 interrupted. The keys of every JSON object stand in `schema.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dp import LAWS, BudgetExceededError, PrivacyError
from protocols import PolicyRefusal, ProtocolError

from ._siblings import VERSION
from .config import DROPOUT_NOISE, MAX_SILOS, AggregationConfig
from .privacy import UNITS, privacy_unit

DONE, FINDING, USAGE, MISSING_EXTRA, ABORTED, REFUSED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130


UNIT_OPTIONS = (
    "clip_norm", "epsilon", "delta", "rounds", "sampling_rate", "records", "rounding", "record_clip_norm",
    "local_steps",
)  # fmt: skip
CHOICES = ("modulus_bits", "noise_law", "dropout_noise")  # whose defaults are the configuration's own
PLAN_OPTIONS = ("clients", "max_dropouts", "max_colluders", "unit", *CHOICES, *UNIT_OPTIONS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except ImportError as error:
        return _fail(str(error), MISSING_EXTRA)
    except (BudgetExceededError, PolicyRefusal) as error:
        return _fail(str(error), REFUSED)
    except ProtocolError as error:
        return _fail(f"the round was aborted: {error}", ABORTED)
    except (ValueError, PrivacyError, OSError) as error:
        return _fail(str(error), USAGE)


def _fail(message: str, code: int) -> int:
    print(f"secagg: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg", description="Secure aggregation and distributed differential privacy for federated learning."
    )
    parser.add_argument("--version", action="version", version=f"secagg {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train on real data with real privacy, attack it, and show the pictures")
    demo.add_argument("--rounds", type=int, default=None, help="private training rounds (default: the tuned number)")
    demo.add_argument(
        "--out", type=Path, default=Path("secagg-demo"), help="folder for report and ledgers (default: %(default)s)"
    )
    demo.add_argument("--json", action="store_true", help="print one JSON object")
    demo.set_defaults(command=_demo)

    plan = commands.add_parser(
        "plan",
        help="derive and explain every number of a configuration",
        description="States threshold, ring, noise, epsilon ladder, bytes and expected error, each with its reason.",
    )
    add_config_options(plan)
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    plan.set_defaults(command=_plan)

    from .attack_command import add_attack_command
    from .audit_command import add_audit_command
    from .ledger_command import add_ledger_command

    add_attack_command(commands)
    add_ledger_command(commands)
    add_audit_command(commands)
    return parser


def add_config_options(command: argparse.ArgumentParser) -> None:
    """What states a configuration: a file, or numbers; `read_config` reads it."""
    command.add_argument(
        "--config", type=Path, help="TOML file instead of the options below (see AggregationConfig.from_toml)"
    )
    command.add_argument("--dimension", type=int, required=True, help="number of parameters of the model")
    command.add_argument("--clients", type=int, help="clients in a round")
    command.add_argument("--max-dropouts", type=int, help="clients that may vanish in a round")
    command.add_argument("--max-colluders", type=int, help="clients that may work with the server")
    command.add_argument("--modulus-bits", type=int, help="bits of a masked coordinate (default: 32)")
    command.add_argument("--noise-law", choices=sorted(LAWS), help="law of the noise shares (default: skellam)")
    command.add_argument(
        "--dropout-noise",
        choices=DROPOUT_NOISE,
        help="worst_case (default): every share is sized for the worst round; removable: what is too much is taken out",
    )
    command.add_argument("--unit", choices=sorted(UNITS), help="what is protected")
    command.add_argument("--clip-norm", type=float, help="L2 clip of one unit")
    command.add_argument("--epsilon", type=float, help="privacy budget over all rounds")
    command.add_argument("--delta", type=float, help="failure probability of the guarantee")
    command.add_argument("--rounds", type=int, help="rounds that share the budget")
    command.add_argument("--sampling-rate", type=float, help="unit record: public Poisson rate of records")
    command.add_argument("--records", type=int, help="units of records: public number of records")
    command.add_argument("--rounding", choices=("exact", "sum"), help="units of records: what is rounded")
    command.add_argument("--record-clip-norm", type=float, help="unit local_record: L2 clip of one record's gradient")
    command.add_argument("--local-steps", type=int, help="unit local_record: steps of one client in a round")


def _plan(options: argparse.Namespace) -> int:
    config = read_config(options)
    lines = config.explain()
    if options.json:
        derived: dict[str, Any] = {}
        for line in lines:
            *parents, name = line.name.split(".")
            target = derived
            for parent in parents:
                target = target.setdefault(parent, {})
            target[name] = line.value
        reasons = {line.name: line.reason for line in lines}
        print_json("plan", {**config_facts(config), **derived, "reasons": reasons})
        return DONE
    from .terminal import show_table

    print(
        f"{config.clients} clients, {config.layout.length} parameters; "
        f"protected unit: {config.privacy.unit} ({config.privacy.adjacency})"
    )
    show_table(("choice", "value", "why"), [(line.name, readable(line.value), line.reason) for line in lines])
    return DONE


def read_config(options: argparse.Namespace) -> AggregationConfig:
    """The configuration that the options of `add_config_options` state; `ValueError` if they do not state one."""
    if options.dimension < 1:
        raise ValueError(f"--dimension must be at least 1, got {options.dimension}")
    like = {"model": np.broadcast_to(np.float32(0), (options.dimension,))}
    given = [f"--{name.replace('_', '-')}" for name in PLAN_OPTIONS if getattr(options, name) is not None]
    if options.config is not None and given:
        raise ValueError(f"--config says it all: leave out {', '.join(given)}, or the file")
    if options.config is None:
        return _config_from_options(options, like)
    return AggregationConfig.from_toml(options.config, like=like)


def _config_from_options(options: argparse.Namespace, like: Mapping[str, Any]) -> AggregationConfig:
    needed = ("clients", "max_dropouts", "max_colluders", "unit")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(options, name) is None]
    if missing:
        raise ValueError(f"a configuration needs --config, or also {', '.join(missing)}")
    unit = {name: getattr(options, name) for name in UNIT_OPTIONS if getattr(options, name) is not None}
    preset = AggregationConfig.cross_silo if options.clients <= MAX_SILOS else AggregationConfig.cross_device
    return preset(
        like=like,
        clients=options.clients,
        max_dropouts=options.max_dropouts,
        max_colluders=options.max_colluders,
        privacy=privacy_unit({"unit": options.unit, **unit}),
        **{name: getattr(options, name) for name in CHOICES if getattr(options, name) is not None},
    )


def _demo(options: argparse.Namespace) -> int:
    from .demo import run_demo, show_demo

    if options.rounds is not None and options.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, got {options.rounds}")
    outcome = run_demo(rounds=options.rounds, out=options.out, quiet=options.json)
    if options.json:
        print_json("demo", outcome.to_dict())
    else:
        show_demo(outcome)
    return DONE


def config_facts(config: AggregationConfig) -> dict[str, Any]:
    """What a configuration was asked for, in plain types."""
    privacy = config.privacy
    return {
        "clients": config.clients,
        "max_dropouts": config.max_dropouts,
        "max_colluders": config.max_colluders,
        "dimension": config.layout.length,
        "unit": privacy.unit,
        "adjacency": privacy.adjacency,
        "clip_norm": config.clip_norm,
        "epsilon": privacy.epsilon,
        "delta": getattr(privacy, "delta", None),
        "rounds": getattr(privacy, "rounds", None),
        "config_digest": config.digest().hex(),
    }


def print_json(command: str, facts: Mapping[str, Any]) -> None:
    """One JSON object on stdout; infinite numbers become the text "inf", since JSON has none."""
    print(json.dumps(finite({"schema": f"secagg/{command}/1", "version": VERSION, **facts}), indent=2))


def finite(value: Any) -> Any:
    """The value with infinities as text."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def readable(value: object) -> str:
    """A number for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
