"""Privacy units as plain data: from tables and options, and into a configuration's digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from dp import AdaptiveClipping, ClientLevel, LocalRecordLevel, NoPrivacy, PrivacyUnit, RecordLevel
from dp.units import NO_CLIENT_RATE

UNITS: dict[str, type[ClientLevel] | type[RecordLevel] | type[LocalRecordLevel] | type[NoPrivacy]] = {
    "client": ClientLevel,
    "record": RecordLevel,
    "local_record": LocalRecordLevel,
    "none": NoPrivacy,
}
_COUNTS = ("rounds", "records", "local_steps")  # arguments that are integers


def privacy_unit(data: Mapping[str, Any]) -> PrivacyUnit:
    """A privacy unit from plain data: `unit` and that unit's arguments.

    For `AdaptiveClipping`, `clip_norm` is a table of its arguments.

    Raises:
        ValueError: the unit is unknown, or an argument is missing, unknown or wrong.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"privacy must be a table with a unit, got {data!r}")
    arguments = dict(data)
    name = arguments.pop("unit", None)
    if not isinstance(name, str) or name not in UNITS:
        raise ValueError(f"privacy unit must be one of {sorted(UNITS)}, got {name!r}")
    needed = {entry.name: entry.default is MISSING for entry in fields(UNITS[name])}
    missing = sorted(entry for entry, required in needed.items() if required and entry not in arguments)
    unknown = sorted(set(arguments) - set(needed))
    if missing or unknown:
        reason = f": {NO_CLIENT_RATE}" if name == "client" and "sampling_rate" in unknown else ""
        raise ValueError(f"privacy unit {name!r}: missing {missing}, unknown {unknown}{reason}")
    if isinstance(arguments.get("clip_norm"), Mapping):
        known, table = {entry.name for entry in fields(AdaptiveClipping)}, arguments["clip_norm"]
        if not {"initial"} <= set(table) <= known:
            raise ValueError(f"clip_norm, as a table, needs initial and knows {sorted(known)}, got {sorted(table)}")
        arguments["clip_norm"] = AdaptiveClipping(**table)
    return UNITS[name](**arguments)


def plain_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as int, other numbers as float: 1 and 1.0 of two parties must give one digest."""

    def plain(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return plain_numbers(value)
        return value if name in _COUNTS or isinstance(value, str) else float(value)

    return {name: plain(name, value) for name, value in values.items()}
