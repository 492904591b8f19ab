"""The `medmo` command: every door opens, mistakes are told in one line, and what ends early ends quietly."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from medmo_core.errors import InputError
from medmo_recipes import cli
from medmo_recipes.cli import COMMANDS, FORMER_NAMES, build_parser, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["--help"])
    assert exit_status.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert "Research use only" in shown
    assert main([]) == 0
    assert capsys.readouterr().out == shown, "no words at all: the same help"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main([name, "--help"])
    assert exit_status.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_help_and_version_wait_for_no_heavy_library() -> None:
    """In one fresh process: every page of help, the version, a command and a setting that there are not."""
    script = """
import contextlib, io, sys
from medmo_recipes.cli import COMMANDS, main
from medmo_recipes.settings.stage import STAGES
import medmo_core.__main__
pages = [["--help"], *([name, "--help"] for name in COMMANDS), *(["train", stage, "--help"] for stage in STAGES)]
for words in [*pages, ["--version"], [], ["no_such"], ["train", "align", "train.stps=3"]]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(words)
        except SystemExit:
            pass
    heavy = {"torch", "transformers", "scipy", "matplotlib"} & sys.modules.keys()
    assert not heavy, (words, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_names_ours_and_torchs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["--version"])
    assert exit_status.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("medmo ") and ", torch 2." in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trian", "did you mean `medmo train`?"),
        ("Evaluate", "did you mean `medmo evaluate`?"),
        ("doctr", "did you mean `medmo doctor`?"),
        ("qqqq", "there are: quickstart, train"),
        ("trai\x1b[31mn", r"no command 'trai\x1b[31mn'; did you mean `medmo train`?"),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "\x1b" not in error


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


@pytest.mark.parametrize("name", ["", "sheet.gif", "folder.png"])
def test_a_contact_sheet_is_a_png_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.png").mkdir()
    assert main(["embedded", "--out", str(tmp_path / name)]) == 2
    assert "expected the name of a PNG file" in capsys.readouterr().err


def test_every_module_has_a_main() -> None:
    assert all(callable(importlib.import_module(command.module).main) for command in COMMANDS.values())
    assert build_parser().prog == "medmo"


def let_doctor(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Put `act` in the place of what `medmo doctor` does."""
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: SimpleNamespace(main=act))


def test_what_others_wrote_cannot_move_the_cursor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(words: object) -> NoReturn:
        raise InputError("sample 'a\x1b[2J\u202eb': no image\nsecond line")

    let_doctor(monkeypatch, fail)
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "medmo doctor: sample 'a\\x1b[2J\\u202eb': no image\nsecond line\n"


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(words: object) -> NoReturn:
        raise KeyboardInterrupt

    let_doctor(monkeypatch, interrupt)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "\nmedmo doctor: interrupted\n"


def test_a_broken_pipe_of_another_kind_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: object) -> NoReturn:
        raise BrokenPipeError("between two processes")

    let_doctor(monkeypatch, fail)
    with pytest.raises(BrokenPipeError, match="between two processes"):
        main(["doctor"])


TALKATIVE = """
import types
from medmo_recipes import cli
cli.importlib.import_module = lambda name: types.SimpleNamespace(main=lambda words: print("word " * SIZE))
raise SystemExit(cli.main(["doctor"]))
"""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (TALKATIVE.replace("SIZE", "9"), 141),  # noticed when all is flushed at the end
        (TALKATIVE.replace("SIZE", "99999"), 141),  # noticed in the middle
        ('import sys, medmo_recipes.cli as c; sys.exit(c.main(["--help"]))', 0),  # argparse takes no notice
    ],
)
def test_a_reader_who_leaves_is_no_error(code: str, status: int) -> None:
    """As `| head -0` does: the reading end is closed before anything is printed."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, "")


def test_help_behind_a_stage_is_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    usage = "usage: medmo train"
    for words, expected in ((["instruct", "--help"], f"{usage} instruct"), (["--help"], usage)):
        with pytest.raises(SystemExit) as exit_status:
            main(["train", *words])
        assert exit_status.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith(expected) and ("configs: debug_instruct" in shown) == ("instruct" in words)
