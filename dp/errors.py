"""Errors of the privacy side. Each names the offending value and the bound it broke, never the data itself.

They stand apart from `protocols.errors` on purpose: a `PrivacyError` means *stop spending*, a `ProtocolError` means
*drop a peer or the round*.
"""


class PrivacyError(Exception):
    """Base of everything that `dp` refuses."""


class BudgetExceededError(PrivacyError):
    """The release would pass the privacy budget; it is refused before any noise is drawn."""


class UnaccountableError(PrivacyError):
    """No valid privacy accounting exists for what was asked."""


class UnsafeUpdateError(PrivacyError, ValueError):
    """An update is not finite, or has the wrong shape or dtype; nothing was encoded."""


class CapacityError(PrivacyError, ValueError):
    """An integer bound or ring is too small to carry the sum; the message names what would be enough."""


class LedgerError(PrivacyError):
    """A ledger cannot be read, was tampered with, or is asked for something it does not hold."""
