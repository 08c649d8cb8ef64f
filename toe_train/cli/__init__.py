"""The commands. How torch's threads wait is chosen here, before one of them imports torch."""

from toe_train.cli.threads import wait_briefly

wait_briefly()
