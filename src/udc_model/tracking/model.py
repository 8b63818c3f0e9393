"""The trained classifier as an MLflow model: weights, decision rule and code in one folder, no pickle."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mlflow.models import Model


def log_classifier(model_id: str, run_id: str, bundle: Path, package: Path, requirements: Sequence[str]) -> None:
    """Fill a logged model of MLflow with a folder that ``udc_model.inference.serving`` can load.

    Parameters
    ----------
    model_id, run_id : the model, created and empty, and the run that it came from.
    bundle : model folder and decision rule.
    package : folder of this project's package, whose code goes with the model, so that it loads anywhere.
    requirements : pinned distributions that the model needs.
    """
    from mlflow.models import Model

    Model.log(
        artifact_path=None,
        name="classifier",
        model_id=model_id,
        run_id=run_id,
        flavor=sys.modules[__name__],
        bundle=bundle,
        package=package,
        requirements=requirements,
        validate_serving_input=False,  # it would load the model, and with it torch; the tests do
    )


def save_model(
    path: str, mlflow_model: Model, bundle: Path, package: Path, requirements: Sequence[str], **_: Any
) -> None:
    """Write the MLflow model folder ``path``; MLflow calls this, for the module is a flavor of its own.

    ``mlflow.pyfunc.log_model`` would write the same, but reads the file lists of all installed packages to compare the
    requirements, which are pinned to those packages' versions, and takes longer than all else that evaluate logs.
    """
    import mlflow.pyfunc
    from mlflow.models.utils import _save_example

    root = Path(path)
    shutil.copytree(bundle, root / "data" / bundle.name)
    shutil.copytree(package, root / "code" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    (root / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False), encoding="utf-8")
    mlflow_model.signature = _signature()
    _save_example(mlflow_model, _example(), path)
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module="udc_model.inference.serving",
        data=f"data/{bundle.name}",
        code="code",
        python_env="python_env.yaml",
    )
    mlflow_model.save(str(root / "MLmodel"))


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, Schema

    any_type = AnyType()  # type: ignore[no-untyped-call]
    return ModelSignature(
        inputs=Schema([ColSpec(any_type, "image")]),
        outputs=Schema([
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "expected_cost"),
            ColSpec(Map(DataType.double), "probabilities"),
        ]),
    )  # fmt: skip


def _example() -> Any:
    import pandas as pd

    return pd.DataFrame({"image": [[[0, 64, 128], [192, 255, 32]]]})
