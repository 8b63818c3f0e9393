"""`deploy/compose.yaml`: it is complete in itself, and has no password. No image can be fetched in tests."""

import re
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parents[2] / "deploy/compose.yaml"
# The keys of the Compose specification (compose-spec.json) that the file may use.
TOP = {"name", "services", "configs", "secrets", "volumes"}
SERVICE = {"image", "command", "entrypoint", "environment", "configs", "secrets", "volumes", "ports", "healthcheck",
           "depends_on", "restart", "security_opt"}  # fmt: skip
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def names(items):
    return [item["source"] if isinstance(item, dict) else item for item in items]


def test_it_has_keys_of_the_specification_only(compose):
    assert {key for key in compose if not key.startswith("x-")} <= TOP
    for name, service in compose["services"].items():
        assert set(service) <= SERVICE, name


def test_whatever_a_service_names_exists(compose):
    services = compose["services"]
    used = {kind: set() for kind in ("configs", "secrets", "volumes")}
    for service in services.values():
        for kind in ("configs", "secrets"):
            used[kind] |= set(names(service.get(kind, ())))
        mounted = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        used["volumes"] |= {source for source in mounted if not source.startswith(".")}
        needed = service.get("depends_on", {})
        for other in needed:
            assert other in services
            condition = needed[other]["condition"] if isinstance(needed, dict) else "service_started"
            assert condition in CONDITIONS
            assert condition != "service_healthy" or "healthcheck" in services[other]
    assert used == {kind: set(compose[kind]) for kind in used}


def test_images_are_pinned_and_data_is_stored(compose):
    for service in compose["services"].values():
        assert re.search(r":(?!latest)[\w.-]+$", service["image"])
    assert {"postgres", "s3"} <= set(compose["volumes"])


def test_it_has_no_secret(compose):
    """Passwords are files, which only the services that need them see."""
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    for service in compose["services"].values():
        for name in service.get("environment", {}):
            assert not re.search(r"(PASSWORD|SECRET|KEY)$", name), name
    assert not re.search(r"//\w+:(?!\$\$\()[^@/\s]+@", FILE.read_text(encoding="utf-8"))


def test_only_the_proxy_and_the_database_are_reachable(compose):
    assert {name for name, service in compose["services"].items() if "ports" in service} == {"proxy", "postgres"}
