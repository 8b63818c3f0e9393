"""Checks parameters that are given to DVC before DVC changes anything."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udc_model.config import Params, full_name, load_params, mapping_of
from udc_model.errors import UdcError
from udc_model.experiments.values import flat_values

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


def check_settings(settings: Sequence[str], params_file: Path = Path("params.yaml")) -> Params:
    """The parameters of `read_with_settings`."""
    return read_with_settings(settings, params_file)[0]


def read_with_settings(settings: Sequence[str], params_file: Path) -> tuple[Params, dict[str, Any]]:
    """The parameters that ``dvc exp run -S`` makes of a file of parameters, which is not changed.

    Parameters
    ----------
    settings : ``full.name=value`` each, in the grammar of DVC's ``-S``.

    Returns
    -------
    The validated parameters, and the values by full name as DVC would write them.

    Raises
    ------
    UdcError
        The file is missing, DVC cannot read a setting, or a parameter is not valid.
    """
    if not params_file.is_file():
        load_params(params_file)  # raises the error
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / params_file.name
        shutil.copyfile(params_file, copy)
        for setting in settings:
            _apply(setting, copy, params_file)
        try:
            return load_params(copy), flat_values(copy.read_text(encoding="utf-8"))
        except UdcError as error:
            message = str(error).replace(str(copy), str(params_file))
            try:
                load_params(params_file, settings)
            except UdcError as exact:  # with the characters of the command line
                if str(exact).startswith(f"{params_file} is not valid:"):
                    message = str(exact)
            raise UdcError(message) from None


def combinations(settings: Sequence[str]) -> list[list[str]]:
    """The settings of each experiment that ``dvc exp run --queue`` makes of settings with several values.

    Raises
    ------
    UdcError
        DVC cannot read a setting.
    """
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps

    for setting in settings:
        _parse(setting)
    try:
        return [list(sweep["params"]) for sweep in get_hydra_sweeps({"params": list(settings)})]
    except DvcException as error:
        raise UdcError(f"{', '.join(settings)}: {error}") from None


def _apply(setting: str, copy: Path, params_file: Path) -> None:
    """Write a setting into the copy of a file of parameters, as DVC does; :class:`UdcError` if DVC cannot read it."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    override = _parse(setting)
    if override.is_sweep_override():
        command = shlex.join(["udc", "run", "--queue", "-S", setting])
        raise UdcError(f"{setting}: has several values; `{command}` queues an experiment for each")
    try:
        apply_overrides(copy, [setting])
    except (DvcException, ValueError, TypeError) as error:
        load_params(params_file)  # its message, if the file is the reason
        name = override.get_key_element()
        reason = str(error.__cause__ or error).splitlines()[0]
        raise UdcError(f"{name}: DVC cannot set it in {params_file}, which may have no such parameter ({reason})"
                       f"{_advice(name)}") from None  # fmt: skip


def _advice(name: str) -> str:
    """What to do about a parameter that DVC cannot set: it has another name, or the file lacks it or its key."""
    if (mapping := mapping_of(name)) is not None:
        return f"; write {mapping}={{…}} to change a key that it has, or +{name}=… to add one"
    try:
        full_name(name)
    except UdcError as error:
        _, separator, similar = str(error).partition("; ")
        return separator + similar
    return "; `udc params --write` writes all parameters into it"


def _parse(setting: str) -> Override:
    from dvc.utils.hydra import to_hydra_overrides
    from hydra.errors import HydraException

    try:
        override: Override = to_hydra_overrides([setting])[0]
    except HydraException:
        raise UdcError(f"{setting}: is not name=value in the form that DVC reads; a text with other characters than "
                       "letters, digits, spaces and /-_.*+%@ needs quotes inside of the shell's, as "
                       "\"name='text'\"") from None  # fmt: skip
    return override
