"""The one exception that the command line shows without a traceback."""


class UserError(ValueError):
    """Something the user can put right: the message gives the value, the rule and the remedy.

    The commands print the message and end with exit code 2. Anything else that is raised is our own fault and keeps
    its traceback.
    """
