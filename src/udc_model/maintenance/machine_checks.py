"""Checks of the machine: Python, PyTorch, cores, memory, native kernels, git."""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

import psutil

from udc_model.files import size_text
from udc_model.installed import installed
from udc_model.maintenance.findings import Finding, Status
from udc_model.native.library import load_library
from udc_model.tracking.provenance import PACKAGES

_OF_DEVELOPMENT = ("bench", "docs", "dev")  # extras for people who change this package
_LITTLE_MEMORY = 2e9  # bytes: PyTorch, MLflow and DVC take about one
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_NVIDIA = Path("/proc/driver/nvidia/version")
_TORCH_SECONDS = 60.0
_REINSTALL = "pip install --force-reinstall --no-deps --no-cache-dir udc-model"


def package() -> list[Finding]:
    """This package, Python and the system."""
    is_separate = sys.prefix != sys.base_prefix
    environment = "in a virtual environment" if is_separate else "of the system"
    return [
        Finding("udc-model", Status.OK, str(installed())),
        Finding("python", Status.OK, f"{platform.python_implementation()} {platform.python_version()}, {environment}"),
        Finding("system", Status.OK, platform.platform()),
    ]


def libraries() -> list[Finding]:
    """The libraries that the stages need, and those of optional abilities."""
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    is_installed = {extra: all(map(_is_installed, names)) for extra, names in _extras().items()}
    extras = [extra for extra, is_complete in is_installed.items() if not is_complete]
    status, advice = (Status.FAILURE, f"pip install {' '.join(missing)}") if missing else (Status.OK, "")
    lacking = f"missing: {', '.join(missing)}; " if missing else ""
    installed_extras = [extra for extra in is_installed if extra not in extras]
    return [
        Finding("libraries", status, f"{lacking}{', '.join(found)}", advice),
        Finding("extras", Status.NOTE,
                f"installed: {', '.join(installed_extras) or 'none'}; not installed: {', '.join(extras) or 'none'}",
                f"to add one: pip install 'udc-model[{extras[0]}]'" if extras else ""),
    ]  # fmt: skip


