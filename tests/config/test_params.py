"""params.yaml: every mistake stops at once, with the parameter's full name and what is allowed."""

import re
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from udc_model.config import full_name, load_params, parameter_names, validate_params
from udc_model.config.yaml12 import as_yaml, read_yaml
from udc_model.errors import UdcError

ROOT = Path(__file__).parents[2]


def _load(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return load_params(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lerning_rate: 0.1}", r"train\.lerning_rate: no such parameter; did you mean train\.learning_rate"),
        ("trian: {}", r"trian: no such parameter; did you mean train"),
        ("train: {epochs: ten}", r"train\.epochs: got 'ten'; allowed: integer above 0$"),
        ("train: {epochs: true}", r"train\.epochs: got true; allowed: integer above 0$"),
        ("train: {epochs: 0}", r"train\.epochs: got 0; allowed: integer above 0$"),
        ("train: {learning_rate: .nan}", r"train\.learning_rate: got \.nan; allowed: number above 0$"),
        ("model: {model_type: vit}", r"model\.model_type: got 'vit'; allowed: resnet, convnext, timm$"),
        (
            "model: {resnet: {depths: [1, 1]}}",
            r"model\.resnet: .*same number of stages, got depths: 2, hidden_sizes: 4",
        ),
        ("model: {convnext: {num_stages: 3}}", r"model\.convnext: .*num_stages: 3, depths: 4"),
        ("data: {splits: {train: 0.9}}", r"data\.splits: the shares add up to 1\.3; they must add up to 1"),
        ("data: {splits: {calibration: 0.0, train: 0.7}}", r"evaluate\.calibration: temperature needs images"),
        ("loss: {reads: loss}", r"loss\.reads: is no longer needed: .*remove the line"),
        ("train: {reads: train, policy: none}", r"train\.policy: is called train\.auto_augment since version 0\.2\.0"),
        (
            "costs: {prior: {a: 0.5, b: 0.6}}",
            r"costs\.prior: the shares add up to 1\.1; they must add up to 1, or to less",
        ),
        ("costs: {prior: {}}", r"costs\.prior: names no class; null takes"),
        ("evaluate: {decision: recall_floor}", r"evaluate: decision: recall_floor needs the class and its floor"),
        (
            "evaluate: {recall_floor: {class: a, floor: 1.0}}",
            r"evaluate\.recall_floor\.floor: got 1\.0; allowed: number above 0 and below 1$",
        ),
        (
            "data: {splits: {calibration: 0.0, train: 0.7}}\n"
            "evaluate: {calibration: none, decision: recall_floor, recall_floor: {class: a}}",
            r"recall_floor needs images to prove the recall on",
        ),
        ("loss: {name: seesaw, label_smoothing: 0.1}", r"loss: label_smoothing and class_weights belong to"),
        (
            "costs: {entries: [{true: a, predicted: b, cost: 1.0}]}",
            r"the key true is not read as a text; put it in quotes: 'true' .in costs.entries, `actual`",
        ),
        (
            "costs: {entries: [{'true': a, predicted: b}]}",
            r"costs\.entries\.0\.cost: is missing; allowed: number at least -1",
        ),
        # one of several types
        ("train: {batch_size: 0}", r"train\.batch_size: got 0; allowed: integer above 0 or auto$"),
        ("train: {batch_size: atuo}", r"got 'atuo'; allowed: integer above 0 or auto; did you mean auto\?$"),
        ("train: {num_frozen_stages: -1}", r"num_frozen_stages: got -1; allowed: integer at least 0 or all$"),
        ("train: {auto_augment: randaug}", r"allowed: none, randaugment, trivialaugment or null; did you mean randaug"),
        (
            "data: {csv_files: [{file: a.csv, split: tets}]}",
            r"csv_files\.0\.split: got 'tets'; .* did you mean test\?$",
        ),
        ("data: {csv_files: [{x: 1}]}", r"csv_files\.0\.x: no such parameter\. Allowed here: file, split"),
        ("data: {csv_files: [3]}", r"data\.csv_files\.0: got 3; allowed: text or \{file, split\}; .* quotes: '3'$"),
        ("data: {csv_files: []}", r"data\.csv_files: got \[\]; allowed: list of: .*; at least 1$"),
        ("costs: {matrix: 3}", r"costs\.matrix: got 3; allowed: mapping from text to: mapping .* or list of: list"),
        ("costs: {matrix: [[a]]}", r"costs\.matrix\.0\.0: got 'a'; allowed: number at least -1"),
        ("costs: {matrix: {a: {b: c}}}", r"costs\.matrix\.a\.b: got 'c'; allowed: number at least -1"),
        # a section that is none
        ("train:", r"train: is empty; remove the line to use the defaults, or set parameters below it: accumulation,"),
        ("data: text", r"data: got 'text'; allowed: a section with the parameters carve, classes, copies,"),
        ("model: {resnet: [1]}", r"model\.resnet: got \[1\]; allowed: a section with the parameters depths,"),
        ("data: {path: 2024}", r"data\.path: got 2024; allowed: text; a text .* needs quotes: '2024'$"),
        ("train: {compile: yes}", r"train\.compile: got 'yes'; allowed: true or false$"),
        ("seed: 1\nseed: 2", r"the key 'seed' is given twice"),
        ("seed: [1", r"not valid YAML"),
        ("- 1", r"parameters: "),
    ],
)
def test_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(UdcError, match=message):
        _load(tmp_path, text)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("[3, 12, -1]", ["3", "12", "-1"]),
        ("['01', \"1.0\", 'true', 'null', '1e3']", ["01", "1.0", "true", "null", "1e3"]),
        ("[no, yes, on, 'off', n]", ["no", "yes", "on", "off", "n"]),  # booleans in YAML 1.1, but not for DVC
        ("[12:30, 1e, 3a, 0o9, a b]", ["12:30", "1e", "3a", "0o9", "a b"]),
    ],
)
def test_class_names_that_look_like_numbers(tmp_path, written, names):
    params = _load(
        tmp_path, f"evaluate: {{recall_of: {written}}}\ncosts: {{order: {written}}}\ndata: {{classes: {written}}}"
    )
    assert params.evaluate.recall_of == params.costs.order == params.data.classes == names


