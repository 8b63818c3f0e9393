"""Messages for the person at the terminal: the exception that carries them, and what they never contain."""

from __future__ import annotations

import re

INTERRUPTED = 130  # exit status after Ctrl-C: 128 and the number of SIGINT
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
# ``//user:`` and all before the last @, unless a port is behind the colon; or ``//user@``
_CREDENTIALS = re.compile(r"(?<!/)//(?:[^:/\s]*:(?!\d+(?:[/?#\s]|$))\S*@|[^/\s]*@)")


class UdcError(Exception):
    """An error that the user can fix: the message names the file, line or parameter, what is wrong, and what to do.

    Command-line entry points print the message without a traceback and exit with status 1.
    """


class TemporaryError(UdcError):
    """An error that the same command, started again, probably does not meet; the exit status is `TRY_AGAIN`."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after which a command ended in order; the message says what is stored and how to resume.

    Without a message another process has printed it. Command-line entry points exit with status 130.
    """


def without_credentials(text: str) -> str:
    """A text without the ``user:password@`` of its addresses; the password may contain ``@`` and ``/``."""
    return _CREDENTIALS.sub("//", text)


def one_line(error: BaseException) -> str:
    """The message of an error in one line without credentials; the name of its class if it has none."""
    return without_credentials(" ".join(str(error).split())) or type(error).__name__
