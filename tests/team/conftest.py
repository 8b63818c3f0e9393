"""A team's server: PostgreSQL, S3 and MLflow with basic authentication, all real, on loopback.

Tests are skipped where PostgreSQL is not installed (apt-get install postgresql).
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
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
        """The address of a database, as SQLAlchemy writes it, with the password."""
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
def postgres():
    """A running PostgreSQL server."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'udc-model[postgres]'")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/postgres"), *filter(None, [shutil.which("postgres")])]
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # Not in pytest's folder, which no other user may enter: PostgreSQL does not run as root.
    with tempfile.TemporaryDirectory(prefix="udc-postgres-") as folder:
        server = Postgres(Path(folder), Path(found[0]).parent)
        server.start()
        try:
            wait_until(server.is_ready, "PostgreSQL does not start")
            yield server
        finally:
            server.kill()


class Process:
    """A server in a session of its own that can be stopped, or killed and restarted."""

    def __init__(self, folder, command, ready, **env):
        self.folder, self.command, self.ready, self.env, self.process = folder, command, ready, env, None

    def start(self):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.folder, env=os.environ | self.env, stdout=log,
                                            stderr=log, start_new_session=True)  # fmt: skip

    def is_ready(self):
        assert self.process.poll() is None, (self.folder / "log").read_text()[-3000:]
        with suppress(OSError), urllib.request.urlopen(self.ready, timeout=5):
            return True
        return False

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()


class Team:
    """The parts of a team's server, and its users."""

    admin = "Admin-Secret-333"

    def __init__(self, postgres, folder):
        self.postgres, self.folder = postgres, folder
        self.users = {"anna": "Anna-Secret-1", "ben": "Ben-Secret-22"}
        self.s3_uri, self.uri = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.s3_keys = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "S3-Secret-4444",
                        "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
        # moto stores in memory: it can be away, but not be killed
        self.s3 = self._process("s3", ["moto.server", "-H", "127.0.0.1", "-p", self.s3_uri.rpartition(":")[2]],
                                f"{self.s3_uri}/moto-api/data.json")  # fmt: skip
        for database in ("mlflow", "mlflow_auth"):
            postgres.create(database)
        settings = folder / "auth.ini"
        settings.write_text(
            f"[mlflow]\ndefault_permission = EDIT\nadmin_username = admin\n"
            f"database_uri = {postgres.address('mlflow_auth').replace('%', '%%')}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n")  # fmt: skip
        self.mlflow = self._process(
            "mlflow", ["mlflow", "server", "--app-name", "basic-auth", "--port", self.uri.rpartition(":")[2],
                       "--workers", "1", "--artifacts-destination", "s3://mlflow"], f"{self.uri}/health",
            MLFLOW_BACKEND_STORE_URI=postgres.address("mlflow"), MLFLOW_AUTH_CONFIG_PATH=str(settings),
            MLFLOW_AUTH_ADMIN_PASSWORD=self.admin, MLFLOW_FLASK_SERVER_SECRET_KEY="Flask-Secret-5",
            MLFLOW_S3_ENDPOINT_URL=self.s3_uri, **self.s3_keys,
        )  # fmt: skip

    def _process(self, name, arguments, ready, **env):
        (self.folder / name).mkdir()
        return Process(self.folder / name, [sys.executable, "-m", *arguments], ready, **env)

    def start(self):
        import boto3
        from mlflow.server import get_app_client

        self.s3.start()
        self.mlflow.start()
        wait_until(self.s3.is_ready, "S3 does not start")
        client = boto3.client("s3", endpoint_url=self.s3_uri, region_name="us-east-1", aws_access_key_id="team",
                              aws_secret_access_key=self.s3_keys["AWS_SECRET_ACCESS_KEY"])  # fmt: skip
        for bucket in ("mlflow", "dvc"):
            client.create_bucket(Bucket=bucket)
        wait_until(self.mlflow.is_ready, "MLflow does not start", 240)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", self.admin)
            client = get_app_client("basic-auth", self.uri)
            for user, password in self.users.items():
                client.create_user(user, password)

    def env(self, user):
        """The environment variables of a user's commands."""
        return {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_TRACKING_USERNAME": user,
                "MLFLOW_TRACKING_PASSWORD": self.users[user], "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
                "AWS_ENDPOINT_URL": self.s3_uri, **self.s3_keys}  # fmt: skip

    @property
    def secrets(self):
        """All passwords, which no file of a user may have."""
        return [*self.users.values(), self.admin, self.s3_keys["AWS_SECRET_ACCESS_KEY"], self.postgres.password]

    def disturb(self, rng, seconds):
        """Let a random part be away for some seconds; returns what was done."""
        part, is_killed = rng.choice([("postgres", True), ("postgres", False), ("mlflow", True), ("mlflow", False),
                                      ("s3", False)])  # fmt: skip
        server = getattr(self, part)
        if is_killed:
            server.kill()
        else:
            server.signal(signal.SIGSTOP)
        time.sleep(seconds)  # the length of the outage
        if is_killed:
            server.start()
        else:
            server.signal(signal.SIGCONT)
        return f"{part} {'killed' if is_killed else 'stopped'} for {seconds:.1f} s"


@pytest.fixture(scope="session")
def team(postgres, tmp_path_factory):
    """A running server of a team with two users."""
    team = Team(postgres, tmp_path_factory.mktemp("team"))
    try:
        team.start()
        yield team
    finally:
        for server in (team.mlflow, team.s3):
            if server.process is not None:
                server.kill()
