"""The one error that is the user's to mend."""


class QTargetError(Exception):
    """What was wrong, what is allowed and what to do. The command line prints it without a traceback and exits 2."""
