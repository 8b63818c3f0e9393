"""Checks parameters that are given to DVC before DVC changes anything."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from udc_model.config import Params, load_params
from udc_model.errors import UdcError


def check_settings(settings: Sequence[str], params_file: Path = Path("params.yaml")) -> Params:
    """The parameters that ``dvc exp run -S`` makes of a file of parameters, which is not changed.

    Parameters
    ----------
    settings : ``full.name=value`` each, in the grammar of DVC's ``-S``.

    Raises
    ------
    UdcError
        The file is missing, DVC cannot read a setting, or a parameter is not valid.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    if not params_file.is_file():
        return load_params(params_file)  # raises the error
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / params_file.name
        shutil.copyfile(params_file, copy)
        for setting in settings:
            try:
                apply_overrides(copy, [setting])
            except (DvcException, ValueError, TypeError) as error:
                reason = str(error.__cause__ or error).splitlines()[0]
                raise UdcError(
                    f"{setting}: DVC cannot read this parameter: {reason}; a text with other characters than letters, "
                    "digits, spaces and /-_.*+%@ needs quotes inside of the shell's: \"name='text'\""
                ) from None
        try:
            return load_params(copy)
        except UdcError as error:
            load_params(params_file, settings)  # its message has the characters of the command line
            raise UdcError(str(error).replace(str(copy), str(params_file))) from None
