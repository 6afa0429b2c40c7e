"""Layout: flattening loses nothing, and whatever does not match is refused without showing a value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secagg import Layout, UnsafeUpdateError

DTYPES = ("float16", "float32", "float64")
SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)
ENTRIES = st.dictionaries(
    st.text(min_size=1, max_size=8), st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=4
)
WEIGHTS = {"w": np.arange(6.0).reshape(2, 3), "b": np.arange(2, dtype=np.float32)}


@st.composite
def updates(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Any update, of any layout."""
    return {
        name: draw(arrays(dtype, shape, elements=st.floats(-1000, 1000, width=16)))
        for name, (shape, dtype) in draw(ENTRIES).items()
    }


class TestRoundTrip:
    @given(update=updates())
    def test_unflatten_inverts_flatten(self, update: dict[str, np.ndarray]) -> None:
        layout = Layout.of(update)
        vector = layout.flatten(update)
        assert vector.shape == (layout.length,)
        assert vector.dtype == np.float64
        assert layout.length == sum(array.size for array in update.values())
        back = layout.unflatten(vector)
        assert list(back) == list(update)
        for name, array in update.items():
            assert back[name].dtype == array.dtype
            np.testing.assert_array_equal(back[name], array)

    @given(update=updates())
    def test_the_order_of_an_update_does_not_matter(self, update: dict[str, np.ndarray]) -> None:
        layout = Layout.of(update)
        reverse = dict(reversed(update.items()))
        np.testing.assert_array_equal(layout.flatten(reverse), layout.flatten(update))
        assert layout.model_digest(reverse) == layout.model_digest(update)

    @given(update=updates())
    def test_text_form_is_lossless(self, update: dict[str, np.ndarray]) -> None:
        layout = Layout.of(update)
        again = Layout.from_dict(layout.to_dict())
        assert again == layout
        assert again.digest() == layout.digest()

    @settings(max_examples=40)
    @given(entries=ENTRIES, records=st.integers(0, 4), seed=st.integers(0, 2**32 - 1))
    def test_records_are_flattened_one_by_one(
        self, entries: dict[str, tuple[tuple[int, ...], str]], records: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        update = {name: rng.normal(size=(records, *shape)).astype(dtype) for name, (shape, dtype) in entries.items()}
        layout = Layout.of({name: np.zeros(shape, dtype) for name, (shape, dtype) in entries.items()})
        rows = layout.flatten_records(update)
        assert rows.shape == (records, layout.length)
        for row in range(records):
            one = {name: array[row] for name, array in update.items()}
            np.testing.assert_array_equal(rows[row], layout.flatten(one))


class TestDigest:
    def test_changes_with_name_shape_dtype_and_order(self) -> None:
        variants: list[dict[str, np.ndarray]] = [
            {"w": np.zeros((2, 3)), "b": np.zeros(2)},
            {"v": np.zeros((2, 3)), "b": np.zeros(2)},
            {"w": np.zeros((3, 2)), "b": np.zeros(2)},
            {"w": np.zeros(6), "b": np.zeros(2)},
            {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2)},
            {"b": np.zeros(2), "w": np.zeros((2, 3))},
            {"w": np.zeros((2, 3))},
        ]
        assert len({Layout.of(variant).digest() for variant in variants}) == len(variants)

    def test_values_do_not_matter(self) -> None:
        assert Layout.of(WEIGHTS).digest() == Layout.of({name: array + 1 for name, array in WEIGHTS.items()}).digest()

    @given(update=updates(), data=st.data())
    def test_model_digest_changes_with_every_value(self, update: dict[str, np.ndarray], data: st.DataObject) -> None:
        layout = Layout.of(update)
        name = data.draw(st.sampled_from(sorted(update)))
        index = data.draw(st.integers(0, update[name].size - 1))
        changed = {key: array.copy() for key, array in update.items()}
        value = changed[name].reshape(-1)[index]
        changed[name].reshape(-1)[index] = np.nextafter(value, value.dtype.type(math.inf))
        assert layout.model_digest(changed) != layout.model_digest(update)

    def test_model_digest_is_of_values_not_of_memory(self) -> None:
        layout = Layout.of(WEIGHTS)
        digest = layout.model_digest(WEIGHTS)
        assert layout.model_digest({name: np.asfortranarray(array) for name, array in WEIGHTS.items()}) == digest
        swapped = {name: array.astype(array.dtype.newbyteorder()) for name, array in WEIGHTS.items()}
        assert layout.model_digest(swapped) == digest

    def test_no_model_is_not_a_zero_model(self) -> None:
        layout = Layout.of(WEIGHTS)
        zeros = {name: np.zeros_like(array) for name, array in WEIGHTS.items()}
        assert layout.model_digest(None) != layout.model_digest(zeros)
        assert layout.model_digest(None) == Layout.of({"other": np.zeros(3)}).model_digest(None)


