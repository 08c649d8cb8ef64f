"""The exceptions that the command line shows without a traceback. Anything else that is raised is our own fault."""


class Reported(Exception):
    """Base of them all.

    Attributes:
        shared: whether every process of the run raises it, so that one telling is enough.
    """

    shared = False


class UserError(Reported, ValueError):
    """Something the user can put right: the message gives the value, the rule and the remedy. Exit code 2."""


class RunFailed(Reported, RuntimeError):
    """A run that cannot go on (a loss that is not finite, say): the message tells what is left on disk. Exit code 3."""


class Interrupted(RunFailed):
    """A run that the same command takes up again: another process is gone, or it needs less memory. Exit code 4."""


class Preempted(Reported, RuntimeError):
    """A run that a signal asked to stop and that saved its place. Exit code 75, for a scheduler to start it again."""
