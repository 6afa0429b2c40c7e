"""The wire: one encoding for each message, nothing else decodes, and no size changes unnoticed."""

from hashlib import sha256
from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import MalformedMessageError
from protocols.wire import (
    HEADER_BYTES,
    SERVER,
    KeyBundle,
    KeyBundles,
    MaskedInput,
    Message,
    SurvivorList,
    check_increasing,
)
from tests.classical import HEADER, decode, decode_signed, encode, message_limit

from .messages import KINDS, SIGNED, full_round, messages
from .oracles import load_vectors

NO_LIMIT = 10**9
CONTEXT = bytes(range(32))
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def survivor_list(*clients: bytes, context: bytes = b"\xc4\x20" + CONTEXT, sender: bytes = b"\x00") -> bytes:
    """A SurvivorList written by hand: header, array of four, tag 6, context, sender, survivors."""
    return b"SAGG\x01\x01" + b"\x94" + b"\x06" + context + sender + bytes((0x90 + len(clients),)) + b"".join(clients)


def refused(data: bytes, kind: type[Message] = SurvivorList, limit: int = NO_LIMIT) -> str:
    with pytest.raises(MalformedMessageError) as caught:
        decode(data, kind, limit=limit)
    return str(caught.value)


def decodes_or_is_malformed(data: bytes, kind: type[Message]) -> None:
    """The whole contract of `decode` on bytes from anybody."""
    try:
        message = decode(data, kind, limit=NO_LIMIT)
    except MalformedMessageError:
        return
    assert encode(message) == data


class TestEncoding:
    def test_fields_come_in_the_documented_order(self) -> None:
        """Tag, context, sender, fields: context and sender are first, so a reader can route on a prefix."""
        message = SurvivorList(context=CONTEXT, sender=SERVER, survivors=(1, 300))
        assert encode(message) == survivor_list(b"\x01", b"\xcd\x01\x2c")

    @pytest.mark.parametrize("name", KINDS)
    def test_every_kind_starts_with_tag_context_sender(self, name: str) -> None:
        message = full_round(3)[name]
        tag = list(full_round(3)).index(name)
        body = encode(message)[HEADER_BYTES:]
        assert body[1] == tag
        assert body[2:4] == b"\xc4\x20"
        assert body[36] == message.sender

    def test_kinds_have_distinct_tags_and_none_is_missing_here(self) -> None:
        assert set(full_round(3)) == set(KINDS)
        assert len({kind.__struct_config__.tag for kind in KINDS.values()}) == len(KINDS)

    @every_kind
    @settings(max_examples=30)
    @given(data=st.data())
    def test_round_trip(self, kind: type[Message], data: st.DataObject) -> None:
        message = data.draw(messages(kind))
        frame = encode(message)
        assert frame.startswith(b"SAGG\x01\x01")
        for view in (frame, memoryview(frame)):
            assert decode(view, kind, limit=len(frame)) == message

    @pytest.mark.parametrize("kind", SIGNED)
    @settings(max_examples=30)
    @given(data=st.data(), tail=st.binary(max_size=50), signature=st.binary(min_size=64, max_size=64))
    def test_signed_round_trip(self, kind: type[Message], data: st.DataObject, tail: bytes, signature: bytes) -> None:
        message = data.draw(messages(kind))
        covered = encode(message) + tail
        frame = decode_signed(covered + signature, kind, limit=len(encode(message)), tail_bytes=len(tail))
        assert frame.message == message
        assert bytes(frame.tail) == tail
        assert frame.digest == sha256(covered).digest()
        assert frame.signature == signature


