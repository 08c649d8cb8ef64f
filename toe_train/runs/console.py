"""What a person sees of a run on the terminal: a bar while an epoch runs, and a line that fits when it is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from toe_train.runs.log import Record, RunLog

COLUMNS = 110  # of an epoch's line, at most
LEAST_WAIT = 5  # percent of an epoch's time from which the line tells of it


class Console(RunLog):
    """A progress bar while an epoch runs (on a terminal only) and one line when it is done.

    The line has at most `COLUMNS` columns: what does not fit, the last scores first, stands in `metrics.jsonl` alone.

    Args:
        epochs: of the whole run.
        shown: the scores in an epoch's line, the most important first: words, and the name in the record. One whose
            name ends in `_full` is shown where it differs from the one without that ending.
        chosen: name in the record of the score that tells which epoch is the best.
        best: the best epoch before this start, from 0, None where that is not known, and its score; None where there
            is none.
    """

    def __init__(
        self,
        epochs: int,
        shown: Sequence[tuple[str, str]],
        chosen: str,
        best: tuple[int | None, float] | None = None,
    ) -> None:
        self.epochs = epochs
        self.shown = shown
        self.chosen = chosen
        self.best = best
        self.bar: tqdm[Any] | None = None
        self._left_out = 0

    def start(self, record: Record) -> None:
        before = ""
        if self.best is not None:
            epoch, score = self.best
            before = f": until now {score:.2f}{'' if epoch is None else f' of epoch {epoch + 1}'}"
        self.note(f"* marks the best epoch so far by {self.chosen}, which checkpoints/best.pt holds{before}")

    def epoch_begins(self, epoch: int, stage: int, tokens: str, steps: int) -> None:
        self.bar = tqdm(
            total=steps,
            desc=f"epoch {epoch + 1}/{self.epochs} stage {stage} tokens {tokens}",
            unit="step",
            leave=False,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def rewind(self, epoch: int, step: int) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, record: Record) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"loss {_loss(record)}, {record['images_per_second']:.0f} images/s, "
                f"data wait {100 * record['data_wait_share']:.0f} %, run ends in {_duration(record['eta_seconds'])}",
                refresh=False,
            )

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def epoch(self, record: Record) -> None:
        if self.bar is not None:
            self.bar.close()
        self.note(self._line(record))
        left_out = record.get("skipped_images", 0)
        if left_out > self._left_out:
            self.note(
                f"{left_out} images that cannot be read are left out so far: skipped_images.jsonl in the run folder "
                "lists them"
            )
        self._left_out = left_out

    def note(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def _line(self, record: Record) -> str:
        """The line of an epoch, the best so far with a star behind the score that says so."""
        names = [name for _, name in self.shown if _is_shown(record, name)]
        chosen = self.chosen if self.chosen in names else self.chosen.removesuffix("_full")
        star = "*" if record.get("is_best") else " "
        words = {name: text for text, name in self.shown}
        scores = {name: f"{words[name]} {record[name]:5.2f}{star if name == chosen else ''}" for name in names}
        wait = 100 * record["data_wait_seconds"] / record["train_seconds"]
        left_out = record.get("skipped_images", 0)
        begin = [
            f"epoch {record['epoch'] + 1:>{len(str(self.epochs))}}/{self.epochs}",
            f"stage {record['stage']}",
            f"tokens {record['tokens_kept']:>3}",
            f"lr {record['lr']:.2e}",
            f"loss {_loss(record)}",
        ]
        end = [f"{record['images_per_second']:.0f} img/s"]
        end += [f"wait {wait:.0f} %"] if wait >= LEAST_WAIT else []
        end += [f"left out {left_out}"] if left_out else []
        less_important = [name for name in reversed(names) if name != chosen]
        while len(line := "  ".join([*begin, *scores.values(), *end])) > COLUMNS:
            if less_important:
                del scores[less_important.pop(0)]
            elif len(end) > bool(left_out):
                del end[0]
            else:
                break
        return line.rstrip()


def _is_shown(record: Record, name: str) -> bool:
    """Whether there is such a score that tells more than the one of the plain name."""
    value, plain = record.get(name), name.removesuffix("_full")
    return value is not None and (plain == name or value != record.get(plain))


def _loss(record: Record) -> str:
    return "not finite" if record["train_loss"] is None else f"{record['train_loss']:.3f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
