"""Finds the file that a table means: paths in another Unicode form, names without folder, names without suffix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from udc_model.data.sources.records import composed, join_for_message, printable
from udc_model.errors import UdcError


def is_file_below(folder: Path, path: str) -> bool:
    """Whether a folder has a file at a relative path; no name can be one that the file system does not allow."""
    try:
        return (folder / path).is_file()
    except (OSError, ValueError):  # longer than the file system allows; a null character
        return False


class ImageFinder:
    """Finds images below a folder.

    Parameters
    ----------
    root : the folder.
    images : paths of the images in it, relative to ``root``.
    pattern : ``data.path_pattern``, in which ``{}`` stands for the cell of the table.
    """

    def __init__(self, root: Path, images: Sequence[str], pattern: str | None) -> None:
        self._root = root
        self._images = images
        self._pattern = pattern or "{}"

    def find(self, cell: str, folder: PurePosixPath) -> tuple[str, bool]:
        """Return the path of an image relative to the root, and whether the file exists.

        Parameters
        ----------
        cell : what the table contains.
        folder : folder of the table, relative to the root.

        Raises
        ------
        UdcError
            The path leads out of the root, or several files have the name.
        """
        text = self._pattern.replace("{}", cell)
        if reason := unsafe_path(text):
            raise UdcError(reason)
        path = PurePosixPath(text).as_posix()
        if "\\" in text and not self._is_file(path):
            path = PureWindowsPath(text).as_posix()
        beside = (folder / path).as_posix()
        for candidate in (path, beside):
            if candidate in self._known or self._is_file(candidate):
                return candidate, True
        if found := self._by_form.get(composed(path)) or self._by_form.get(composed(beside)):
            return found[0], True
        if "/" in path:
            return path, False
        for index in (self._by_name, self._by_stem):
            matches = index.get(composed(path), [])
            if len(matches) > 1:
                raise UdcError(
                    f"{printable(path)} is the name of {len(matches)} files ({join_for_message(matches[:3])}); "
                    "give the folder in the table or in data.path_pattern"
                )
            if matches:
                return matches[0], True
        return path, False

    def _is_file(self, path: str) -> bool:
        return is_file_below(self._root, path)

    def suggestion(self, path: str) -> str:
        """`` (did you mean …?)`` for a missing path that another file has in other letters, else an empty text."""
        matches = self._by_folded.get(composed(path).casefold(), [])
        return f" (did you mean {printable(matches[0])}?)" if matches else ""

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self._images)

    @cached_property
    def _by_form(self) -> dict[str, list[str]]:
        return self._index(composed)

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return self._index(lambda path: composed(PurePosixPath(path).name))

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return self._index(lambda path: composed(PurePosixPath(path).stem))

    @cached_property
    def _by_folded(self) -> dict[str, list[str]]:
        return self._index(lambda path: composed(path).casefold())

    def _index(self, key: Callable[[str], str]) -> dict[str, list[str]]:
        index = defaultdict(list)
        for path in self._images:
            index[key(path)].append(path)
        return dict(index)


def unsafe_path(path: str) -> str | None:
    """Return why a path may lead out of the data folder, or None.

    Symbolic links are allowed: they belong to the owner of the folder, such as DVC.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or PureWindowsPath(path).drive or path.startswith("\\") or "\0" in path:
        return "is an absolute path; paths must be relative to data.path"
    if ".." in pure.parts or ".." in PureWindowsPath(path).parts:
        return "leaves the data folder (contains ..)"
    return None
