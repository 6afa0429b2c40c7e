"""`secagg ledger`: open, read, check and plan a privacy budget, wherever it is kept.

- A location is what `PrivacyLedger` takes: a path, or "postgresql://..." (an address on a command line can be read by
  others on that machine: passwords belong into PGPASSFILE).
- `init` is the only command that writes.
- A ledger that cannot be opened is wrong input (exit code 2). One that is open and does not hold together, or does not
  contain the pinned head, is a finding (1).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dp import LedgerError, PrivacyLedger
from dp.accounting import event_from_dict

from .cli import DONE, FINDING, add_config_options, print_json, read_config
from .client import agreed_ledger
from .terminal import show_bars, show_table

if TYPE_CHECKING:
    from dp import PrivacyBudget
    from dp.accounting import PrivacyEvent

    from .config import AggregationConfig

RECENT_ROUNDS = 10
PLOT_LINES = 20
PLAN_ROWS = 6


def add_ledger_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `ledger` and its subcommands."""
    ledger = commands.add_parser("ledger", help="open, read, check and plan a privacy budget")
    actions = ledger.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        parser.add_argument("location", help="path of the ledger, or postgresql://...")
        parser.add_argument("--json", action="store_true", help="print one JSON object")
        parser.set_defaults(command=command)
        return parser

    add_config_options(action("init", _init, "start a ledger for the budget of a configuration"))
    action("show", _checked(_show), "what is spent, what is left, and the head to pin on another machine")
    verify = action("verify", _verify, "recompute all entries; exit code 1 if they do not hold together")
    verify.add_argument("--head", help="a head noted earlier, which the ledger must contain")
    action("export", _checked(_export), "print all entries as JSON lines, oldest first")
    plan = action("plan", _checked(_plan), "how many more rounds of a configuration fit, by survivors")
    add_config_options(plan)
    plan.add_argument("--survivors", type=int, nargs="+", help="numbers of survivors to compare")


