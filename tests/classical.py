"""The wire in the classical suite, where frames are short enough to write by hand and repeat bit for bit."""

from functools import partial

from protocols import roster, wire
from protocols.primitives.keys import CLASSICAL

HEADER = wire.MAGIC + bytes((wire.VERSION, CLASSICAL.number))
SEALED_BYTES = wire.sealed_bytes(CLASSICAL)

encode = partial(wire.encode, suite=CLASSICAL)
decode = partial(wire.decode, suite=CLASSICAL)
decode_signed = partial(wire.decode_signed, suite=CLASSICAL)
message_limit = partial(wire.message_limit, suite=CLASSICAL)
bundle_digest = partial(roster.bundle_digest, suite=CLASSICAL)
