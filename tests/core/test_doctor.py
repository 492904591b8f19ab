"""The doctor names every op, its back end and why; knows the cliffs; verifies; and writes it all down."""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import medmo_kernels
from medmo_core import __main__ as command
from medmo_core import cliffs, doctor
from medmo_kernels import runtime
from medmo_kernels.back_ends import Choice
from medmo_kernels.spec import OpSpec

ROOMS = sorted(path.parent.name for path in Path(medmo_kernels.__path__[0]).glob("*/cases.py"))
SPECS = [spec for room in ROOMS for spec in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS]


@pytest.fixture
def one_op(monkeypatch: pytest.MonkeyPatch) -> OpSpec:
    """The doctor sees one op only, the cheapest."""
    spec = next(spec for spec in SPECS if spec.name == "giou")
    show(spec, monkeypatch)
    return spec


def show(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "rooms", lambda: iter([("giou", [spec])]))


def test_every_op_says_what_serves_it_and_what_was_refused() -> None:
    told = doctor.diagnose()["ops"]
    for ops in told.values():
        assert set(ops) == {spec.name for spec in SPECS} | {"norms and losses"}
        for classes in ops.values():
            assert classes
            for choice in classes.values():
                assert choice["backend"] not in ("", "unknown") and choice["reason"]
                assert all(name and reason for name, reason in choice["refused"])


