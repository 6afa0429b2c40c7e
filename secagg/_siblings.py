"""Refuses to run on a `dp` or `protocols` package that is not ours: a user's own `dp.py` would win otherwise."""

from __future__ import annotations

import importlib

VERSION = "0.1.0"


def check_siblings() -> None:
    """Checks that `dp` and `protocols` belong to this version of `secagg`.

    Raises:
        ImportError: names the file found in their place, and what to do.
    """
    for name in ("dp", "protocols"):
        module = importlib.import_module(name)
        found = getattr(module, "__secagg_version__", None)
        if found != VERSION:
            raise ImportError(
                f"secagg {VERSION} needs its own package `{name}`, but {getattr(module, '__file__', None)} was found "
                f"(version {found}): rename or remove that file, or reinstall secagg"
            )
