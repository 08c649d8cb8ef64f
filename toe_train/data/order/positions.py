"""Which image stands at which position of an epoch, and which process sees which positions.

    GlobalOrder   epoch -> one sequence of indices, cut into global batches (steps)
    BatchLayout   global batch -> the micro-batches of every process, and the pairs that Mixup mixes
    TrainBatchSampler   both together, as the batch sampler of one process, from any step on

Neither the sequence nor the pairs depend on the number of processes or on accumulation: these only decide who computes
what.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from toe_train.data.order.randomness import generator
from toe_train.errors import UserError

Sampling = Literal["shuffled", "balanced"]  # each image equally often, or each class


class SampleKey(NamedTuple):
    """One image at one place of the run: all that its augmentation depends on."""

    index: int  # type: ignore[assignment]  # in the data set; hides tuple.index
    epoch: int
    position: int  # in the whole epoch's sequence, over all processes
    group: tuple[int, ...] = ()  # indices of the images, itself among them, that share their size; none: it is alone


@dataclass(frozen=True)
class GlobalOrder:
    """The order of an epoch over all processes: shuffled, whole global batches only.

    With `repeats` > 1 it is DeiT's repeated augmentation (DeiT samplers.py, there with 3 repeats): each shuffled index
    stands `repeats` times in a row and an epoch keeps the first n // selected_round * selected_round positions (all n
    when n < selected_round), so an epoch is as long as without, with about 1 / repeats of the images in it. Unlike
    DeiT's, it works in a single process too.

    Raises UserError where the data set does not fill one global batch.
    """

    num_samples: int
    global_batch: int
    seed: int
    repeats: int = 1
    selected_round: int = 256

    def __post_init__(self) -> None:
        _require_positive(num_samples=self.num_samples, global_batch=self.global_batch, repeats=self.repeats)
        if self.steps_per_epoch == 0:
            rounding = f" ({self._kept} after rounding down for repeated augmentation)" if self.repeats > 1 else ""
            raise UserError(
                f"global batch {self.global_batch}: the training set has {self.num_samples} images{rounding}, which do "
                f"not fill one batch; use a global batch of at most {self._kept}, or more images"
            )

    @property
    def _kept(self) -> int:
        if self.repeats == 1 or self.num_samples < self.selected_round:
            return self.num_samples
        return self.num_samples // self.selected_round * self.selected_round

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch; the last partial one is dropped."""
        return self._kept // self.global_batch

    def epoch(self, epoch: int, attempt: int = 0) -> Tensor:
        """Return the indices of an epoch, (steps_per_epoch * global_batch,) int64; another order for each attempt."""
        length = self.steps_per_epoch * self.global_batch
        place = (epoch, attempt) if attempt else (epoch,)
        shuffled = torch.randperm(self.num_samples, generator=generator(self.seed, "order", *place))
        distinct = -(-length // self.repeats)
        return shuffled[:distinct].repeat_interleave(self.repeats)[:length]

    def group_at(self, indices: Tensor, position: int) -> tuple[int, ...]:
        """Return the images that share their size with the one at a position of an epoch; none where it is alone."""
        return ()


class Segment(NamedTuple):
    """Rows start .. stop-1 of a micro-batch: pairs of one mixing group, the first with the last and so on inwards."""

    group: int
    start: int
    stop: int


@dataclass(frozen=True)
class BatchLayout:
    """How a global batch is paired for Mixup and dealt to processes and accumulation steps.

    The positions 0 .. global_batch-1 are dealt round-robin to mixing groups of `group_size`, and in a group member i is
    paired with member size-1-i (timm's Mixup: `x.flip(0)`). One group draws one mixing ratio. With group_size 256 at a
    global batch of 1024 the groups are what DeiT's four processes of 256 images mix. A global batch of at most
    group_size is one group. The pairs, the first of every group, then the second and so on, are cut into
    world_size * accumulation equal runs: pairs are never split, so every split trains on the same mixed images. A run
    holds neighbouring positions, and so, with repeated augmentation, most views of its images, which are then read
    once.

    Where nothing is `mixed`, pairs are not needed: a batch that they do not divide, an odd one for instance, is cut
    into runs of neighbouring positions instead, and `group_size` plays no part. With a `group_size` of 1 every batch
    is.

    Raises UserError, with the nearest legal values, where the batch cannot be split so.
    """

    global_batch: int
    group_size: int
    world_size: int = 1
    accumulation: int = 1
    mixed: bool = True

    def __post_init__(self) -> None:
        _require_positive(
            global_batch=self.global_batch,
            group_size=self.group_size,
            world_size=self.world_size,
            accumulation=self.accumulation,
        )
        if self.mixed:
            self._require_pairs()
            return
        unit = self.world_size * self.accumulation
        if self.global_batch % unit:
            raise UserError(
                f"global batch {self.global_batch} cannot be split: it must be a multiple of {unit} (world size "
                f"{self.world_size} x accumulation {self.accumulation}); "
                f"nearest legal values: {_nearest(self.global_batch, lambda batch: batch % unit == 0)}"
            )

    def _require_pairs(self) -> None:
        if self.group_size % 2:
            raise UserError(
                f"mixing group size {self.group_size} is odd, and Mixup pairs the images of a group; "
                f"nearest legal values: {_nearest(self.group_size, lambda size: size % 2 == 0)}"
            )
        if not self._divides_in_pairs(self.global_batch):
            raise UserError(
                f"global batch {self.global_batch} cannot be split: it must be a multiple of "
                f"{2 * self.world_size * self.accumulation} (2, as "
                f"images are mixed in pairs, x world size {self.world_size} x accumulation {self.accumulation}) "
                f"and at most the mixing group size {self.group_size} or a multiple of it; "
                f"nearest legal values: {_nearest(self.global_batch, self._divides_in_pairs)}"
            )

    def _divides_in_pairs(self, batch: int) -> bool:
        whole_groups = self.group_size % 2 == 0 and (batch <= self.group_size or batch % self.group_size == 0)
        return whole_groups and batch % (2 * self.world_size * self.accumulation) == 0

    @property
    def num_groups(self) -> int:
        """Mixing groups in a global batch."""
        return max(1, self.global_batch // self.group_size)

    @property
    def micro_batch(self) -> int:
        """Images that one process handles at a time."""
        return self.global_batch // (self.world_size * self.accumulation)

    def segments(self, rank: int, micro: int) -> tuple[Segment, ...]:
        """Return the groups that micro-batch `micro` of process `rank` holds pairs of, and the rows of each."""
        found, start = [], 0
        for group, (low, high) in enumerate(self._members(rank, micro)):
            if high > low:
                found.append(Segment(group, start, start + 2 * (high - low)))
                start = found[-1].stop
        return tuple(found)

    def rows(self, rank: int, micro: int) -> Tensor:
        """Return the positions in the global batch of one micro-batch's images, (micro_batch,) int64."""
        if not self._divides_in_pairs(self.global_batch):
            assert not self.mixed
            first = (rank * self.accumulation + micro) * self.micro_batch
            return torch.arange(first, first + self.micro_batch)
        size = self.global_batch // self.num_groups
        positions = []
        for group, (low, high) in enumerate(self._members(rank, micro)):
            members = torch.cat([torch.arange(low, high), torch.arange(size - high, size - low)])
            positions.append(group + self.num_groups * members)
        return torch.cat(positions)

    def _members(self, rank: int, micro: int) -> list[tuple[int, int]]:
        """Return, for each group, the first member whose pair a micro-batch holds and the one after its last."""
        assert 0 <= rank < self.world_size, (rank, self.world_size)
        assert 0 <= micro < self.accumulation, (micro, self.accumulation)
        pairs = self.micro_batch // 2
        first = (rank * self.accumulation + micro) * pairs  # pair p is of member p // groups of group p % groups
        ends = (first, first + pairs)
        low, high = ([-((group - end) // self.num_groups) for group in range(self.num_groups)] for end in ends)
        return list(zip(low, high, strict=True))


def smallest_micro_batch(mixed: bool) -> int:
    """Return the least images that a micro-batch may have: a pair where images are mixed, else one."""
    return 2 if mixed else 1


def split_batch(global_batch: int, world_size: int, max_micro_batch: int, mixed: bool = True) -> int:
    """Return the fewest accumulation steps that cut a global batch into micro-batches of at most max_micro_batch.

    Micro-batches are even where images are `mixed`, since those are mixed in pairs.

    Raises UserError, with the nearest legal global batches, where the batch does not divide.
    """
    _require_positive(global_batch=global_batch, world_size=world_size)
    least = smallest_micro_batch(mixed)
    if max_micro_batch < least:
        raise UserError(f"largest micro-batch {max_micro_batch}: images are mixed in pairs, so it must be at least 2")
    unit = least * world_size
    if global_batch % unit:
        nearest = _nearest(global_batch, lambda batch: batch % unit == 0)
        why = ", as images are mixed in pairs" if mixed else ""
        raise UserError(
            f"global batch {global_batch} cannot be split over {world_size} process{'es' * (world_size > 1)}: it must "
            f"be a multiple of {unit}{why}; nearest legal values: {nearest}"
        )
    parts = global_batch // unit  # of one process: pairs, or images
    return next(n for n in range(1, parts + 1) if parts % n == 0 and least * parts // n <= max_micro_batch)


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """The micro-batches of one process, in order: `layout.accumulation` of them a step.

    Call `set_epoch` before each pass over the loader. Works with persistent workers: they get keys, and hold no order.
    """

    def __init__(self, order: GlobalOrder, layout: BatchLayout, rank: int) -> None:
        assert order.global_batch == layout.global_batch, (order.global_batch, layout.global_batch)
        self._order = order
        self._rows = [layout.rows(rank, micro) for micro in range(layout.accumulation)]
        self._epoch = 0
        self._start_step = 0
        self._attempt = 0

    def set_epoch(self, epoch: int, start_step: int = 0, attempt: int = 0) -> None:
        """Choose the epoch of the next pass, the step (global batch) at which it begins, and which of its orders."""
        assert 0 <= start_step <= self._order.steps_per_epoch, (start_step, self._order.steps_per_epoch)
        self._epoch, self._start_step, self._attempt = epoch, start_step, attempt

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self._micro_batches(self._order.epoch(self._epoch, self._attempt), self._epoch, self._start_step)

    def __len__(self) -> int:
        """Micro-batches left in the epoch."""
        return (self._order.steps_per_epoch - self._start_step) * len(self._rows)

    def _micro_batches(self, indices: Tensor, epoch: int, start_step: int) -> Iterator[list[SampleKey]]:
        for step in range(start_step, self._order.steps_per_epoch):
            for rows in self._rows:
                positions = step * self._order.global_batch + rows
                pairs = zip(indices[positions].tolist(), positions.tolist(), strict=True)
                yield [
                    SampleKey(index, epoch, position, self._order.group_at(indices, position))
                    for index, position in pairs
                ]


def evaluation_indices(num_samples: int, rank: int, world_size: int) -> range:
    """Return the share of one process in an evaluation: every image exactly once over all processes, none padded."""
    return range(rank, num_samples, world_size)


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name.replace('_', ' ')} {value} must be at least 1")


def _nearest(value: int, legal: Callable[[int], bool]) -> str:
    """Name the nearest legal numbers below and above `value`; some multiple of everything is legal, so it ends."""
    below = next((number for number in range(value - 1, 0, -1) if legal(number)), None)
    above = value + 1
    while not legal(above):
        above += 1
    return str(above) if below is None else f"{below} and {above}"
