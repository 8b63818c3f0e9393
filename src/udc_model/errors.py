"""Exceptions that carry a message for the user."""


class UdcError(Exception):
    """An error that the user can fix.

    The message names the file, line or parameter, what is wrong, and what to do. Command-line entry points print it
    without a traceback and exit with status 1.
    """


class PrunedError(UdcError):
    """Ends a training run early because the hyperparameter search pruned its trial."""
