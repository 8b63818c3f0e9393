"""The command line: help by group, completion scripts, parameters explained; nothing heavy is imported for help."""

import argparse
import subprocess
import sys

import pytest

from udc_model.cli import COMMANDS, build_parser, main


def test_help_lists_every_command_in_its_group():
    text = build_parser().format_help()
    for command in COMMANDS:
        assert f"  {command.name}" in text.partition(f"{command.group}:\n")[2]
    assert text.index("Build:") < text.index("Decide:") < text.index("Compare:") < text.index("Share:")


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "udc_model.cli", "--help"], text=True, check=True,
                          capture_output=True)  # fmt: skip
    assert not any(f"| {name}\n" in done.stderr for name in ("torch", "mlflow", "sklearn", "matplotlib", "pandas"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_commands(shell, capsys):
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(command.name in script for command in COMMANDS)


def test_bash_accepts_the_completion_script():
    script = subprocess.run([sys.executable, "-m", "udc_model.cli", "--print-completion", "bash"], text=True,
                            capture_output=True, check=True).stdout  # fmt: skip
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_params_explains_and_refuses(capsys, caplog):
    assert main(["params", "schedule"]) == 0
    assert "values:  cosine" in capsys.readouterr().out
    assert main(["params"]) == 0
    assert "train.learning_rate" in capsys.readouterr().out
    assert main(["params", "train.lerning_rate"]) == 1
    assert "did you mean train.learning_rate?" in caplog.text


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["summary", "--wrong"])
    assert "unknown argument(s): --wrong" in capsys.readouterr().err


def test_every_argument_has_help():
    parser = build_parser()
    (subparsers,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for name, sub in subparsers.choices.items():
        for action in sub._actions:
            assert action.help, f"udc {name} {action.dest}"


@pytest.mark.parametrize("command", ["app", "serve", "ui"])
@pytest.mark.parametrize("port", ["70000", "-1", "x"])
def test_a_port_that_cannot_be_is_refused(command, port, capsys):
    with pytest.raises(SystemExit):
        main([command, f"--port={port}"])
    assert f"--port: {port}: must be a whole number from 0 (any free port) to 65535" in capsys.readouterr().err


def test_a_server_needs_a_process(caplog):
    assert main(["serve", "--workers", "-1"]) == 1
    assert "--workers: got -1; at least 1 is needed" in caplog.text


@pytest.mark.parametrize("arguments", [["inspect", "x"], ["run"], ["tune"], ["decide"]])
@pytest.mark.parametrize("option", ["-S", "--set", "--set-param"])
def test_settings_have_the_same_names_everywhere(arguments, option):
    options = build_parser().parse_args([*arguments, option, "a=1", option, "b=2"])
    assert options.settings == ["a=1", "b=2"]
    assert build_parser().parse_args(["run"]).settings == []  # the list is not shared


def test_a_report_of_inspect_replaces_no_other_file(tmp_path, caplog):
    archive = tmp_path / "data.zip"
    archive.write_text("x")
    assert main(["inspect", str(tmp_path), "--report", str(archive)]) == 1
    assert "data.zip: the name of the file must end in .html" in caplog.text
    assert archive.read_text() == "x"
