"""TensorBoard: the numbers of `metrics.jsonl` as curves, by epoch and by step; pictures; the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from toe_train.runs.curves import BY_STEP, of_epoch, of_step, tag_of
from toe_train.runs.log import Record, RunLog


class TensorBoard(RunLog):
    """Scalars of an epoch over its number, which begins at 1 as on the terminal, and the loss over the steps of a run.

    The second kind has another axis, and so a run of its own below the first: what comes after the place at which a run
    goes on is dropped by axis.

    Args:
        folder: of the event files.
        epoch, step: where the run begins or goes on, from 0.
        groups: see `curves.groups_of`.
        text: the configuration.
        settings: of it, what is compared between runs.
        compared: name in the record of the score by which runs are.
    """

    def __init__(
        self,
        folder: Path,
        epoch: int,
        step: int,
        groups: Mapping[str, str],
        text: str,
        settings: Mapping[str, bool | float | str],
        compared: str,
    ) -> None:
        self._folder = folder
        self._groups = groups
        self._steps = 0  # of an epoch
        self._at = (epoch, step)
        self._by_step: SummaryWriter | None = None
        self._writer = SummaryWriter(str(folder), purge_step=epoch + 1)
        self._writer.add_text("configuration", "".join(f"    {line}\n" for line in text.splitlines()), 0)
        file = self._writer._get_file_writer()
        for summary in hparams(dict(settings), {tag_of(compared, groups): 0.0}):
            file.add_summary(summary)  # not `add_hparams`, which would make a run of its own

    def epoch_begins(self, epoch: int, stage: int, tokens: str, steps: int) -> None:
        self._steps = steps
        if self._by_step is None:
            first = self._at[0] * steps + self._at[1] + 1
            self._by_step = SummaryWriter(str(self._folder / BY_STEP), purge_step=first)

    def rewind(self, epoch: int, step: int) -> None:
        self.close()
        self._at = (epoch, step)
        self._by_step = None
        self._writer = SummaryWriter(str(self._folder), purge_step=epoch + 1)

    def step(self, record: Record) -> None:
        assert self._by_step is not None
        point = of_step(record, self._steps)
        for tag, value in point.values.items():
            self._by_step.add_scalar(tag, value, point.at)

    def epoch(self, record: Record) -> None:
        point = of_epoch(record, self._groups)
        for tag, value in point.values.items():
            self._writer.add_scalar(tag, value, point.at)
        self._flush()

    def picture(self, tag: str, picture: Tensor, epoch: int) -> None:
        self._writer.add_image(tag, picture, epoch + 1)

    def close(self) -> None:
        self._writer.close()
        if self._by_step is not None:
            self._by_step.close()

    def _flush(self) -> None:
        self._writer.flush()
        if self._by_step is not None:
            self._by_step.flush()