@pytest.mark.parametrize(
    "text",
    ["01", "007", "+3", "0x10", "0o17", "1_000", "1.0", "1.10", "1e3", ".5", ".nan", "true", "False", "null",
     "2024-01-01"],
)  # fmt: skip
def test_class_names_whose_characters_yaml_loses_are_refused_with_the_form_to_write(tmp_path, text):
    shown = text.lower() if text == "False" else text
    message = (
        rf"{{}}: {re.escape(shown)} is not read as a text; write the name of the class in quotes: '{re.escape(shown)}'"
    )
    for yaml_text, name in (
        (f"evaluate: {{recall_of: [a, {text}]}}", r"evaluate\.recall_of\.1"),
        (f"evaluate: {{recall_floor: {{class: {text}}}}}", r"evaluate\.recall_floor\.class"),
        (f"costs: {{entries: [{{actual: {text}, predicted: b, cost: 1.0}}]}}", r"costs\.entries\.0\.actual"),
        (f"costs: {{entries: [{{actual: b, predicted: {text}, cost: 1.0}}]}}", r"costs\.entries\.0\.predicted"),
        (f"data: {{classes: [{text}, a]}}", r"data\.classes\.0"),
    ):
        with pytest.raises(UdcError, match=message.format(name)):
            _load(tmp_path, yaml_text)
    with pytest.raises(UdcError, match=rf"the key {re.escape(text)} is not read as a text; .*'{re.escape(text)}'"):
        _load(tmp_path, f"costs: {{prior: {{{text}: 0.5, a: 0.5}}}}")


def test_classes_are_keys_by_their_text(tmp_path):
    params = _load(
        tmp_path, "costs: {prior: {3: 0.5, 7: 0.5}, matrix: {no: {no: 0, 'true': 1}, 'true': {no: 2, 'true': 0}}}"
    )
    assert params.costs.prior == {"3": 0.5, "7": 0.5}
    assert params.costs.matrix == {"no": {"no": 0, "true": 1}, "true": {"no": 2, "true": 0}}
    with pytest.raises(UdcError, match="the key '3' is given twice"):
        _load(tmp_path, "costs: {prior: {3: 0.5, 3: 0.5}}")
    # DVC fails on a mapping with integers and texts as keys: '<' not supported between instances of 'str' and 'int'
    with pytest.raises(UdcError, match="the key 3 is not read as a text; put it in quotes: '3'"):
        _load(tmp_path, "costs: {prior: {3: 0.5, '3': 0.5}}")


@pytest.mark.parametrize(
    "name",
    ["3", "01", "1.0", "1e3", "0o17", "0x10", "no", "null", "true", "~", "2024-01-01", "a: b", "12:30", "", " x ",
     "1_000", "é\n"],
)  # fmt: skip
def test_written_class_names_are_read_back_by_every_reader(name):
    text = as_yaml({"names": [name], "prior": {name: 0.5}})
    expected = {"names": [name], "prior": {name: 0.5}}
    assert read_yaml(text) == yaml.safe_load(text) == YAML(typ="safe").load(text) == expected


