"""Messages for the person at the terminal: the exception that carries them, and what they never contain."""

from __future__ import annotations

import re

INTERRUPTED = 130  # exit status after Ctrl-C: 128 and the number of SIGINT


class UdcError(Exception):
    """An error that the user can fix: the message names the file, line or parameter, what is wrong, and what to do.

    Command-line entry points print the message without a traceback and exit with status 1.
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after which a command ended in order; the message says what is stored and how to resume.

    Without a message another process has printed it. Command-line entry points exit with status 130.
    """


def without_credentials(text: str) -> str:
    """A text without the ``user:password@`` of its addresses.

    What is before the last ``@`` of an address goes, since a password may contain any character. An address of a file
    (``file:///``, ``sqlite:///``) has none.
    """
    return re.sub(r"(?<!/)//(?!/)\S*@", "//", text)
