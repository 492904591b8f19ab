"""The one command for a machine with a GPU runs here in its CPU form, and leaves results that can be read."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import profile_kernels
from benchmarks.report.ratios import floor_us
from benchmarks.suite import machine, schema
from benchmarks.suite.schema import Check, Machine, Result, Row
from medmo_kernels import runtime

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/on_gpu.sh"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, runtime.SWITCH: "auto", "OMP_NUM_THREADS": "1"}
    command = [str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)


def test_a_room_runs_and_leaves_results(tmp_path: Path) -> None:
    done = run(str(tmp_path), "giou")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in (tmp_path / "summary.txt").read_text().splitlines()]
    assert [words[:2] for words in lines] == [[f"{name}:", "passed"] for name in ("tests", "doctor", "kernels")]
    doctor = json.loads((tmp_path / "doctor.json").read_text())
    assert doctor["verdicts"] and all(row["passed"] for row in doctor["verdicts"])
    result = schema.read(tmp_path / "result.json")
    ours = {row.subject for row in result.rows if row.way == "ours" and row.status == "timed"}
    assert ours == {"giou", "box_terms", "pairwise_giou", "pairwise_box_terms"}
    assert result.machine.kind == ("cuda" if torch.cuda.is_available() else "cpu")
    folder = f"benchmarks/results/{machine.folder_name(result.machine)}/"
    assert f"cp {tmp_path}/result.json {folder}" in done.stdout
    # Another call goes on with what is there; without a GPU there is nothing to profile, which is said.
    again = run(str(tmp_path), "profiles")
    assert again.returncode == 0 and (tmp_path / "summary.txt").read_text().count("passed") == 4
    if not torch.cuda.is_available():
        assert "no CUDA device" in (tmp_path / "profiles.txt").read_text()
    assert schema.read(tmp_path / "result.json") == result


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    done = run(str(tmp_path), "kernel")
    assert done.returncode == 2 and "neither a stage nor a room" in done.stderr
    assert not (tmp_path / "summary.txt").exists()


def test_all_stages_fit_into_28_minutes_and_calls_into_ten() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    listed = [line.split() for line in text.splitlines() if line.startswith("# ") and line.split()[3:4] == ["s"]]
    limits = {words[1]: int(words[2]) for words in listed}
    assert sum(limits.values()) == 28 * 60
    for name, seconds in limits.items():
        assert f"stage {name} {seconds} " in text or f"bench {name} {seconds} " in text or f"timeout {seconds} " in text
    for call in ("tests doctor", "kernels decode", "train_step grpo_step", "modules recipes profiles"):
        assert f'"{call}"' in text and sum(limits.pop(name) for name in call.split()) <= 600
    assert limits == {}


@pytest.mark.parametrize(
    ("told", "expected"),
    [("", ("unknown", False)), ("0123abcde", ("0123abcde", False)), ("0123abcde-dirty", ("0123abcde", True))],
)
def test_a_copy_without_git_is_told_its_commit(
    told: str, expected: tuple[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(machine.COMMIT_OF_COPY, told)
    monkeypatch.setattr(machine, "ROOT", tmp_path)  # no checkout
    assert machine._commit() == expected
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert machine._commit() == expected


MACHINE = Machine("Test 200", "cuda", 90, "1", "13", 1, 1, 1, {}, "abc1234", False, "2026-01-02T03:04:05+00:00")
TIMED = Row("kernels", "giou", "big", "bfloat16", "forward", "ours", "ours", "timed", checked=Check("truth", 0, 1),
            samples_us=(10.0,), median_us=10.0, p20_us=10.0, p80_us=10.0, bytes=4e6)  # fmt: skip


def changed(subject: str, case: str, median_us: float, **fields: object) -> Row:
    times = {name: median_us for name in ("median_us", "p20_us", "p80_us")}
    return dataclasses.replace(TIMED, subject=subject, case=case, samples_us=(median_us,), **(times | fields))


def test_the_slowest_are_those_furthest_above_their_floor() -> None:
    rows = (
        changed("near", "a", 1010.0, bytes=4e9),
        changed("far", "a", 300.0),
        changed("far", "b", 400.0),
        changed("far", "c", 90.0, direction="backward"),
        changed("products", "a", 150.0, flops=1e11),
        changed("peer's", "a", 9999.0, way="theirs", role="peer"),
        changed("both", "a", 9999.0, direction="forward and backward"),
        changed("uncounted", "a", 9999.0, bytes=0.0),
    )
    ceilings = {"copy_bytes_per_s": 4e12, "matmul_bfloat16_flops_per_s": 1e15}
    found = profile_kernels.slowest(Result(MACHINE, False, ceilings, rows))
    assert [(row.subject, row.case) for row in found] == [("far", "b"), ("far", "c"), ("products", "a")]
    assert floor_us(rows[4], ceilings) == pytest.approx(100.0)


def test_without_ncu_torch_lists_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_kernels.shutil, "which", lambda name: None)
    monkeypatch.setattr(profile_kernels, "call_of", lambda *_: lambda: torch.ones(8) @ torch.ones(8))
    monkeypatch.setattr(profile_kernels, "default_device", lambda: torch.device("cpu"))
    text = profile_kernels.report(TIMED, Result(MACHINE, False, {"copy_bytes_per_s": 4e12}))
    assert text.startswith("giou, big, forward: median 10.0 us, floor 1.0 us\nncu is not installed; torch.profiler")
    assert "aten::dot" in text