def _extras() -> dict[str, list[str]]:
    """The packages of each extra that adds an ability, as the metadata of this package names them."""
    about = metadata("udc-model")
    packages: dict[str, list[str]] = {
        extra: [] for extra in about.get_all("Provides-Extra", []) if extra not in _OF_DEVELOPMENT
    }
    for requirement in about.get_all("Requires-Dist", []):
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"""extra == ["']([\w.-]+)["']""", requirement)
        if name and extra and extra[1] in packages:
            packages[extra[1]].append(name[0])
    return packages


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def read_torch(project: Path | None) -> Mapping[str, Any] | str:
    """The result of `udc_model.maintenance.torch_facts`, or why there is none."""
    command = [sys.executable, "-m", "udc_model.maintenance.torch_facts", *([str(project)] if project else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it took more than {_TORCH_SECONDS:.0f} seconds"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"the process ended with status {done.returncode}"]
        return lines[-1]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def torch_findings(facts: Mapping[str, Any] | str, *, has_nvidia: bool) -> list[Finding]:
    """PyTorch's build against the GPU, and the project's model against memory.

    Parameters
    ----------
    has_nvidia : whether the driver of an NVIDIA GPU is loaded.
    """
    if isinstance(facts, str):
        return [Finding("torch", Status.FAILURE, f"cannot be imported: {facts}",
                        "pip install --force-reinstall torch torchvision")]  # fmt: skip
    build = f"CUDA {facts['cuda']}" if facts["cuda"] else "CPU"
    devices = ", ".join(facts["gpus"]) or ("Apple GPU" if facts["mps"] else "no GPU")
    text = f"{facts['version']}, build for {build}; {devices}"
    findings = [Finding("torch", Status.OK, text)]
    if has_nvidia and not facts["cuda"]:
        findings = [Finding("torch", Status.WARNING, f"{text}, though there is an NVIDIA driver: it trains on the CPU",
                            "install the build for CUDA, see https://pytorch.org/get-started/locally")]  # fmt: skip
    elif has_nvidia and not facts["gpus"]:
        findings = [Finding("torch", Status.WARNING, f"{text}, though there is an NVIDIA driver",
                            "see `nvidia-smi`: the driver may be too old for this build")]  # fmt: skip
    if facts["memory"]:
        findings.append(Finding("model", Status.FAILURE, facts["memory"]))
    return findings


def torch_check(project: Path | None) -> list[Finding]:
    """`torch_findings` of this machine."""
    return torch_findings(read_torch(project), has_nvidia=_NVIDIA.exists())


def threads_findings(cores: int, quota: float | None, omp: str | None) -> list[Finding]:
    """The cores that this process may use, against the threads that ``OMP_NUM_THREADS`` asks for.

    Parameters
    ----------
    quota : processors whose time a container may use; None without a limit.
    """
    usable = cores if quota is None else max(1, min(cores, int(quota)))
    limit = "" if quota is None or quota >= cores else f", of whose time the container may use {quota:g}"
    advice = f"export OMP_NUM_THREADS={usable}"
    text = f"{cores} cores{limit}; OMP_NUM_THREADS is {omp or 'not set'}"
    if omp is not None and not omp.split(",")[0].strip().isdecimal():
        return [Finding("threads", Status.WARNING, f"{text}, which is no number", advice)]
    threads = int(omp.split(",")[0]) if omp else cores
    if threads > usable:
        return [Finding("threads", Status.WARNING, f"{text}: {threads} threads wait for each other", advice)]
    if threads < usable:
        return [Finding("threads", Status.NOTE, f"{text}: training uses {threads} of them", advice)]
    return [Finding("threads", Status.OK, text)]


def threads() -> list[Finding]:
    """`threads_findings` of this machine."""
    from udc_model.config.limits import available_cores

    return threads_findings(available_cores(), _cpu_quota(), os.environ.get("OMP_NUM_THREADS"))


def _cpu_quota() -> float | None:
    try:
        quota, period = _CPU_LIMIT.read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory_findings(total: int, available: int, limit: int | None) -> list[Finding]:
    """Memory in bytes: of the machine, available now, and a container's limit."""
    limited = "" if limit is None or limit >= total else f", of which the container may use {size_text(limit)}"
    text = f"{size_text(total)}{limited}; {size_text(available)} available"
    if min(available, total if limit is None else limit) < _LITTLE_MEMORY:
        return [Finding("memory", Status.WARNING, f"{text}: a stage may be killed",
                        f"end other programs; the stages need {size_text(_LITTLE_MEMORY)} and more")]  # fmt: skip
    return [Finding("memory", Status.OK, text)]


def memory() -> list[Finding]:
    """`memory_findings` of this machine."""
    values = psutil.virtual_memory()
    try:
        limit = int(_MEMORY_LIMIT.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        limit = None
    return memory_findings(values.total, values.available, limit)


def kernels() -> list[Finding]:
    """The native kernels, or why they are not used."""
    if os.environ.get("UDC_KERNELS", "on").lower() in ("off", "0"):
        return [Finding("kernels", Status.NOTE, "switched off by UDC_KERNELS", "unset UDC_KERNELS")]
    messages = _Messages()
    logger = logging.getLogger(load_library.__module__)
    logger.addHandler(messages)
    propagates, logger.propagate = logger.propagate, False
    try:
        is_loaded = load_library() is not None
    finally:
        logger.removeHandler(messages)
        logger.propagate = propagates
    if is_loaded:
        return [Finding("kernels", Status.OK, "native")]
    reason = messages.texts[0] if messages.texts else "not loaded; training is slower"
    return [Finding("kernels", Status.WARNING, reason, f"install a C compiler (gcc), then: {_REINSTALL}")]


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def git_findings(git_version: str | None, values: Mapping[str, str]) -> list[Finding]:
    """Git and the identity without which neither git nor DVC makes a commit.

    Parameters
    ----------
    git_version : None if there is no git.
    values : ``user.name`` and ``user.email``, as far as they are set.
    """
    if git_version is None:
        return [Finding("git", Status.FAILURE, "the git command is not on the PATH", "install git")]
    if missing := [name for name in ("user.name", "user.email") if not values.get(name)]:
        commands = " && ".join(f'git config --global {name} "…"' for name in missing)
        return [Finding("git", Status.WARNING, f"{git_version}; {' and '.join(missing)} not set, so git commits and "
                        "DVC experiments fail", commands)]  # fmt: skip
    return [Finding("git", Status.OK, f"{git_version}; user.name and user.email are set")]


def git_check(folder: Path) -> list[Finding]:
    """`git_findings` of a folder; name and address of the user are not printed."""
    if shutil.which("git") is None:
        return git_findings(None, {})
    values = {name: _output("git", "-C", str(folder), "config", name) for name in ("user.name", "user.email")}
    for kind in ("name", "email"):  # environment variables of git
        values[f"user.{kind}"] = values[f"user.{kind}"] or os.environ.get(f"GIT_COMMITTER_{kind.upper()}", "")
    return git_findings(_output("git", "--version"), values)


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip()