def test_overrides_use_the_same_rules(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("train: {epochs: 1}\n")
    params = load_params(path, ["evaluate.recall_of=[3]", "costs.entries=[{actual: 3, predicted: 7, cost: 50}]",
                                "train.epochs=2"])  # fmt: skip
    assert params.evaluate.recall_of == ["3"]
    assert (params.costs.entries[0].true, params.costs.entries[0].predicted) == ("3", "7")
    assert params.train.epochs == 2
    with pytest.raises(UdcError, match=r"evaluate\.recall_of\.0: 1\.10 is not read as a text; .* in quotes: '1\.10'"):
        load_params(path, ["evaluate.recall_of=[1.10]"])


def test_values_of_yaml_aliases_do_not_fill_the_memory(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 8)}]" for i in range(12)]
    with pytest.raises(UdcError) as error:
        _load(tmp_path, "\n".join([*lines, "train: *m"]))
    assert "train: got [[[...], [...]" in str(error.value)
    assert len(str(error.value)) < 5000


@pytest.mark.parametrize("text", ["[" * 5000, "seed: 1" + "0" * 5000, "a: &a [*a]", "? [a]\n: 1", "<<: 3"])
def test_yaml_that_cannot_be_read_is_one_message(tmp_path, text):
    with pytest.raises(UdcError, match=r"params\.yaml"):
        _load(tmp_path, text)


@pytest.mark.parametrize(
    "value",
    ["", "x", "text", "3", "-1", "2.5", "1e400", "true", "2024-01-01", "[]", "[1]", "[x, 1.0]", "[[x]]", "{}", "{a: 1}",
     "{a: {b: x}}", "{file: 3}", "[{file: 3}]", "[{x: 1}]"],
)  # fmt: skip
def test_every_wrong_value_of_every_parameter_is_one_line_without_jargon(tmp_path, value):
    for name in parameter_names():
        *sections, key = name.split(".")
        indented = "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
        try:
            _load(tmp_path, f"{indented}{'  ' * len(sections)}{key}: {value}")
        except UdcError as error:
            first, *lines = str(error).splitlines()
            assert first.endswith("params.yaml is not valid:")
            assert lines
            for line in lines:
                assert line.startswith((f"  {name}", f"  {'.'.join(sections)}: ", "  evaluate.")), line
                assert not re.search(
                    r"Input should|\[key\]|constrained|literal\[|function-|dict\[|list\[|Decimal|NoneType", line
                )


def test_one_message_names_all_mistakes(tmp_path):
    with pytest.raises(UdcError) as error:
        _load(tmp_path, "seed: -1\ntrain: {epochs: 0, momentum: 2.0}")
    assert all(name in str(error.value) for name in ("seed", "train.epochs", "train.momentum"))


@pytest.mark.parametrize(("text", "value"), [("1e-05", 1e-5), ("1E3", 1000.0), ("2", 2.0), (".5e-1", 0.05)])
def test_numbers_are_read_as_dvc_writes_them(tmp_path, text, value):
    assert _load(tmp_path, f"train: {{learning_rate: {text}}}").train.learning_rate == value


def test_missing_file():
    with pytest.raises(UdcError, match="no such file"):
        load_params("nowhere/params.yaml")


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("model_type", "model.model_type"),
        ("epochs", "train.epochs"),
        ("train.epochs", "train.epochs"),
        ("seed", "seed"),
    ],
)
def test_short_names(short, full):
    assert full_name(short) == full


@pytest.mark.parametrize(
    ("name", "message"),
    [("depths", "could be any of"), ("epoch", "did you mean epochs"), ("batch_size", "could be any of")],
)
def test_short_names_that_do_not_do(name, message):
    with pytest.raises(UdcError, match=message):
        full_name(name)


@pytest.mark.parametrize(("name", "value"), [("preset", "bar"), ("weights", "microsoft/resnet-19")])
def test_an_unknown_size_names_its_parameter(name, value):
    with pytest.raises(UdcError, match=rf"model\.{name}: no architecture is called '{value}'; there are: resnet-18,"):
        validate_params({"model": {name: value}}, "params.yaml")


def test_overrides_of_one_key_of_a_mapping(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("costs: {actions: null, prior: {a: 0.5, b: 0.5}, refer: 2}\n")
    costs = load_params(path, ["costs.actions.retest=1", "costs.actions.biopsy.a=2", "costs.actions.biopsy.b=3",
                               "costs.prior.a=0.25"]).costs  # fmt: skip
    assert costs.actions == {"retest": 1, "biopsy": {"a": 2, "b": 3}}
    assert costs.prior == {"a": 0.25, "b": 0.5}
    for override, message in (
        (
            "costs.prior.a.x=1",
            r"^costs\.prior\.a\.x=1: the value there is 0\.5, which has no keys; set all of costs\.prior",
        ),
        ("costs.refer.a=1", r"^costs\.refer\.a: no such parameter"),
    ):
        with pytest.raises(UdcError, match=message):
            load_params(path, [override])
