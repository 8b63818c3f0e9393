"""A real PostgreSQL in a temporary folder. Tests are skipped where it is not installed (apt-get install postgresql)."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

_POLL = 0.1  # seconds


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(is_true, what, seconds=120):
    """Wait until a condition holds, which is checked several times a second; an assertion error after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(_POLL)  # between two polls; the deadline decides


class Postgres:
    """A server on loopback that can be stopped, or killed and restarted; it stores on disk."""

    user, password = "team", "Secret%Word"  # with a character that addresses encode

    def __init__(self, folder, programs):
        self.folder, self.programs, self.port, self.process = folder, programs, free_port(), None
        # PostgreSQL refuses to run as root
        self.as_user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.as_user:
            shutil.chown(folder, "postgres", "postgres")
        secret = folder / "secret"
        secret.write_text(self.password)
        subprocess.run([programs / "initdb", "-D", folder / "data", "-U", self.user, "-A", "scram-sha-256", "--pwfile",
                        secret, "-E", "UTF8", "--locale", "C", "--no-sync"], check=True, capture_output=True, cwd="/",
                       **self.as_user)  # fmt: skip

    def start(self):
        options = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 60,
        }
        command = [self.programs / "postgres", "-D", self.folder / "data"]
        command += [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **self.as_user)

    def is_ready(self):
        import psycopg

        with suppress(psycopg.OperationalError), psycopg.connect(self.conninfo("postgres"), connect_timeout=5):
            return True
        return False

    def conninfo(self, database):
        return f"host=127.0.0.1 port={self.port} user={self.user} password={self.password} dbname={database}"

    def address(self, database):
        """The address of a data base, as SQLAlchemy writes it, with the password."""
        return f"postgresql+psycopg://{self.user}:{self.password.replace('%', '%25')}@127.0.0.1:{self.port}/{database}"

    def create(self, database):
        import psycopg

        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")

    def signal(self, number):
        """Send a signal to the server and its processes, which are in sessions of their own."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        processes = [self.process.pid, *(pid for pid, parent in parents.items() if parent == self.process.pid)]
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, number)
        return processes

    def kill(self):
        killed = self.signal(signal.SIGKILL)
        self.process.wait()
        # A successor does not start as long as one of them has the shared memory.
        wait_until(lambda: not any(map(is_running, killed)), "PostgreSQL does not end")


def is_running(process):
    """Whether a process runs; one that has ended and whose parent has not asked for its status does not."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture(scope="session")
def postgres(tmp_path_factory):
    """A running PostgreSQL server."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'udc-model[postgres]'")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/postgres"), *filter(None, [shutil.which("postgres")])]
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = tmp_path_factory.mktemp("postgres")
    for parent in (folder, *folder.parents[:2]):  # another user than root reads it
        parent.chmod(0o755)
    server = Postgres(folder, Path(found[0]).parent)
    server.start()
    wait_until(server.is_ready, "PostgreSQL does not start")
    yield server
    server.kill()
