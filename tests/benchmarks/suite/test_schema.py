"""Result files are checked when read: a figure without a passed check, or with a contradiction, does not get in."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite import schema
from benchmarks.suite.schema import Check, Machine, Result, ResultError, Row
from medmo_recipes.settings.section import ConfigError

MACHINE = Machine("a test", "cpu", 0, "", "", 1, 2, 2, {"torch": "1"}, "abc", False, "2026-01-01T00:00:00+00:00")
TIMED = Row("kernels", "giou", "7", "float32", "forward", "ours", "ours", "timed", checked=Check("truth", 0.5, 1.0),
            samples_us=(3.0, 1.0, 2.0), median_us=2.0, p20_us=1.0, p80_us=3.0, flops=1e9)  # fmt: skip
ABSENT = replace(TIMED, way="peer", role="peer", status="absent", reason="not installed", checked=None,
                 samples_us=(), median_us=0.0, p20_us=0.0, p80_us=0.0)  # fmt: skip
RESULT = Result(MACHINE, False, {"copy_bytes_per_s": 1e10}, (TIMED, ABSENT), ("decode, batch 64",))


def stored(tmp_path: Path, **changes: Any) -> Path:
    """Write a result with the first row's fields changed, by hand."""
    values = json.loads(json.dumps(asdict(RESULT)))
    values["rows"][0].update(changes)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "device/result.json"
    schema.write(RESULT, path)
    assert schema.read(path) == RESULT
    assert list(path.parent.iterdir()) == [path], "nothing else is left in the folder"
    assert len([line for line in path.read_text().splitlines() if '"level"' in line]) == 2, "a line for each row"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checked": None}, "a check that passed"),
        ({"checked": {"against": "truth", "error": 1.5, "bound": 1.0}}, "a check that passed"),
        ({"checked": {"against": "truth", "error": float("nan"), "bound": 1.0}}, "a check that passed"),
        ({"status": "wrong"}, "why it is wrong"),
        ({"status": "wrong", "reason": "off by 3"}, "no figure"),
        ({"median_us": 9.0}, "p20 to p80"),
        ({"samples_us": []}, "at least one duration"),
        ({"median_us": "2"}, "median_us = '2': expected float"),
        ({"level": "nuts"}, "one of 'kernels'"),
        ({"medain_us": 2.0}, "did you mean 'result.rows[0].median_us'"),
    ],
)
def test_a_contradiction_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = stored(tmp_path, **changes)
    with pytest.raises(ResultError) as refused:
        schema.read(path)
    assert said in str(refused.value) and str(path) in str(refused.value)


def test_rows_cannot_be_made_wrong_either() -> None:
    with pytest.raises(ConfigError, match="a check that passed"):
        replace(TIMED, checked=Check("truth", 2.0, 1.0))


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 0, "machine": {}, "short": true}'])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ResultError, match=r"other\.json"):
        schema.read(path)
