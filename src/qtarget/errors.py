"""The one error that is the user's to mend."""

from __future__ import annotations

import os

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Set in the environment, errors are raised with their tracebacks, by Hydra and by us."""
SET_FOR_HYDRA = "QTARGET_SET_HYDRA_FULL_ERROR"
"""Set in the environment, it was us who set that one, so that Hydra raises: processes that jobs start inherit both."""


def with_tracebacks() -> bool:
    """Whether the user wants errors with their tracebacks in place of a line."""
    return bool(os.environ.get(FULL_ERROR)) and SET_FOR_HYDRA not in os.environ


class QTargetError(Exception):
    """What was wrong, what is allowed and what to do. The command line prints it without a traceback and exits 2."""
