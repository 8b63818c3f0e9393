"""The trained classifier as an MLflow model: weights, policy and code in one folder, without pickle."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.models import Model

LOADER = "udc_model.inference.serving"  # the module with _load_pyfunc, in the code that is logged with the model
_CURVES = ("training/", "system/", "epoch/")  # metrics by epoch; up to version 0.2.0 the first was epoch/
_FAMILIARITY_FILE = "familiarity.safetensors"  # in the bundle of a policy with familiarity
LOADER_0_1 = "udc_model.serving"  # its name in version 0.1.0, whose journals do not name it
_EXAMPLE = {"columns": ["image"], "data": [[[[0, 64, 128], [192, 255, 32]]]]}  # a data frame in the orientation "split"


def log_classifier(
    client: MlflowClient, model_id: str, run_id: str, bundle: Path, package: Path, requirements: Sequence[str],
    loader: str,
) -> None:  # fmt: skip
    """Fill a logged model of MLflow. A call that failed can be repeated.

    ``mlflow.pyfunc.log_model`` does the same, except that it cannot be repeated for the same model. It also reads the
    file lists of all installed packages to compare them with the requirements, which takes longer than everything else
    that evaluate logs.

    Parameters
    ----------
    model_id, run_id : the model, which exists, and its run.
    bundle : folder with model folder and policy.
    package : folder of this project's package, which is logged with the model so that it loads anywhere.
    requirements : pinned distributions that the model needs.
    loader : module of ``package`` that loads ``bundle``.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    run, location = client.get_run(run_id), client.get_logged_model(model_id).artifact_location
    outputs = run.outputs.model_outputs if run.outputs else []
    if model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    _copy_metrics(client, run, model_id)
    with tempfile.TemporaryDirectory() as scratch:
        model = Model(artifact_path=location, model_uuid=model_id, run_id=run_id, model_id=model_id)
        save_model(Path(scratch), model, bundle, package, requirements, loader)
        client.log_model_artifacts(model_id, scratch)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def _copy_metrics(client: MlflowClient, run: Run, model_id: str) -> None:
    """Link the final metrics of a run to its model, for the model's page."""
    from mlflow.entities import Metric

    names = [name for name in run.data.metrics if not name.startswith(_CURVES)]
    points = [point for name in names for point in client.get_metric_history(run.info.run_id, name)
              if point.step == 0 and point.model_id is None]  # fmt: skip
    for start in range(0, len(points), 1000):  # the limit of one request
        linked = [Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id,
                         run_id=run.info.run_id) for point in points[start : start + 1000]]  # fmt: skip
        client.log_batch(run.info.run_id, metrics=linked)


def save_model(
    root: Path, mlflow_model: Model, bundle: Path, package: Path, requirements: Sequence[str], loader: str
) -> None:
    """Write the MLflow model folder ``root``; parameters as :func:`log_classifier`."""
    import mlflow.pyfunc

    shutil.copytree(bundle, root / "data" / bundle.name)
    shutil.copytree(package, root / "code" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
    environment = {
        "python": platform.python_version(),
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    (root / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False), encoding="utf-8")
    mlflow_model.signature = _signature(has_familiarity=(bundle / _FAMILIARITY_FILE).is_file())
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


def _signature(*, has_familiarity: bool) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Map, Schema

    any_type = AnyType()  # type: ignore[no-untyped-call]
    columns = [ColSpec(DataType.double, "familiarity"), ColSpec(DataType.boolean, "unfamiliar")]
    familiarity = columns if has_familiarity else []
    return ModelSignature(
        inputs=Schema([ColSpec(any_type, "image")]),
        outputs=Schema([
            ColSpec(DataType.string, "class"),
            ColSpec(DataType.double, "expected_cost"),
            ColSpec(Map(DataType.double), "probabilities"),
            *familiarity,
        ]),
    )  # fmt: skip
