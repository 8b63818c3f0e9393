"""The exception whose message is written for the person at the terminal."""


class UdcError(Exception):
    """An error that the user can fix: the message names the file, line or parameter, what is wrong, and what to do.

    Command-line entry points print the message without a traceback and exit with status 1.
    """