def test_an_op_that_cannot_say_is_a_problem(one_op: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    show(dataclasses.replace(one_op, choices=None), monkeypatch)
    assert "PROBLEM: this op does not say" in "\n".join(doctor.report(doctor.diagnose()))


def test_the_text_is_readable() -> None:
    lines = list(doctor.report(doctor.diagnose()))
    assert max(map(len, lines)) <= 120
    assert lines[-1] == "research use only"
    assert all(any(line.startswith(f"  {spec.name} ") for line in lines) for spec in SPECS)


def test_classes_served_alike_share_a_row(one_op: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, slow = Choice("triton", "fast", (("cudnn", "slower " * 40),)), Choice("sdpa", "no kernel")
    told = {"head_dim 64": fast, "head_dim 96": slow, "head_dim 72": fast}
    show(dataclasses.replace(one_op, choices=lambda device: told), monkeypatch)
    text = "\n".join(doctor.report(doctor.diagnose()))
    assert text.count("not cudnn") == 1
    rows = [line.split() for line in text.splitlines() if "head_dim" in line]
    assert rows[0] == ["giou", "head_dim", "64", "triton", "fast"] and rows[1][:3] == ["head_dim", "72", "not"]
    assert rows[2] == ["head_dim", "96", "sdpa", "no", "kernel"]
    assert max(map(len, text.splitlines())) <= 120


def test_an_absent_package_comes_with_its_extra(one_op: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "pydicom" else "1.0")
    text = "\n".join(doctor.report(doctor.diagnose()))
    assert 'absent: pip install "medmo[medical]"' in text
    assert text.count("absent:") == 1


@pytest.mark.parametrize(
    ("torch_version", "cudnn", "has_cuda", "level", "word"),
    [
        ("2.9.1+cu128", 91002, True, "PROBLEM", "50,000"),
        ("2.9.1+cpu", None, False, "note", "accelerate"),
        ("2.8.0", 90900, True, "PROBLEM", "wrong"),
        ("2.11.0+cu130", 91300, True, "note", "several times"),
        ("2.90.0", 91300, True, "note", "several times"),
    ],
)
def test_conv3d(torch_version: str, cudnn: int | None, has_cuda: bool, level: str, word: str) -> None:
    finding = cliffs.conv3d_finding(torch_version, cudnn, has_cuda)
    assert finding.level == level and word in finding.text and "medmo_core.accelerate" in finding.text


@pytest.mark.parametrize(
    ("interpreter", "mode", "has_cuda", "levels"),
    [
        (False, "auto", True, []),
        (True, "auto", True, ["PROBLEM"]),
        (True, "auto", False, ["note"]),
        (False, "reference", True, ["warning"]),
        (False, "triton", False, ["warning", "PROBLEM"]),
        (True, "triton", False, ["note", "warning"]),
    ],
)
def test_switches_left_set(interpreter: bool, mode: str, has_cuda: bool, levels: list[str]) -> None:
    assert [finding.level for finding in cliffs.environment_findings(interpreter, mode, has_cuda)] == levels


@pytest.mark.parametrize("value", ["1", "true", "ON", "0", "", None])
def test_the_interpreter_flag_is_read_as_triton_reads_it(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    assert runtime.interpreter_is_set() == (value in ("1", "true", "ON"))


def test_old_or_absent_triton() -> None:
    assert cliffs.triton_finding("3.6.0", True) is None
    for version in ("3.5.1", None):
        finding = cliffs.triton_finding(version, True)
        assert finding is not None and finding.level == "PROBLEM"


def test_flags_that_change_numbers() -> None:
    assert cliffs.numerics_findings(False, False) == []
    assert [finding.level for finding in cliffs.numerics_findings(True, True)] == ["warning", "note"]


@pytest.mark.parametrize(("precision", "expected"), [("tf32", True), ("ieee", False)])
def test_tf32_is_seen_however_it_was_set(precision: str, expected: bool) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = precision
        assert cliffs.uses_tf32() is expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_findings_follow_the_machine(one_op: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.SWITCH, "reference")
    monkeypatch.setattr(torch, "__version__", "2.9.0+cu128")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    levels = [finding.level for finding in cliffs.findings()]
    assert levels == sorted(levels, key=["PROBLEM", "warning", "note"].index)
    text = "\n".join(doctor.report(doctor.diagnose()))
    assert "50,000" in text and "MEDMO_KERNELS=reference overrules" in text


def test_verify_passes_and_tells_the_numbers(one_op: OpSpec, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--verify"]) == 0
    shown = capsys.readouterr().out
    assert all(f"giou                cpu     {dtype}" in shown for dtype in ("float64", "float32", "bfloat16"))
    assert "FAILED" not in shown and "ok: gradient of" in shown


def test_bf16_is_verified_where_a_device_has_it(one_op: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op with kernels promises it; the stock interpreter would fail it, and so would an old GPU."""
    assert all(torch.bfloat16 in spec.tolerance for spec in SPECS if spec.kernel_sizes)

    def dtypes() -> list[str]:
        return [verdict["dtype"] for verdict in doctor.verdicts()]

    with_bf16 = dtypes()
    assert "bfloat16" in with_bf16
    monkeypatch.setattr(cliffs, "has_bfloat16", lambda device: False)
    assert dtypes() == [dtype for dtype in with_bf16 if dtype != "bfloat16"]


@pytest.mark.parametrize(
    ("device", "capability", "interpreter", "mode", "expected"),
    [
        ("cpu", 90, False, "auto", True),
        ("cpu", 90, True, "auto", True),
        ("cpu", 90, True, "triton", False),
        ("cuda:1", 80, False, "triton", True),
        ("cuda:1", 75, False, "auto", False),
        ("cuda:1", 90, True, "auto", False),
    ],
)
def test_which_devices_have_bf16(
    device: str, capability: int, interpreter: bool, mode: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "capability", lambda device: capability)
    monkeypatch.setattr(runtime, "interpreter_is_set", lambda: interpreter)
    monkeypatch.setattr(runtime, "mode", lambda: mode)
    assert cliffs.has_bfloat16(torch.device(device)) is expected
    told = [finding.text for finding in cliffs.bfloat16_findings([torch.device("cpu"), torch.device(device)])]
    assert len(told) == (device != "cpu" and capability < 80) and all("cuda:1 has no bf16" in text for text in told)


def fails(spec: OpSpec) -> Any:
    return lambda **kwargs: spec.function(**kwargs) * 1.5


def crashes(spec: OpSpec) -> Any:
    def crash(**kwargs: Any) -> Any:
        raise RuntimeError("no such kernel")

    return crash


def is_nan(spec: OpSpec) -> Any:
    return lambda **kwargs: spec.function(**kwargs) * float("nan")


@pytest.mark.parametrize(
    ("broken", "said"), [(fails, "off by"), (crashes, "RuntimeError: no such kernel"), (is_nan, "nan")]
)
def test_a_wrong_op_fails_the_verification(
    broken: Any, said: str, one_op: OpSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show(dataclasses.replace(one_op, function=broken(one_op)), monkeypatch)
    assert command.main(["--verify"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown and said in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 120


def test_only_the_rooms_asked_for_are_verified(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--verify", "--rooms", "box_reward"]) == 0
    checked = capsys.readouterr().out.partition("each op against")[2]
    assert "box_reward" in checked and "giou" not in checked
    with pytest.raises(ValueError, match="--rooms box_rewrad: no such room; did you mean 'box_reward'"):
        command.main(["--rooms", "box_rewrad"])
    with pytest.raises(ValueError, match=r"--json my\.jsonl: expected the name of a JSON file"):
        command.main(["--json", "my.jsonl"])


def test_json_is_there_after_each_verdict(one_op: OpSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "doctor.json"

    def hang(dtype: torch.dtype) -> None:
        if dtype == list(one_op.tolerance)[1]:
            raise KeyboardInterrupt

    honest = doctor.verify_op
    monkeypatch.setattr(doctor, "verify_op", lambda spec, dtype, device: hang(dtype) or honest(spec, dtype, device))
    with pytest.raises(KeyboardInterrupt):
        command.main(["--verify", "--json", str(path)])
    assert [verdict["op"] for verdict in json.loads(path.read_text(encoding="utf-8"))["verdicts"]] == ["giou"]


def test_json_holds_everything(one_op: OpSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "doctor.json"
    assert command.main(["--verify", "--json", str(path)]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert set(written) == {"machine", "versions", "ops", "findings", "verdicts"}
    assert written["versions"]["torch"] == torch.__version__
    assert list(doctor.report(written, written["verdicts"])) == capsys.readouterr().out.splitlines()
    tried = {verdict["dtype"] for verdict in written["verdicts"]}
    assert tried == {str(dtype).removeprefix("torch.") for dtype in one_op.tolerance}
    capsys.readouterr()
    assert command.main(["--verify", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["ops"] == written["ops"] and len(printed["verdicts"]) == len(written["verdicts"])
