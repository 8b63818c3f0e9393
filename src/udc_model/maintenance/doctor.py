"""What ``udc doctor`` does: all checks of the machine and, inside of a project, of the project."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from udc_model.maintenance import machine_checks as machine
from udc_model.maintenance import network_checks as network
from udc_model.maintenance import project_checks as project
from udc_model.maintenance.findings import Check, Finding, run_checks
from udc_model.tracking.store import repository_root, tracking_uri

_NETWORK_SECONDS = network.WAIT + 1  # for the resolution of names, which has no limit of its own
_PROJECT = (".dvc", "dvc.yaml", "params.yaml", "udc.json")  # one of them is enough, since a project may be broken


def diagnose(*, is_offline: bool = False) -> list[Finding]:
    """The findings about this machine, and about the project that the current folder is in, if it is in one.

    Parameters
    ----------
    is_offline : ask nothing over the network.
    """
    root = repository_root()
    has_project = any((root / name).exists() for name in _PROJECT)
    checks = _machine(root if has_project else None, is_offline)
    if has_project:
        checks += _project(root, is_offline)
    return run_checks(checks)


def _machine(root: Path | None, is_offline: bool) -> list[Check]:
    checks = [
        Check("machine", "udc-model", machine.package),
        Check("machine", "libraries", machine.libraries),
        Check("machine", "torch", partial(machine.torch_check, root), 60),
        Check("machine", "threads", machine.threads),
        Check("machine", "memory", machine.memory),
        Check("machine", "kernels", machine.kernels),
        Check("machine", "git", partial(machine.git_check, root or Path())),
        Check("machine", "clock", partial(network.clock, None if is_offline else network.hub_address()),
              _NETWORK_SECONDS),
    ]  # fmt: skip
    return checks if is_offline else [*checks, Check("machine", "hub", network.hub, _NETWORK_SECONDS)]


def _project(root: Path, is_offline: bool) -> list[Check]:
    checks = [
        Check("project", "project", partial(project.files, root)),
        Check("project", "dvc repository", partial(project.dvc_repository, root)),
        Check("project", "disk", partial(project.disk, root)),
        Check("project", "file system", partial(project.file_system, root)),
        Check("project", "tracker", partial(network.tracker, tracking_uri(), is_offline=is_offline),
              2 * network.WAIT + 1),
        Check("project", "running", partial(project.activity, root)),
    ]  # fmt: skip
    if (root / ".dvc").is_dir():
        checks.append(Check("project", "dvc remote", partial(network.remote, root, is_offline=is_offline),
                            2 * network.WAIT + 1))  # fmt: skip
    return checks
