"""Opens MLflow's pages at the runs of this project: what ``udc ui`` does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser

from udc_model.errors import UdcError, without_credentials
from udc_model.tracking.lookup import open_complete_store
from udc_model.tracking.pages import address, describe_experiment
from udc_model.tracking.store import tracking_uri

_START_TIMEOUT = 120.0  # seconds


def show_pages(port: int) -> None:
    """Print the address of the runs, and open it if there is a terminal and a browser.

    A store in a file gets a server on this machine until this process is interrupted.

    Parameters
    ----------
    port : of the server; 0 is any free one.

    Raises
    ------
    UdcError
        The store cannot be reached, or the server does not start.
    """
    import mlflow

    experiment, uri = open_complete_store()[0], tracking_uri()
    if uri.startswith(("http://", "https://")):
        _open(address(without_credentials(uri), experiment))
        return
    describe_experiment(mlflow.MlflowClient(), experiment)
    with socket.socket() as probe:
        if port == 0:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        elif probe.connect_ex(("127.0.0.1", port)) == 0:  # another server would answer in place of this one
            raise UdcError(f"--port {port}: is in use; choose another, as --port {port + 1}")
    server = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", "--uvicorn-opts",
               "--log-level critical"]  # fmt: skip
    # MLflow starts seven processes for jobs of language models beside each server. This project has no such jobs.
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    # Not as an option: a list of processes would show the password of a database.
    process = subprocess.Popen(command, env=settings | os.environ | {"MLFLOW_BACKEND_STORE_URI": uri})
    try:
        _wait_for(server, process)
        _open(address(server, experiment))
        sys.stdout.write("Ctrl-C ends the server.\n")
        sys.stdout.flush()
        process.wait()
    except KeyboardInterrupt:
        pass  # as announced
    finally:
        process.terminate()
        process.wait()


def _wait_for(server: str, process: subprocess.Popen[bytes]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach this machine's server
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UdcError(f"{server}: MLflow's server ended with status {process.returncode}; its messages are above")
        try:
            with direct.open(f"{server}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)  # between two polls
    raise UdcError(f"{server}: MLflow's server does not answer after {_START_TIMEOUT:.0f} seconds")


def _open(page: str) -> None:
    sys.stdout.write(f"Runs of this project: {page}\n")
    sys.stdout.flush()
    has_screen = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if sys.stdout.isatty() and has_screen:
        webbrowser.open(page)
