"""Where the images of a folder came from: the record of ``udc fetch``, or DVC's record of an import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from udc_model.errors import UdcError
from udc_model.files import read_json

RECORD = ".udc-source.json"  # in the folder of the images; sources skip hidden files
_CHECKSUMS = ("etag", "checksum", "md5", "version_id")  # of the remote file or folder, as DVC names them


def read_source_record(path: Path) -> dict[str, Any] | None:
    """The record of what was fetched into ``data.path`` or a folder above it; None for data put there by hand.

    Returns
    -------
    Name, revision, URL, licence, number of images per split and SHA-256 of the source files of a data set that was
    fetched by name; name and revision (the remote's checksum) of an import of DVC, from its ``.dvc`` file.

    Raises
    ------
    UdcError
        A record is damaged.
    """
    for folder in (path, *path.parents):
        if (folder / RECORD).is_file():
            return read_json(folder / RECORD, "restore the folder with `dvc checkout`, or remove it and fetch it again")
        dvc_file = folder.with_name(f"{folder.name}.dvc") if folder.name else folder
        if dvc_file.is_file():
            return _import_record(dvc_file)
    return None


def _import_record(dvc_file: Path) -> dict[str, Any] | None:
    """Address and checksum of an import; None for what `dvc add` or `dvc import` (another repository) tracks."""
    try:
        stage = yaml.safe_load(dvc_file.read_text(encoding="utf-8"))
        dependency = (stage.get("deps") or [None])[0]
        if dependency is None or "repo" in dependency:
            return None
        revision = next((str(dependency[key]) for key in _CHECKSUMS if key in dependency), None)
        return {"name": str(dependency["path"]), "revision": revision}
    except (OSError, ValueError, yaml.YAMLError, AttributeError, LookupError, TypeError) as error:
        raise UdcError(f"{dvc_file}: cannot be read ({error!r}); restore it with git") from None
