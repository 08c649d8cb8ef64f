"""The run folder: where a run's files lie, and what a run writes of its own origin."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

import numpy
import torch
from timm import __version__ as timm_version
from torchvision import __version__ as torchvision_version

from toe_train._version import __version__
from toe_train.errors import UserError, is_text

SET_ASIDE = re.compile(r"(.+)\.old-\d+")  # the name that `RunFolder.set_aside` gives, and the former one


class RunFolder:
    """Paths of a run's files under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()  # `.` has no name to rename
        self.config = self.root / "config.yaml"
        self.metrics = self.root / "metrics.jsonl"
        self.tensorboard = self.root / "tensorboard"
        self.trackers = self.root / "trackers"
        self.checkpoints = self.root / "checkpoints"
        self.skipped = self.root / "skipped_images.jsonl"
        self.micro_batch = self.root / "micro_batch"
        self.not_finite = self.root / "not_finite.jsonl"
        self.has_locks = True
        self._lock: TextIO | None = None

    @property
    def watch(self) -> str:
        """The command that shows its curves and pictures, under the folder's name."""
        place = str(self.tensorboard)
        named = not {":", ","} & set(place)  # which have a meaning there
        return f"tensorboard --logdir_spec {self.root.name}:{place}" if named else f"tensorboard --logdir {place}"

    def create(self) -> None:
        """Makes the folder.

        Raises:
            UserError: it cannot be made or written to, or its name is no text.
        """
        if not is_text(str(self.root)):
            raise UserError(
                f"run folder {self.root}: its path holds bytes that are no text, which TensorBoard does not take; "
                "choose another with --output DIR"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"run folder {self.root} cannot be written: {error.strerror}; choose another with --output DIR"
            ) from None

    def require_usable(self) -> None:
        """Refuses a folder that a run could not be written to, before anything is made.

        Raises:
            UserError: something else stands there, it cannot be written to, or another process trains in it.
        """
        there = next(path for path in (self.root, *self.root.parents) if os.path.lexists(path))
        fault = None
        if not there.is_dir():
            fault = f"{there} is a file" if there.is_file() else f"{there} is not a folder"
        elif not os.access(there, os.W_OK | os.X_OK):
            fault = f"there is no right to write to {there}"
        if fault is not None:
            raise UserError(f"run folder {self.root} cannot be written: {fault}; choose another with --output DIR")
        is_ours = self._lock is not None
        self.lock()
        if not is_ours:
            self._unlock()

    def lock(self) -> None:
        """Keeps other processes from training in the folder, if it is there, for as long as this one lives.

        Raises:
            UserError: another one trains there.
        """
        if self._lock is not None or not self.root.is_dir():
            return
        file = (self.root / ".lock").open("a", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: its loader processes outlive it
        except (BlockingIOError, PermissionError):
            file.close()
            raise UserError(
                f"another process trains in {self.root}; wait for its end, or give another --output"
            ) from None
        except OSError:  # a file system without locks; who opens the folder says so
            self.has_locks = False
        self._lock = file

    def require_idle(self) -> None:
        """Refuses a folder in which a process trains, and keeps others from beginning to, as `lock` does.

        Raises:
            UserError: one trains there.
        """
        try:
            self.lock()
        except UserError:
            raise UserError(f"a process trains in {self.root}; wait for its end, or end it, and try again") from None

    def holds_a_run(self) -> bool:
        """Whether there are files of an earlier run."""
        return self.metrics.exists() or os.path.lexists(self.checkpoints)

    def require_checkpoints(self) -> None:
        """Refuses a link to a folder of checkpoints on a disk that is not there, beside which a run would begin anew.

        Raises:
            UserError: it is one.
        """
        if self.checkpoints.is_symlink() and not self.checkpoints.exists():
            raise UserError(
                f"{self.checkpoints} leads to {self.checkpoints.readlink()}, which is not there: mount that disk, or "
                "begin anew with --resume never"
            )

    def set_aside(self) -> Path | None:
        """Renames a folder with an earlier run's files, so that a new run loses nothing; its new path."""
        if not self.holds_a_run():
            return None
        number = 1
        while (aside := self.root.with_name(f"{self.root.name}.old-{number}")).exists():
            number += 1
        self.root.rename(aside)
        self._unlock()
        return aside

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write_config(self, text: str, started: dict[str, str]) -> None:
        """Writes the resolved configuration, which `toe-train --config` reads again, under its origin as comments.

        Args:
            text: of the configuration, in YAML.
            started: see `provenance`.
        """
        header = "".join(_comment(f"{key}: {value}") for key, value in started.items())
        # A kill while it is written leaves the former one, from which this run may have been started.
        new = self.config.with_suffix(".new")
        new.write_text(header + text, encoding="utf-8", errors="backslashreplace")
        new.replace(self.config)


def _comment(text: str) -> str:
    """YAML comments that say `text`, a line each."""
    return "".join(f"# {line}\n" for line in text.splitlines())


def provenance(arguments: list[str], program: str = "toe-train") -> dict[str, str]:
    """Command line, time, commit, versions and device of this process."""
    return {
        "command": shlex.join([program, *arguments]),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def versions() -> dict[str, str]:
    """Versions of this program and of what it computes with."""
    return {
        "toe-train": __version__,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),  # a subclass of str, which a checkpoint could not be read with
        "torchvision": torchvision_version,
        "timm": timm_version,
        "numpy": numpy.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Commit of the source tree that runs, "+changes" where it differs, "unknown" outside a git checkout."""
    here = Path(__file__).resolve().parents[2]
    try:
        if not (here / ".git").exists():
            return "unknown"
        commit, status = (
            subprocess.run(
                ["git", "-C", str(here), *args], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            for args in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.strip() + ("+changes" if status.strip() else "")
