"""What one client's records have been through, as an Opacus accountant.

Rules:

- It keeps events, not noise multipliers; epsilon is a view of them.
- Nothing on record is ever forgotten: a release may be corrected, and a state loads only where none was recorded.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping, MutableMapping

from opacus.accountants import IAccountant, register_accountant

from ..accounting import PrivacyEvent, epsilon, event_from_dict
from ..errors import UnaccountableError


class SkellamAccountant(IAccountant):  # type: ignore[misc]  # Opacus is untyped
    """Counts the Skellam releases that touched one client's records. Opacus knows it as "skellam"."""

    def __init__(self) -> None:
        self._counts: Counter[PrivacyEvent] = Counter()

    @property
    def history(self) -> list[tuple[PrivacyEvent, int]]:
        """Every distinct release and how often it was made."""
        return list(self._counts.items())

    def record(self, event: PrivacyEvent) -> None:
        """Add one release."""
        self._counts[event] += 1

    def amend(self, recorded: PrivacyEvent, actual: PrivacyEvent) -> None:
        """Replace one recorded release by what it turned out to be.

        Raises:
            UnaccountableError: `recorded` is not on record.
        """
        if not self._counts[recorded]:
            raise UnaccountableError("the release to be amended is not on record")
        self._counts[actual] += 1
        self._counts[recorded] -= 1
        self._counts = +self._counts

    def step(self, *, noise_multiplier: float, sample_rate: float) -> None:
        """Opacus' way to count a step. Refused: two floats do not state a Skellam release.

        Raises:
            UnaccountableError: Always.
        """
        raise UnaccountableError(
            f"noise_multiplier {noise_multiplier} and sample_rate {sample_rate} do not state a Skellam release: "
            "use record(event)"
        )

    def get_epsilon(self, delta: float) -> float:
        """Epsilon of all releases together, at `delta` in (0, 1)."""
        return epsilon(self._counts, delta=delta)

    def opacus_history(self) -> list[tuple[float, float, int]]:
        """What is on record, in the words of Opacus' own accountants: noise multiplier, sampling rate, steps.

        To compare, not to claim. They read it as continuous Gaussian noise of the same relative size; that loses the
        dimension, the integer bounds and the rounding. `history` of an `RDPAccountant` or `PRVAccountant` takes it:

            other = opacus.accountants.create_accountant("prv")
            other.history = ours.opacus_history()
            other.get_epsilon(delta)
        """
        return [(event.gaussian_multiplier, float(event.sampling_rate), count) for event, count in self._counts.items()]

    def __len__(self) -> int:
        return self._counts.total()

    @classmethod
    def mechanism(cls) -> str:
        """Its name in Opacus' registry."""
        return "skellam"

    def state_dict(self, destination: MutableMapping[str, object] | None = None) -> MutableMapping[str, object]:
        """Everything on record, in plain JSON types."""
        destination = OrderedDict() if destination is None else destination
        destination["history"] = [[event.to_dict(), count] for event, count in self._counts.items()]
        destination["mechanism"] = self.mechanism()
        return destination

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        """Take over what `state_dict` of an accountant returned.

        Raises:
            UnaccountableError: It is not such a state, or releases are already on record here and would be forgotten.
        """
        if self._counts:
            raise UnaccountableError(f"loading would forget {len(self)} recorded releases: load into a new accountant")
        history = state_dict.get("history")
        if state_dict.get("mechanism") != self.mechanism() or not isinstance(history, list):
            raise UnaccountableError(f"not the state of a Skellam accountant: keys {sorted(state_dict)}")
        counts: Counter[PrivacyEvent] = Counter()
        for entry in history:
            match entry:
                case [dict(data), int(count)] if count > 0:
                    counts[event_from_dict(data)] += count
                case _:
                    raise UnaccountableError(f"not an event and its count: {entry!r}")
        self._counts = counts


register_accountant(SkellamAccountant.mechanism(), SkellamAccountant)