def _checked(act: Callable[[PrivacyLedger, argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """A command on an open ledger, which turns a broken chain into a finding."""

    def command(options: argparse.Namespace) -> int:
        with PrivacyLedger.open(options.location) as ledger:
            try:
                return act(ledger, options)
            except LedgerError as error:
                print(f"secagg: {error}", file=sys.stderr)
                return FINDING

    return command


def _init(options: argparse.Namespace) -> int:
    config = read_config(options)
    budget, event = _planned(config)
    with PrivacyLedger.create(options.location, budget=budget) as ledger:
        state = ledger.state()
    facts = {
        "location": ledger.name,
        "unit": state.unit,
        "epsilon": state.limit_epsilon,
        "delta": state.delta,
        "order": state.order,
        "filter_limit": state.filter_limit,
        "rounds_left": state.rounds_left(event(survivors=config.min_survivors)),
        "head": state.head,
    }
    if options.json:
        print_json("ledger/init", facts)
    else:
        show_table(("fact", "value"), [(name, str(value)) for name, value in facts.items() if name != "head"])
        _show_head(state.head)
    return DONE


def _show(ledger: PrivacyLedger, options: argparse.Namespace) -> int:
    state, entries = ledger.state(), [entry.to_dict() for entry in ledger.entries()]
    left = state.filter_limit - state.filter_spent
    burn_down = _burn_down(entries, limit=state.filter_limit)
    worst, recent = _worst_case(entries), _recent_round(entries)
    rounds_left = {
        "worst_case": None if worst is None else state.rounds_left(worst),
        "recent": None if worst is None or recent is None else state.rounds_left(worst, committed=recent),
    }
    facts = {
        "location": ledger.name,
        "unit": state.unit,
        "delta": state.delta,
        "order": state.order,
        "epsilon": {"spent": state.epsilon, "limit": state.limit_epsilon},
        "filter": {"spent": state.filter_spent, "limit": state.filter_limit, "left": left},
        "rounds": {
            "committed": state.rounds_committed,
            "reserved": state.rounds_reserved,
            "released": state.rounds_released,
        },
        "rounds_left": rounds_left,
        "burn_down": burn_down,
        "head": state.head,
    }
    if options.json:
        print_json("ledger/show", facts)
        return DONE
    rows = (
        ("protects", state.unit, f"epsilon {state.limit_epsilon:g} at delta {state.delta:g}"),
        ("spent", f"epsilon {state.epsilon:.4g}", "the smallest over all orders, for reading"),
        ("left", f"{left / state.filter_limit:.2%}", f"of the divergence at order {state.order}, which decides"),
        ("committed", str(state.rounds_committed), "rounds, at what happened"),
        ("reserved", str(state.rounds_reserved), "rounds begun and not finished, at their worst case"),
        ("released", str(state.rounds_released), "rounds given back, at no cost"),
        ("rounds left", _or_none(rounds_left["worst_case"]), "if all cost the worst case reserved last"),
        ("rounds left", _or_none(rounds_left["recent"]), f"if all cost the median of the last {RECENT_ROUNDS} rounds"),
    )
    show_table(("fact", "value", "note"), rows)
    if burn_down:
        print("left after each round")
        width = len(str(len(burn_down)))
        show_bars([(f"{number + 1:>{width}}", burn_down[number]) for number in _spread(len(burn_down), PLOT_LINES)])
    _show_head(state.head)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    head = options.head
    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise ValueError(f"--head must be 64 hexadecimal digits in lower case, got {head!r}")
    found, finding, entries = None, None, None
    with PrivacyLedger.open(options.location) as ledger:
        try:
            found = ledger.verify(expected_head=head)
            entries = sum(1 for _ in ledger.entries())
        except LedgerError as error:
            finding = str(error)
    if options.json:
        facts = {"location": ledger.name, "ok": finding is None, "entries": entries, "head": found}
        print_json("ledger/verify", {**facts, "finding": finding})
    elif finding is None:
        print(f"ok: entries {entries}, head {found}")
    else:
        print(f"secagg: {finding}", file=sys.stderr)
    return DONE if finding is None else FINDING


def _export(ledger: PrivacyLedger, options: argparse.Namespace) -> int:
    if options.json:
        entries = [entry.to_dict() for entry in ledger.entries()]
        print_json("ledger/export", {"location": ledger.name, "entries": entries})
        return DONE
    for entry in ledger.entries():
        print(json.dumps(entry.to_dict(), sort_keys=True))
    return DONE


def _plan(ledger: PrivacyLedger, options: argparse.Namespace) -> int:
    config = read_config(options)
    _, event = _planned(config)
    agreed_ledger(ledger, config)
    state, fewest = ledger.state(), config.min_survivors
    worst = event(survivors=fewest)
    counts = options.survivors or [fewest + step for step in _spread(config.clients - fewest + 1, PLAN_ROWS)]
    rows = [
        {
            "survivors": survivors,
            "rounds_left": state.rounds_left(worst, committed=event(survivors=survivors)),
        }
        for survivors in counts
    ]
    facts = {
        "location": ledger.name,
        "clients": config.clients,
        "min_survivors": fewest,
        "max_colluders": config.max_colluders,
        "epsilon": {"spent": state.epsilon, "limit": state.limit_epsilon},
        "rows": rows,
    }
    if options.json:
        print_json("ledger/plan", facts)
        return DONE
    print(f"epsilon {state.epsilon:.4g} of {state.limit_epsilon:g} is spent; a round reserves {fewest} survivors")
    show_table(
        ("survivors of each round", "rounds left"), [tuple(str(value) for value in row.values()) for row in rows]
    )
    return DONE


def _planned(config: AggregationConfig) -> tuple[PrivacyBudget, Callable[..., PrivacyEvent]]:
    """The budget of a configuration, and what a round costs, by its survivors."""
    budget = config.budget()
    if budget is None or config.mechanism is None:
        raise ValueError(f"unit {config.privacy.unit!r} spends no budget that a ledger could keep")
    return budget, config.mechanism.event


def _burn_down(entries: list[dict[str, Any]], *, limit: int) -> list[float]:
    """What was left after each committed round, as a fraction of the limit; open reservations count as spent."""
    reserved: dict[str, int] = {}
    left, fractions = limit, []
    for entry in entries[1:]:
        left += reserved.pop(entry["request_id"], 0) - entry["amount"]
        if entry["transition"] == "reserve":
            reserved[entry["request_id"]] = entry["amount"]
        elif entry["transition"] == "commit":
            fractions.append(left / limit)
    return fractions


def _worst_case(entries: list[dict[str, Any]]) -> PrivacyEvent | None:
    """The event reserved last."""
    reserved = [entry for entry in entries if entry["transition"] == "reserve"]
    return event_from_dict(reserved[-1]["event"]) if reserved else None


def _recent_round(entries: list[dict[str, Any]]) -> PrivacyEvent | None:
    """The event of middle cost among the last committed rounds; the costlier of two middle ones."""
    recent = [entry for entry in entries if entry["transition"] == "commit"][-RECENT_ROUNDS:]
    by_cost = sorted(recent, key=lambda entry: int(entry["amount"]))
    return event_from_dict(by_cost[len(by_cost) // 2]["event"]) if by_cost else None


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(step * (count - 1) / (most - 1)) for step in range(most)]


def _show_head(head: str) -> None:
    """In a line of its own, to be copied."""
    print(f"head {head}\nkeep it on another machine, for `secagg ledger verify --head`")


def _or_none(value: int | None) -> str:
    return "unknown before the first round" if value is None else str(value)
