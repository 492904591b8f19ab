"""The `medmo` command: every door opens, and mistakes are told in one line."""

import importlib
from pathlib import Path

import pytest

from medmo_recipes.cli import COMMANDS, FORMER_NAMES, build_parser, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["--help"])
    assert exit_status.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert "Research use only" in shown


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "doctor"])
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main([name, "--help"])
    assert exit_status.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["trian"])
    assert exit_status.value.code == 2
    assert "trian" in capsys.readouterr().err


def test_a_former_name_runs_the_command_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert FORMER_NAMES == {"sample": "embedded"}
    assert main(["sample", "--out", str(tmp_path / "sheet.png")]) == 0
    assert capsys.readouterr().err == "medmo sample is now called medmo embedded\n"
    assert (tmp_path / "sheet.png").stat().st_size > 100_000


def test_a_missing_file_is_one_line_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nowhere.jsonl"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere.jsonl" in error and "expected a JSONL file" in error


def test_every_module_has_a_main() -> None:
    assert all(callable(importlib.import_module(command.module).main) for command in COMMANDS.values())
    assert build_parser().prog == "medmo"
