"""The exception whose message is written for the person at the terminal, and texts in such messages."""


class UdcError(Exception):
    """An error that the user can fix: the message names the file, line or parameter, what is wrong, and what to do.

    Command-line entry points print the message without a traceback and exit with status 1.
    """


def printable(name: str) -> str:
    """A name for one line of a terminal: characters that cannot be printed are replaced by ``?``."""
    return "".join(character if character.isprintable() else "?" for character in name)
