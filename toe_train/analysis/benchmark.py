"""What `toe-tools bench` gives: the base of all its results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Benchmark(ABC):
    """Figures of one run of a benchmark, all of which took turns.

    Attributes:
        rounds: timed repeats.
    """

    rounds: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    @abstractmethod
    def as_table(self) -> str:
        """For a reader."""
