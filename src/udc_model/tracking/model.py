"""The trained classifier as an MLflow model: weights, policy and code in one folder, without pickle."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mlflow.models import Model

LOADER = "udc_model.inference.serving"  # the module with _load_pyfunc, in the code that is logged with the model
LOADER_0_1 = "udc_model.serving"  # its name in version 0.1.0, whose journals do not name it
_EXAMPLE = {"columns": ["image"], "data": [[[[0, 64, 128], [192, 255, 32]]]]}  # a data frame in the orientation "split"


def log_classifier(
    model_id: str, run_id: str, bundle: Path, package: Path, requirements: Sequence[str], loader: str
) -> None:
    """Fill a logged model of MLflow.

    Parameters
    ----------
    model_id, run_id : the model, which exists and is empty, and its run.
    bundle : folder with model folder and policy.
    package : folder of this project's package, which is logged with the model so that it loads anywhere.
    requirements : pinned distributions that the model needs.
    loader : module of ``package`` that loads ``bundle``.
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
        loader=loader,
        validate_serving_input=False,  # it would load the model, and with it torch; tests do that
    )


def save_model(
    path: str, mlflow_model: Model, bundle: Path, package: Path, requirements: Sequence[str], loader: str, **_: Any
) -> None:
    """Write the MLflow model folder ``path``. ``Model.log`` calls this function of its flavor module.

    ``mlflow.pyfunc.log_model`` would write the same. It also reads the file lists of all installed packages to compare
    them with the requirements, which takes longer than everything else that evaluate logs.
    """
    import mlflow.pyfunc

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
    (root / "input_example.json").write_text(json.dumps(_EXAMPLE), encoding="utf-8")
    (root / "serving_input_example.json").write_text(json.dumps({"dataframe_split": _EXAMPLE}), encoding="utf-8")
    mlflow_model.saved_input_example_info = {
        "artifact_path": "input_example.json", "serving_input_path": "serving_input_example.json",
        "type": "dataframe", "pandas_orient": "split",
    }  # fmt: skip
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module=loader,
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