class TestRefusals:
    @pytest.mark.parametrize(
        ("like", "message"),
        [
            ({}, "at least one array"),
            ({"w": np.zeros(0)}, "'w' is empty"),
            ({"w": np.zeros((3, 0))}, "'w' is empty"),
            ({"w": np.zeros(3, np.int64)}, "'w' has dtype int64"),
            ({"w": np.zeros(3, bool)}, "dtype bool"),
            ({"w": np.zeros(3, complex)}, "dtype complex128"),
            ({"w": np.array(["text"])}, "'w' has dtype"),
        ],
    )
    def test_layouts(self, like: dict[str, np.ndarray], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Layout.of(like)

    @pytest.mark.parametrize(
        ("update", "message"),
        [
            ({"w": WEIGHTS["w"]}, r"missing \['b'\]"),
            ({**WEIGHTS, "x": np.zeros(1)}, r"unknown \['x'\]"),
            ({**WEIGHTS, "w": WEIGHTS["w"].T}, r"'w' must be float64\[2, 3\], got float64\[3, 2\]"),
            ({**WEIGHTS, "b": WEIGHTS["b"].astype(np.float64)}, r"'b' must be float32\[2\], got float64\[2\]"),
            ({**WEIGHTS, "b": [0, 1]}, r"'b' must be float32\[2\], got int64"),
        ],
    )
    def test_updates(self, update: dict[str, np.ndarray], message: str) -> None:
        layout = Layout.of(WEIGHTS)
        for refuse in (layout.flatten, layout.model_digest):
            with pytest.raises(UnsafeUpdateError, match=message):
                refuse(update)

    @pytest.mark.parametrize("update", [np.full(6, 0.123456), [np.full(6, 0.123456)], None, 3.5])
    def test_what_is_no_mapping(self, update: object) -> None:
        layout = Layout.of(WEIGHTS)
        for refuse in (layout.flatten, layout.flatten_records):
            with pytest.raises(UnsafeUpdateError) as caught:
                refuse(update)  # type: ignore[arg-type]
            assert "0.123" not in str(caught.value), "an error shows values of the update"

    def test_records_that_disagree_in_number(self) -> None:
        layout = Layout.of(WEIGHTS)
        update: dict[str, np.ndarray] = {"w": np.zeros((4, 2, 3)), "b": np.zeros((5, 2), np.float32)}
        with pytest.raises(UnsafeUpdateError, match=r"'b' must be float32\[4, 2\], got float32\[5, 2\]"):
            layout.flatten_records(update)

    def test_an_update_without_record_axis(self) -> None:
        with pytest.raises(UnsafeUpdateError, match="'w' must be"):
            Layout.of(WEIGHTS).flatten_records(WEIGHTS)
        with pytest.raises(UnsafeUpdateError, match="'s' must be"):
            Layout.of({"s": np.zeros(())}).flatten_records({"s": np.zeros(())})

    @pytest.mark.parametrize("shape", [(7,), (9,), (2, 4), ()])
    def test_vectors_of_another_length(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="8 coordinates"):
            Layout.of(WEIGHTS).unflatten(np.zeros(shape))