class TestRefusals:
    @every_kind
    @settings(max_examples=60)
    @given(data=st.data())
    def test_no_other_kind_is_accepted(self, kind: type[Message], data: st.DataObject) -> None:
        frame = encode(data.draw(messages(kind)))
        other = data.draw(st.sampled_from([k for k in KINDS.values() if k is not kind]))
        refused(frame, other)

    @every_kind
    @settings(max_examples=20)
    @given(data=st.data())
    def test_every_truncation_and_extension(self, kind: type[Message], data: st.DataObject) -> None:
        frame = encode(data.draw(messages(kind)))
        for end in range(len(frame)):
            refused(frame[:end], kind)
        refused(frame + data.draw(st.binary(min_size=1, max_size=4)), kind)

    @pytest.mark.parametrize("position", range(6))
    def test_another_header(self, position: int) -> None:
        frame = bytearray(survivor_list(b"\x01"))
        frame[position] ^= 1
        assert "header" in refused(bytes(frame))

    @pytest.mark.parametrize(
        "clients",
        [
            [b"\x00"],  # the server is not a client
            [b"\xff"],  # -1
            [b"\xce\x80\x00\x00\x00"],  # 2^31
            [b"\xcf\x00\x00\x00\x01\x00\x00\x00\x00"],  # 2^32
            [b"\xcf\xff\xff\xff\xff\xff\xff\xff\xff"],  # 2^64 - 1
            [b"\xd3\x80\x00\x00\x00\x00\x00\x00\x00"],  # -2^63
            [b"\xc0"],  # nil
            [b"\xc3"],  # true
            [b"\xcb" + bytes(8)],  # 0.0
            [b"\xa11"],  # "1"
            [b"\x91\x01"],  # [1]
            [b"\xcc\x01"],  # 1 in two bytes
            [b"\xcd\x00\x01"],  # 1 in three bytes
            [b"\xd0\x01"],  # 1 as signed
            [b"\xd2\x00\x00\x00\x01"],
            [b"\xca\x3f\x80\x00\x00"],  # 1.0, a number msgpack readers like to turn into an integer
            [b"\xd6\xff" + bytes(4)],  # a timestamp extension
            [b"\xc1"],  # never used
        ],
    )
    def test_ids_out_of_range_of_another_type_or_not_minimal(self, clients: list[bytes]) -> None:
        refused(survivor_list(*clients))

    def test_largest_id(self) -> None:
        frame = survivor_list(b"\x01", b"\xce\x7f\xff\xff\xff")
        assert decode(frame, SurvivorList, limit=NO_LIMIT).survivors == (1, 2**31 - 1)

    @pytest.mark.parametrize(
        "context",
        [
            b"\xc4\x1f" + bytes(31),
            b"\xc4\x21" + bytes(33),
            b"\xc5\x00\x20" + bytes(32),  # longer length field than needed
            b"\xc6\x00\x00\x00\x20" + bytes(32),
            b"\xd9\x20" + b"a" * 32,  # text, not bytes
            b"\xc0",
        ],
    )
    def test_context_of_another_length_or_form(self, context: bytes) -> None:
        refused(survivor_list(b"\x01", context=context))

    @pytest.mark.parametrize("sender", [b"\xff", b"\xce\x80\x00\x00\x00", b"\xcc\x00", b"\xc0"])
    def test_sender_out_of_range_or_not_minimal(self, sender: bytes) -> None:
        refused(survivor_list(b"\x01", sender=sender))

    def test_arrays_in_a_longer_form(self) -> None:
        good = survivor_list(b"\x01")
        body = good[HEADER_BYTES:]
        assert decode(good, SurvivorList, limit=NO_LIMIT).survivors == (1,)
        refused(HEADER + b"\xdc\x00\x04" + body[1:])
        refused(HEADER + b"\xdd\x00\x00\x00\x04" + body[1:])
        refused(good[:-2] + b"\xdc\x00\x01\x01")

    def test_missing_and_extra_fields(self) -> None:
        body = survivor_list(b"\x01")[HEADER_BYTES:]
        refused(HEADER + b"\x93" + body[1:-2])
        refused(HEADER + b"\x95" + body[1:] + b"\x01")
        refused(HEADER + b"\x95" + body[1:] + b"\xc0")

    def test_maps(self) -> None:
        names = (b"context", b"sender", b"survivors")
        values = (b"\xc4\x20" + CONTEXT, b"\x00", b"\x91\x01")
        pairs = b"".join(bytes((0xA0 + len(n),)) + n + v for n, v in zip(names, values, strict=True))
        refused(HEADER + b"\x83" + pairs)
        refused(HEADER + b"\x84\xa4type\x06" + pairs)
        refused(survivor_list(b"\x81\x01\x01"))

    @pytest.mark.parametrize("header", [b"\xdd\xff\xff\xff\xff", b"\xdd\x7f\xff\xff\xff", b"\xdc\xff\xff"])
    def test_announced_lengths_allocate_nothing(self, header: bytes) -> None:
        """A few bytes that announce 2^32 entries, or bytes, are an error at once."""
        start = survivor_list()[:-1]
        refused(start + header)
        refused(start + header + b"\x01")
        refused(HEADER + header)
        refused(survivor_list(b"\x01", context=b"\xc6\xff\xff\xff\xff" + CONTEXT))

    def test_deep_nesting(self) -> None:
        refused(survivor_list(b"\x91" * 100_000))
        refused(HEADER + b"\x91" * 100_000)
        refused(HEADER + b"\x95\x06" + survivor_list(b"\x01")[8:] + b"\x91" * 100_000 + b"\x01")

    @pytest.mark.parametrize("changes", [{"serial": 0}, {"serial": 2**62}, {"client": 0}, {"client": 2**31}])
    def test_bundle_bounds(self, changes: dict[str, int]) -> None:
        key = bytes(32)
        bundle = KeyBundle(client=1, serial=1, fresh=key, channel_key=key, mask_key=key, signature=bytes(64))
        good = KeyBundles(context=CONTEXT, sender=SERVER, bundles=(bundle,))
        assert decode(encode(good), KeyBundles, limit=NO_LIMIT) == good
        bad = KeyBundles(context=CONTEXT, sender=SERVER, bundles=(msgspec.structs.replace(bundle, **changes),))
        refused(encode(bad), KeyBundles)

    @pytest.mark.parametrize("field", ["fresh", "channel_key", "mask_key", "signature"])
    @pytest.mark.parametrize("change", [-1, 1])
    def test_bundle_lengths(self, field: str, change: int) -> None:
        sizes = {"fresh": 32, "channel_key": 32, "mask_key": 32, "signature": 64}
        sizes[field] += change
        bundle = KeyBundle(client=1, serial=1, **{name: bytes(size) for name, size in sizes.items()})
        refused(encode(KeyBundles(context=CONTEXT, sender=SERVER, bundles=(bundle,))), KeyBundles)

    @settings(max_examples=200)
    @given(kind=st.sampled_from(sorted(KINDS)), data=st.binary(max_size=200), with_header=st.booleans())
    def test_arbitrary_bytes(self, kind: str, data: bytes, with_header: bool) -> None:
        decodes_or_is_malformed(HEADER + data if with_header else data, KINDS[kind])

    @every_kind
    @settings(max_examples=60)
    @given(data=st.data())
    def test_mutated_frames(self, kind: type[Message], data: st.DataObject) -> None:
        frame = bytearray(encode(data.draw(messages(kind))))
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(frame) - 1))
            match data.draw(st.sampled_from(["flip", "set", "delete", "insert", "repeat"])):
                case "flip":
                    frame[place] ^= 1 << data.draw(st.integers(0, 7))
                case "set":
                    frame[place] = data.draw(st.integers(0, 255))
                case "delete":
                    del frame[place : place + data.draw(st.integers(1, 8))]
                case "insert":
                    frame[place:place] = data.draw(st.binary(min_size=1, max_size=8))
                case "repeat":
                    frame[place:place] = frame[place : place + 8]
            if not frame:
                break
        decodes_or_is_malformed(bytes(frame), kind)

    @pytest.mark.parametrize("kind", SIGNED)
    @settings(max_examples=60)
    @given(data=st.binary(max_size=300), tail_bytes=st.integers(0, 100), with_header=st.booleans())
    def test_arbitrary_signed_bytes(self, kind: type[Message], data: bytes, tail_bytes: int, with_header: bool) -> None:
        data = HEADER + data if with_header else data
        try:
            frame = decode_signed(data, kind, limit=NO_LIMIT, tail_bytes=tail_bytes)
        except MalformedMessageError:
            return
        assert encode(frame.message) + bytes(frame.tail) + frame.signature == data


