"""Descriptions of parameters: one source for params.yaml, the help and the errors; DVC's rewriting keeps the file."""

import difflib
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from pydantic import BaseModel

from udc_model.cli import main
from udc_model.config import Params, load_params, parameter_names
from udc_model.config.reference import (
    explain,
    is_section,
    parameters,
    parameters_markdown,
    params_yaml,
    summary_table,
)
from udc_model.errors import UdcError

ROOT = Path(__file__).parents[2]
SHIPPED = (ROOT / "params.yaml").read_text(encoding="utf-8")
ALL = {parameter.name: parameter for parameter in parameters()}

# Another valid value for each parameter, where the type alone does not give one; Hydra's syntax, as `-S` takes it.
VALUES = {
    "data.source": "folder", "data.path": "elsewhere", "data.csv_files": "[a.csv,b.csv]", "data.label_column": "kind",
    "data.classes": "[a,b]", "data.path_column": "file", "data.path_pattern": "'images/{}.jpg'",
    "data.encoding": "latin-1", "data.merge_labels": "{Ant: ant}", "data.split_seed": "7",
    "data.group": "'^(.+)_[^_]*$'", "data.splits.train": "0.61", "data.intensity": "{bits: 12}",
    "data.splits.validation": "0.16", "data.splits.calibration": "0.11", "data.splits.test": "0.16",
    "model.preset": "resnet-18", "model.weights": "folder", "model.weights_include": "['resnet.*']",
    "model.weights_exclude": "['*.stages.2.*','classifier.*']", "model.convnext.num_stages": "4",
    "costs.order": "['0','1']", "costs.entries": "[{actual: '3', predicted: '7', cost: 5}]",
    "costs.matrix": "{a: {a: 0, b: 10}, b: {a: 1, b: 0}}", "costs.prior": "{a: 0.9, b: 0.1}",
    "costs.actions": "{retest: {a: 1, b: 2}, discard: 5}",
    "evaluate.cost_ceiling": "{ceiling: 0.2, confidence: 0.9}",
    "evaluate.recall_floor": "{class: a, floor: 0.9, confidence: 0.95}", "evaluate.recall_of": "[a,b]",
    "evaluate.confidence": "0.9", "model.resnet.hidden_sizes": "[8,16,32]", "model.resnet.depths": "[2,2,2]",
    "model.convnext.hidden_sizes": "[8,16,32]", "model.convnext.depths": "[1,1,1]",
}  # fmt: skip


def _value(name):
    """A value that differs from the one in the shipped file."""
    if name in VALUES:
        return VALUES[name]
    current = yaml.safe_load(SHIPPED)
    for key in name.split("."):
        current = current[key]
    kinds = ALL[name].values
    if isinstance(current, bool):
        return str(not current).lower()
    if "number" in kinds or "integer" in kinds:
        return "2" if "integer" in kinds else "0.25"
    return next(choice for choice in kinds.replace(" or ", ", ").split(", ") if choice not in (str(current), "null"))


def _lines_of(name, text):
    """Numbers of the lines that set a parameter: its key, and the lines of its list or mapping."""
    lines, path = text.splitlines(), []
    found = set()
    for number, line in enumerate(lines):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        if not stripped.startswith("- ") and ":" in stripped:
            path = [*path[:depth], stripped.split(":")[0]]
        if ".".join(path).startswith(name):
            found.add(number)
    return found


def _only_its_lines_differ(name, before, after):
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    removed = {k for tag, a, b, _, _ in matcher.get_opcodes() if tag != "equal" for k in range(a, b)}
    added = {k for tag, _, _, a, b in matcher.get_opcodes() if tag != "equal" for k in range(a, b)}
    return removed <= _lines_of(name, before) and added <= _lines_of(name, after) and (removed or added)


@pytest.mark.parametrize("name", ALL)
def test_an_override_by_dvc_changes_only_the_lines_of_its_parameter(name, tmp_path):
    """DVC's own function of `dvc exp run -S`; afterwards the file is valid YAML with the new value."""
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED, encoding="utf-8")
    apply_overrides(str(path), [f"{name}={_value(name)}"])
    once = path.read_text(encoding="utf-8")
    assert _only_its_lines_differ(name, SHIPPED, once)
    assert yaml.safe_load(once) != yaml.safe_load(SHIPPED)
    apply_overrides(str(path), ["seed=43"])  # a second override keeps what the first one wrote
    assert path.read_text(encoding="utf-8") == once.replace("seed: 42", "seed: 43").replace("seed: 2\n", "seed: 43\n")


def test_a_list_set_and_emptied_again_gives_the_shipped_file(tmp_path):
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    for value in ("[x]", "[]"):
        apply_overrides(str(path), [f"evaluate.recall_of={value}"])
    assert path.read_text(encoding="utf-8") == SHIPPED


def test_the_shipped_file_is_in_the_generated_form():
    assert params_yaml(load_params(ROOT / "params.yaml")) == SHIPPED


def test_the_generated_form_keeps_every_value(tmp_path):
    changed = {
        "costs": {"entries": [{"true": "a", "predicted": "b", "cost": 2.5}], "prior": {"a": 0.25, "b": 0.75},
                  "matrix": {"a": {"a": 0.0, "b": 1.0}, "b": {"a": 3.0, "b": 0.0}}, "order": ["b", "a"]},
        "data": {"csv_files": ["a.csv", {"file": "b.csv", "split": "test"}], "classes": ["a", "no"]},
        "evaluate": {"recall_floor": {"class": "a"}, "recall_of": ["1", "null"]},
        "train": {"batch_size": "auto", "learning_rate": 1e-5},
    }  # fmt: skip
    params = Params.model_validate(changed)
    path = tmp_path / "params.yaml"
    path.write_text(params_yaml(params), encoding="utf-8")
    assert load_params(path) == params


def test_write_restores_the_form_and_keeps_the_values(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(SHIPPED)), encoding="utf-8")
    assert main(["params", "--write", "--params", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == SHIPPED


def test_every_parameter_is_described():
    names = {name for name in parameter_names() if not _is_section(name)}
    assert set(ALL) == names
    for parameter in ALL.values():
        assert parameter.description.endswith("."), parameter.name
        assert parameter.values, parameter.name
        assert len(parameter.description) < 250, parameter.name


def _is_section(name):
    section = Params
    for key in name.split("."):
        field = section.model_fields[key]
        section = field.annotation
    return is_section(field)


def test_every_nested_field_is_described():
    """The fields of list entries and of the recall floor too, which have no line of their own in params.yaml."""

    def check(section):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            if is_section(field):
                check(field.annotation)

    for section in _sections():
        check(section)


def _sections():
    from udc_model.config.section import Section

    return [each for each in Section.__subclasses__() if issubclass(each, BaseModel)]


def test_texts_name_every_parameter():
    table, page = summary_table(), parameters_markdown()
    for name in ALL:
        assert name in table
        assert f"`{name}`" in page


def test_explain():
    text = explain("train.schedule")
    assert "values:  cosine, linear, constant, step, one_cycle" in text
    assert "default: cosine" in text
    assert "used by: train" in text
    assert explain("schedule") == text
    assert "data.splits.calibration" in explain("splits")
    assert "integer above 0" in explain("epochs")
    assert "number at least 0 and below 1" in explain("train.momentum")
    assert "if loss.name is focal" in explain("focal_gamma")
    with pytest.raises(UdcError, match=r"train\.lerning_rate: no such parameter; did you mean train\.learning_rate"):
        explain("train.lerning_rate")
