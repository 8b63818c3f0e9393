"""The command `udc app`: its address, its end, and what cannot be."""

import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from udc_model.app.run import _is_local
from udc_model.cli import main


def test_the_command_prints_its_address_and_ends_with_ctrl_c(workspace):
    command = [sys.executable, "-m", "udc_model.cli", "app", "--root", workspace.root, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--host", "0.0.0.0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    address = process.stdout.readline().strip()
    with urllib.request.urlopen(address.replace("0.0.0.0", "127.0.0.1")) as answer:
        assert b"UDC-Model" in answer.read()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "--host 0.0.0.0: other machines reach the page" in errors
    assert "Traceback" not in errors


def test_a_port_in_use_and_a_missing_model_are_one_line(workspace, tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        in_use = f"--port {port}: cannot be used on 127.0.0.1"
        for root, message in ((workspace.root, in_use), (tmp_path, "config.json")):
            caplog.clear()
            assert main(["app", "--root", str(root), "--port", port]) == 1
            assert message in caplog.text


@pytest.mark.parametrize(
    ("host", "is_local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("pc", False)]
)
def test_a_host_is_local_if_no_other_machine_reaches_it(host, is_local):
    assert _is_local(host) == is_local
