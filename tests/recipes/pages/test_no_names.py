"""A patient's name in a DICOM header leaves no trace in a run, an evaluation or an answer."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from medmo_recipes import cli

pydicom = pytest.importorskip("pydicom")
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small.dcm"
SECRET = "Zzyzx"


def traces(folder: Path, ignore: Path) -> list[str]:
    """Files below `folder` that hold the name, in any case."""
    needle = SECRET.lower().encode()
    files = [p for p in folder.rglob("*") if p.is_file() and p != ignore]
    return [str(p) for p in files if needle in p.read_bytes().lower()]


def test_the_search_finds_a_planted_name(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(f'{{"patient": "{SECRET.upper()}"}}')
    assert len(traces(tmp_path, tmp_path / "scan.dcm")) == 1


def test_train_evaluate_and_generate_name_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    scan = tmp_path / "scan.dcm"
    shutil.copy(BUNDLED, scan)
    header = pydicom.dcmread(scan)
    header.PatientName, header.PatientID = f"{SECRET}^Quillon", f"{SECRET}77"
    header.StudyDescription, header.InstitutionName = f"Follow-up of {SECRET}", f"{SECRET} Clinic"
    header.save_as(scan)
    assert traces(tmp_path, tmp_path) == [str(scan)]
    lines = [
        {"id": f"{split}-{kind}", "image": "scan.dcm", "question": "Where?", "split": split, "group": split} | answer
        for split in ("train", "test")
        for kind, answer in {
            "vqa": {"answer": "here"},
            "box": {"boxes": [{"label": "spine", "xyxy": [8, 8, 30, 40]}]},
        }.items()
    ]
    data = tmp_path / "my.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run = tmp_path / "run"
    small = ["train.steps=1", "train.docs_per_step=2", "train.micro_batch=2", f"train.out_dir={run}"]
    asked = ["--image", str(scan), "--prompt", "Where?", "--out", str(tmp_path / "a.png")]
    commands = [
        ["train", "instruct", "--config", "debug_instruct", "--data", str(data), *small],
        ["evaluate", "--checkpoint", str(run), "--data", str(data), "--out", str(tmp_path / "scores")],
        ["generate", "--checkpoint", str(run), *asked],
    ]
    for command in commands:
        assert cli.main(command) == 0
    shown = capfd.readouterr()
    assert SECRET.lower() not in (shown.out + shown.err + caplog.text).lower()
    assert traces(tmp_path, scan) == []
    assert (tmp_path / "a.png").is_file() and (tmp_path / "scores/predictions.jsonl").is_file()
