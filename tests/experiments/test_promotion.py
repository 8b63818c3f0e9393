"""Promotion in a registry that has no champion."""

from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from udc_model.experiments import promotion
from udc_model.experiments.promotion import promote
from udc_model.tracking.tags import EVALUATED


class Registry:
    """The versions of one model by the runs that they are of, and their aliases; takes what `promote` asks for."""

    def __init__(self, runs):
        self.versions = [SimpleNamespace(version=str(k), run_id=run_id) for k, run_id in enumerate(runs, 1)]
        self.aliases, self.description = {}, ""

    def create_registered_model(self, name, description):
        if self.versions:
            raise MlflowException("exists", error_code=3001)  # RESOURCE_ALREADY_EXISTS

    def get_model_version_by_alias(self, name, alias):
        raise MlflowException("no such alias", error_code=1000)  # INVALID_PARAMETER_VALUE

    def search_model_versions(self, condition):
        assert condition == "name = 'spiders'"
        return self.versions

    def create_model_version(self, name, source, run_id, model_id):
        self.versions.append(SimpleNamespace(version=str(len(self.versions) + 1), run_id=run_id))
        return self.versions[-1]

    def set_registered_model_alias(self, name, alias, version):
        self.aliases[alias] = version

    def set_model_version_tag(self, name, version, key, value):
        pass

    def update_model_version(self, name, version, description):
        self.description = description


@pytest.mark.parametrize(("runs", "reason", "version"), [
    ([], "it is the first version", "1"), (["this"], "it is the first version", "1"),
    (["other"], "there is no champion to compare it with", "2"),
    (["other", "this"], "there is no champion to compare it with", "2"),
])  # fmt: skip
def test_the_reason_without_a_champion(runs, reason, version, monkeypatch):
    run = SimpleNamespace(info=SimpleNamespace(run_id="this", run_name="a", experiment_id="1"),
                          data=SimpleNamespace(tags={EVALUATED: "true"}),
                          outputs=SimpleNamespace(model_outputs=[SimpleNamespace(model_id="m")]))  # fmt: skip
    registry = Registry(runs)
    monkeypatch.setattr(promotion, "resolve_run", lambda name: run)
    monkeypatch.setattr(mlflow, "MlflowClient", lambda: registry)
    result = promote("a", "spiders")
    assert (result.version, result.is_champion, result.reason) == (version, True, reason)
    assert registry.aliases == {"champion": version, "challenger": version}
    assert registry.description.startswith(f"**Champion** when it was promoted: {reason}.")
