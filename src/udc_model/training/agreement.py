"""What the processes of a training run on several machines check together before its first step.

Machines have folders of their own. A machine with other parameters, data or code would take part in the training run
without an error, and its result would be that of no parameters at all.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from udc_model.errors import UdcError
from udc_model.training.checkpoints import first_difference, newest_first
from udc_model.training.distribution import Ranks

Result = TypeVar("Result")

_MAX_NAMED = 10  # processes in a message


def completed_by_all(ranks: Ranks, action: Callable[[], Result]) -> Result:
    """The result of an action, which may fail on one machine only, such as reading a file.

    All processes must call this. The others need not wait for one that has ended.

    Raises
    ------
    UdcError
        The action failed in a process: the same error in all of them. It names the machine, unless all failed equally.
    """
    message, results = "", []
    try:
        results.append(action())
    except UdcError as error:
        if ranks.world == 1:
            raise
        message = str(error)
    failed = [(place, text) for place, text in _of_all(ranks, message) if text]
    if len(failed) == ranks.world and len({text for _, text in failed}) == 1:
        raise UdcError(message)
    if failed:
        raise UdcError("; ".join(f"{place}: {text}" for place, text in failed[:_MAX_NAMED]))
    return results[0]


def check_agreement(ranks: Ranks, facts: Mapping[str, Any]) -> None:
    """Check that ``facts``, JSON values by name, are equal in all processes, which must all call this.

    Raises
    ------
    UdcError
        They are not: the same error in all processes. It names the machines that differ from the first process, and
        the first value that differs.
    """
    if ranks.world == 1:
        return
    (first, expected), *others = _of_all(ranks, facts)
    differing = [(place, difference) for place, values in others if (difference := first_difference(values, expected))]
    if not differing:
        return
    places = ", ".join(place for place, _ in differing[:_MAX_NAMED])
    raise UdcError(f"{places}: differs from {first}: {differing[0][1]}; give all machines the same parameters, "
                   "prepared data and installed version")  # fmt: skip


def check_first_has_checkpoints(ranks: Ranks, folder: Path) -> None:
    """Check that no process but the first has a folder with checkpoints of this training run; all must call this.

    Parameters
    ----------
    folder : of the first process; others look for the folder of this name beside their own checkpoints.

    Raises
    ------
    UdcError
        Another process has them, and the first has none: it would begin again.
    """
    if ranks.world == 1:
        return
    name = (ranks.from_first(folder.name.encode()) or b"").decode()
    (_, has_first), *others = _of_all(ranks, bool(newest_first(folder.with_name(name))))
    if not has_first and (places := [place for place, has_some in others if has_some]):
        raise UdcError(
            f"{places[0]}: has the checkpoints of this training run, and the first process has none; make it the first "
            "machine (torchrun --node-rank 0), or delete its .udc/checkpoints"
        )


def _of_all(ranks: Ranks, value: Any) -> list[tuple[str, Any]]:
    """The place and the JSON value of each process, in every process."""
    here = f"process {ranks.rank} ({socket.gethostname()}:{Path.cwd()})"
    return [(place, each) for place, each in map(json.loads, ranks.of_all(json.dumps([here, value]).encode()))]
