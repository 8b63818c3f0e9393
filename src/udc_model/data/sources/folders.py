"""Finds splits and classes in the folders that contain the images.

The rules, in this order, for the first folder that has more than one entry (a single folder in a folder is a wrapper,
also beside folders of other files, as ``images`` beside ``annotations``):

1. All folders are named after splits, one of them ``train``: splits, with class folders in them. If the same class
   folders are in them, a word of the names suffices, as in ``training_set`` and ``test_set``.
2. All folders of all classes are named after splits: classes, with split folders in them.
3. Otherwise each folder is a class. Folders inside belong to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from udc_model.data.sources.labels import Labels
from udc_model.data.sources.listing import Listing
from udc_model.data.sources.records import (
    ImageRecord,
    ImageSource,
    LeftOut,
    join_for_message,
    printable,
    split_in_words,
    split_of_name,
    words_of,
)
from udc_model.data.sources.subgroups import Division
from udc_model.errors import UdcError

_OUTSIDE = "outside the class folders"
_LONGEST_TREE = 20  # lines
_IF_CLASSES = "; if these folders are classes, list them all in data.classes"


@dataclass(frozen=True)
class FolderLayout:
    """How classes and splits are arranged.

    Attributes
    ----------
    base : folder of the first level, relative to the source's folder.
    levels : what the folders of the first levels name, as ``("split", "class")``.
    """

    base: PurePosixPath
    levels: tuple[str, ...]

    def describe(self) -> str:
        """One line, as ``split folders with class folders in them``."""
        inside = f" in {printable(self.base.as_posix())}/" if self.base.parts else ""
        names = {"split": "split folders", "class": "class folders"}
        return " with ".join(names[level] for level in self.levels) + (" in them" * (len(self.levels) - 1)) + inside


def folder_source(
    root: Path, listing: Listing, labels: Labels, classes: Sequence[str] | None,
    group_of: Callable[[str], str | None], divisions: Sequence[Division] = (),
) -> ImageSource:  # fmt: skip
    """The images of class folders, or of split folders with class folders in them.

    Parameters
    ----------
    listing : contents of ``root``.
    labels : converts the names of folders to classes.
    classes : classes that must be there, or None.
    group_of : from a path to its group; raises :class:`UdcError` for an image that has none.
    divisions : into subgroups, by patterns on the path.

    Raises
    ------
    UdcError
        No rule fits, a class folder is empty, or an image belongs to no group; the message shows the folders.
    """
    layout = find_layout(root, listing, labels, classes)
    source = ImageSource(root, layout.describe(), [], [], list(listing.rejected), list(listing.left_out))
    depth = len(layout.base.parts)
    unmatched = []
    for path in listing.images:
        parts = path.split("/")
        names = dict(zip(layout.levels, parts[depth:-1], strict=False))
        if tuple(parts[:depth]) != layout.base.parts or len(names) < len(layout.levels):
            source.left_out.append(LeftOut(path, _OUTSIDE))
            continue
        try:
            split = split_in_words(names["split"]) if "split" in names else None
            subgroups = tuple(each.of_path(path) for each in divisions)
            source.records.append(ImageRecord(path, labels.class_of(names["class"]), split, group_of(path), subgroups))
        except UdcError as error:
            unmatched.append(str(error))
    if unmatched:
        raise UdcError(f"{len(unmatched)} image(s) belong to no group or subgroup:\n  "
                       + join_for_message(unmatched, "\n  "))  # fmt: skip
    source.classes = sorted({record.label for record in source.records})
    _check_classes(root, listing, source, layout, classes)
    source.notes += _subfolder_note(source, depth + len(layout.levels))
    return source


def find_layout(root: Path, listing: Listing, labels: Labels, classes: Sequence[str] | None) -> FolderLayout:
    """Apply the rules of this module to a listing.

    Raises
    ------
    UdcError
        There are no folders with images, or their names fit no rule; the message shows the folders.
    """
    base = PurePosixPath()
    counts = _images_by_folder(listing, base)
    while (only := _wrapper(listing, base, counts)) is not None:
        inside = _images_by_folder(listing, base / only)
        if not any(inside.values()):
            break
        base, counts = base / only, inside
    with_images = [name for name, count in counts.items() if count]
    if not with_images:
        raise _unclear(root, listing, "has images but no class folders" if listing.images else "contains no images")
    is_class_list = classes is not None and {labels.merged(name) for name in counts} == set(classes)
    splits = {name: split_of_name(name) for name in with_images}
    named = sorted(name for name, split in splits.items() if split)
    if named and not is_class_list and (len(named) == len(with_images) or len(set(splits.values()) - {None}) > 1):
        _check_split_folders(root, listing, base, splits)
        return FolderLayout(base, ("split", "class"))
    inner = _folders_in(listing, base, set(with_images))
    if inner and all(split_of_name(name) for name in inner) and not _loose(listing, base, with_images):
        return FolderLayout(base, ("class", "split"))
    if not is_class_list and _have_split_words(root, listing, base, with_images):
        return FolderLayout(base, ("split", "class"))
    return FolderLayout(base, ("class",))


def _wrapper(listing: Listing, base: PurePosixPath, counts: Mapping[str, int]) -> str | None:
    """The only folder with images, unless it is a split or the others are empty; ``annotations`` may be beside it."""
    with_images = [name for name, count in counts.items() if count]
    if len(with_images) != 1 or split_of_name(with_images[0]) is not None:
        return None
    if len(counts) > 1:
        others = [PurePosixPath(path) for path in listing.others()]
        with_files = {path.parts[len(base.parts)] for path in others if base in path.parents and path.parent != base}
        if not with_files.issuperset(counts.keys() - {*with_images}):
            return None
    return with_images[0]


def _have_split_words(root: Path, listing: Listing, base: PurePosixPath, names: Sequence[str]) -> bool:
    """Whether folders are splits by words of their names: those of ``train`` and of another split share class folders.

    Folders of classes, as ``steam_train`` and ``test_tube``, share no folders with each other that others do not have.

    Raises
    ------
    UdcError
        Their names differ in the split only, but they share no class folders; or not all of them can be splits.
    """
    splits = {name: split_in_words(name) for name in names}
    train = [name for name, split in splits.items() if split == "train"]
    later = [name for name, split in splits.items() if split not in (None, "train")]
    others = [name for name, split in splits.items() if split is None]
    if not train or not later:
        return False
    inner = [{name.casefold() for name in _folders_in(listing, base, part)} for part in (train, later, others)]
    if inner[0] & inner[1] - inner[2]:
        _check_split_folders(root, listing, base, splits)
        return True
    rest = [{_without_split(name) for name in part} for part in (train, later)]
    if rest[0] & rest[1] or ("" in rest[0] | rest[1] and not others):
        raise _unclear(root, listing, f"{join_for_message(sorted(train + later))} seem to be splits, but do not have "
                       f"the same class folders in them{_IF_CLASSES}")  # fmt: skip
    return False


def _without_split(name: str) -> str:
    """The words of a name that are no splits, as ``images`` of ``train_images``."""
    return " ".join(word for word in words_of(name.casefold()) if not split_of_name(word))


def _check_split_folders(root: Path, listing: Listing, base: PurePosixPath, splits: Mapping[str, str | None]) -> None:
    """Raise an error unless the folders can only be splits."""
    others = [name for name, split in splits.items() if split is None]
    if others:
        raise _unclear(root, listing, f"some folders are named after splits, others are not "
                       f"({join_for_message(others)}): move those out of data.path{_IF_CLASSES}")  # fmt: skip
    twice = [split for split, count in Counter(splits.values()).items() if count > 1]
    if twice:
        raise _unclear(root, listing, f"has several folders for the split {join_for_message([str(s) for s in twice])}"
                       + _IF_CLASSES)  # fmt: skip
    if "train" not in splits.values():
        raise _unclear(root, listing, f"has no folder train beside {join_for_message(sorted(splits))}{_IF_CLASSES}")
    flat = [name for name in splits if not any(_images_by_folder(listing, base / name).values())]
    if flat:
        advice = _IF_CLASSES if len(flat) == len(splits) else (
            ", so the images there have no class: move them out of data.path (udc predict decides images without one)"
        )  # fmt: skip
        raise _unclear(root, listing, f"has no class folders in {join_for_message(flat)}{advice}")


def _images_by_folder(listing: Listing, base: PurePosixPath) -> dict[str, int]:
    """Number of images below each folder in ``base``."""
    depth, prefix = len(base.parts), f"{base.as_posix()}/" if base.parts else ""
    counts = {
        PurePosixPath(folder).name: 0
        for folder in listing.folders
        if folder.startswith(prefix) and folder.count("/") == depth
    }
    for path in listing.images:
        if path.startswith(prefix) and path.count("/") > depth:
            counts[path.split("/")[depth]] += 1
    return counts


def _folders_in(listing: Listing, base: PurePosixPath, folders: Collection[str]) -> set[str]:
    """Names of the folders in some of the folders in ``base``."""
    depth, names = len(base.parts), set()
    for folder in listing.folders:
        parts = folder.split("/")
        if len(parts) == depth + 2 and tuple(parts[:depth]) == base.parts and parts[depth] in folders:
            names.add(parts[-1])
    return names


def _loose(listing: Listing, base: PurePosixPath, folders: Sequence[str]) -> list[str]:
    """Images directly in one of the folders."""
    parents = {base / folder for folder in folders}
    return [path for path in listing.images if PurePosixPath(path).parent in parents]


def _check_classes(
    root: Path, listing: Listing, source: ImageSource, layout: FolderLayout, classes: Sequence[str] | None
) -> None:
    if classes is not None and set(classes) != set(source.classes):
        raise UdcError(f"data.classes: {sorted(classes)} are not the class folders of {root}: {source.classes}")
    if layout.levels[0] == "class":
        empty = [name for name, count in _images_by_folder(listing, layout.base).items() if not count]
        if empty:
            raise _unclear(root, listing, f"no images in the class folder {join_for_message(empty)}; "
                           "add images or remove it")  # fmt: skip
    if len(source.classes) < 2:
        raise _unclear(root, listing, f"has {len(source.classes)} class(es) ({join_for_message(source.classes)}); "
                       "at least 2 are needed")  # fmt: skip


def _subfolder_note(source: ImageSource, depth: int) -> list[str]:
    """A line about folders inside class folders, whose names have no meaning."""
    deeper = {r.path.split("/")[depth] for r in source.records if r.path.count("/") > depth}
    if not deeper:
        return []
    return [f"{len(deeper)} folder(s) inside class folders belong to the class: {join_for_message(sorted(deeper)[:5])}"]


def _unclear(root: Path, listing: Listing, problem: str) -> UdcError:
    unusable = "".join(f"  {printable(item.path)}: {item.reason}\n" for item in listing.rejected[:_LONGEST_TREE])
    return UdcError(f"{printable(str(root))}: {problem}\nFound:\n{folder_tree(root, listing)}\n{unusable}"
                    "data.path needs one folder for each class, or train/, val/, test/ with class folders, "
                    "or a table with the columns image and label (udc inspect shows what is recognised).")  # fmt: skip


def folder_tree(root: Path, listing: Listing) -> str:
    """The folders with their number of images, two levels deep, for a message."""
    counts: Counter[str] = Counter()
    for path in listing.images:
        parts = path.split("/")
        counts.update("/".join(parts[:level]) for level in range(min(len(parts), 3)))
    lines = [f"  {printable(root.name or str(root))}/ {counts['']:,} image(s)"]
    for folder in listing.folders:
        if (level := folder.count("/")) < 2:
            name = printable(PurePosixPath(folder).name)
            lines.append(f"  {'  ' * (level + 1)}{name}/ {counts[folder]:,} image(s)")
    more = [f"    … and {len(lines) - _LONGEST_TREE:,} more folders"] if len(lines) > _LONGEST_TREE else []
    return "\n".join(lines[:_LONGEST_TREE] + more)
