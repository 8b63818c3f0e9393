"""Messages for the person at the terminal: the exception that carries them, and what they never contain."""

from __future__ import annotations

import re


class UdcError(Exception):
    """An error that the user can fix: the message names the file, line or parameter, what is wrong, and what to do.

    Command-line entry points print the message without a traceback and exit with status 1.
    """


def without_credentials(text: str) -> str:
    """A text without the ``user:password@`` of its addresses."""
    return re.sub(r"//[^/@\s]*@", "//", text)