class TestLimits:
    def test_sizes_are_checked_before_anything_is_read(self) -> None:
        assert "9 bytes, at most 8" in refused(b"\xff" * 9, limit=8)
        frame = survivor_list(b"\x01")
        assert decode(frame, SurvivorList, limit=len(frame)).survivors == (1,)
        assert "at most" in refused(frame, limit=len(frame) - 1)

    @pytest.mark.parametrize("tail_bytes", [0, 40])
    def test_a_signed_frame_has_room_for_tail_and_signature(self, tail_bytes: int) -> None:
        body = encode(MaskedInput(context=CONTEXT, sender=1, cohort=CONTEXT))
        frame = body + bytes(tail_bytes + 64)
        assert decode_signed(frame, MaskedInput, limit=len(body), tail_bytes=tail_bytes).message.sender == 1
        for size in (0, 1, 63, 64 + tail_bytes, 64 + tail_bytes + 5):
            with pytest.raises(MalformedMessageError, match="fewer than"):
                decode_signed(frame[:size], MaskedInput, limit=NO_LIMIT, tail_bytes=tail_bytes)
        for wrong in (frame[:-1], frame + b"\x00"):
            with pytest.raises(MalformedMessageError):
                decode_signed(wrong, MaskedInput, limit=NO_LIMIT, tail_bytes=tail_bytes)
        with pytest.raises(MalformedMessageError, match="at most"):
            decode_signed(frame, MaskedInput, limit=len(body) - 1, tail_bytes=tail_bytes)

    @pytest.mark.parametrize("n", [2, 3, 10, 100, 1000])
    def test_the_limit_admits_every_honest_message_but_not_much_more(self, n: int) -> None:
        largest = full_round(n, first_id=2**31 - n, serial=2**62 - 1)
        sizes = {name: len(encode(message)) for name, message in largest.items()}
        assert max(sizes.values()) <= message_limit(n) <= 2 * max(sizes.values()) + 1024

    @given(st.lists(st.integers(1, 10), max_size=6))
    def test_check_increasing(self, clients: list[int]) -> None:
        if clients == sorted(set(clients)):
            check_increasing(tuple(clients))
        else:
            with pytest.raises(MalformedMessageError, match="increase"):
                check_increasing(tuple(clients))


