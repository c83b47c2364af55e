"""The one error that is the user's to mend."""

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Set in the environment, errors are raised with their tracebacks instead of being told in a line."""


class QTargetError(Exception):
    """What was wrong, what is allowed and what to do. The command line prints it without a traceback and exits 2."""