class TestSizes:
    TABLE: dict[str, dict[str, int]] = load_vectors("message_sizes.json")

    @pytest.mark.parametrize(("name", "n"), list(product(KINDS, (3, 10, 100, 1000))))
    def test_pinned_byte_by_byte(self, name: str, n: int) -> None:
        """Header and body; the 64 signature bytes and the vector of MaskedInput come on top."""
        assert len(encode(full_round(n)[name])) == self.TABLE[name][str(n)]

    @pytest.mark.parametrize(("name", "n"), list(product(("ShareKeys", "SealedShares", "Unmask"), (3, 10, 100, 1000))))
    def test_with_removable_components(self, name: str, n: int) -> None:
        """The largest: nobody drops out, so a share of a link of everybody is said."""
        assert len(encode(full_round(n, removable=5)[name])) == self.TABLE[f"{name}, 5 removable"][str(n)]

    def test_one_row_by_hand(self) -> None:
        """6 header, 1 array, 1 tag, 34 context, 1 sender, then the fields; n = 3."""
        start = 6 + 1 + 1 + 34 + 1
        bundle = 1 + 1 + 1 + 3 * 34 + 66
        assert {name: row["3"] for name, row in self.TABLE.items()} == {
            "Invitation": start + 2 * 34,
            "AdvertiseKeys": start + bundle,
            "KeyBundles": start + 1 + 3 * bundle,
            "ShareKeys": start + 34 + 1 + 2 * 90,
            "SealedShares": start + 1 + 3 + 1 + 2 * 90,
            "MaskedInput": start + 34,
            "SurvivorList": start + 1 + 3,
            "ConsistencyCheck": start + 34,
            "SurvivorSignatures": start + 1 + 3 + 1 + 3 * 66,
            "Unmask": start + 2 + 3 * 36 + 1,  # and an empty array: no bundle for later
            "ShareKeys, 5 removable": start + 66 + 1 + 2 * (3 + 88 + 5 * 36),
            "SealedShares, 5 removable": start + 1 + 3 + 1 + 2 * (3 + 88 + 5 * 36),
            "Unmask, 5 removable": start + 2 + 2 * 3 * 36 + 1,
        }
