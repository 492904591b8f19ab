"""The kernel level of the suite: which ways are listed, what passes as right, and what is timed."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks import bench_kernels as bench
from benchmarks.peers import EXACT, PEERS, Peer, attention
from benchmarks.suite import schema
from benchmarks.suite.comparison import Comparison, measure
from benchmarks.suite.schema import Row
from benchmarks.suite.timing import time_ways
from medmo_kernels import verify
from medmo_kernels.attention.reference import visible_pairs
from medmo_kernels.spec import Bench, OpSpec

graphs_are_kept = bench.graphs_are_kept
ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPECS = {spec.name: spec for spec in bench.specs()}
EVERYWHERE = {"ours", "reference", "reference, compiled"}
SCIPY = "SciPy through the host"
OTHERS = {
    "patch_embed": {"transformers, Conv3d", "transformers, linear form", "linear form, compiled"},
    "attention": {"torch varlen, FA2", "FA3, varlen", "FlexAttention", "xformers", "SDPA, document by document"},
    "qk_norm_rope": {"transformers", "Liger, RMSNorm twice and rope"},
    "qk_norm_rope_": {"transformers", "Liger, RMSNorm twice and rope"},
    "projector": {"transformers, merger by merger"},
    "decode_attention": {"SDPA, prompts copied per row"},
    "box_match": {SCIPY, "torch-linear-assignment"},
    "assign": {SCIPY, "torch-linear-assignment"},
    "box_reward": {SCIPY, "torch-linear-assignment", "pycocotools' IoU and SciPy"},
}


def small(spec: OpSpec, size: Any, **changes: Any) -> Comparison:
    """Compare an op, or one that was changed, at next to no cost."""
    comparison = bench.comparison_of(replace(spec, **changes), "small", size, torch.float32, CPU)
    return replace(comparison, seconds=0.0)


def rows_of(comparison: Comparison, way: str) -> list[Row]:
    return [row for row in measure(comparison, CPU) if row.way == way]


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_every_room_is_listed_with_all_its_peers(device: torch.device) -> None:
    found = bench.comparisons(device, short=False)
    assert {SPECS[c.subject].function.__module__.split(".")[1] for c in found} == {
        path.parent.name for path in (ROOT / "kernels/medmo_kernels").glob("*/op.py")
    }
    for comparison in found:
        ways = {way.name: way.absent for way in comparison.ways}
        served = {f"ours, by {backend}" for backend in SPECS[comparison.subject].back_ends if device is CUDA}
        assert set(ways) == EVERYWHERE | OTHERS.get(comparison.subject, set()) | served
        if device is CPU:
            assert ways["reference, compiled"]
            assert all(ways[name] for name in ("xformers", "torch varlen, FA2") if name in ways)
    names = [comparison.name for comparison in found]
    assert len(set(names)) == len(names)


def test_the_first_case_of_every_op_comes_before_the_second_of_any() -> None:
    names = [comparison.subject for comparison in bench.comparisons(CUDA, short=False)]
    firsts = list(dict.fromkeys(names))
    assert names[: len(firsts)] == firsts and firsts[: len(bench.ORDER)] == list(bench.ORDER)
    assert [c.subject for c in bench.comparisons(CPU, short=True)] == list(
        dict.fromkeys(c.subject for c in bench.comparisons(CPU, short=False))
    )


def test_a_wrong_kernel_has_no_figure() -> None:
    """A figure of an op that computes something else must not be published."""
    giou = SPECS["giou"]
    rows = measure(small(giou, 7, function=lambda **a: giou.function(**a) + 0.1), CPU)
    ours = [row for row in rows if row.way == "ours"]
    assert [row.status for row in ours] == ["wrong"] * 3
    assert all("float64 reference" in row.reason and not row.median_us for row in ours)
    assert [row.status for row in rows if row.way == "reference"] == ["timed"] * 3


@pytest.mark.parametrize("fault", ["weight dropped from the gradient", "mean taken as constant"])
def test_a_kernel_that_is_wrong_backward_alone_has_no_figure(fault: str) -> None:
    spec = SPECS["qk_norm_rope"]
    size = (5, 4, 2, 64, 1.0)
    assert {row.status for row in rows_of(small(spec, size), "ours")} == {"timed"}
    assert {row.status for row in rows_of(small(spec, size, function=spec.faults[fault]), "ours")} == {"wrong"}


def test_a_wrong_peer_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = SPECS["giou"].reference
    monkeypatch.setitem(PEERS, "giou", {"right": Peer(reference), "wrong": Peer(lambda **a: 1.01 * reference(**a))})
    found = {(row.way, row.status) for row in measure(small(SPECS["giou"], 7), CPU)}
    assert {("right", "timed"), ("wrong", "wrong")} <= found


@pytest.mark.parametrize("name", sorted(EXACT))
def test_what_stands_for_a_loop_is_itself_compared_with_the_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"assign": (2, 3, 4, 0.0), "box_match": ([(3, 4)] * 2, "giou"), "box_reward": ([(3, 4)] * 2, "iou", {})}
    against = {row.way: row.checked for row in measure(small(SPECS[name], size[name]), CPU) if row.checked}
    assert against["ours"].against.startswith("SciPy in float64")
    assert against[SCIPY].against.startswith("float64 reference at the sizes of the tests")
    wrong = Peer(lambda **a: next(iter(SPECS[name].faults.values()))(**a))
    monkeypatch.setitem(EXACT, name, wrong)
    monkeypatch.setitem(PEERS, name, {SCIPY: wrong})
    assert {row.status for row in rows_of(small(SPECS[name], size[name]), SCIPY)} == {"wrong"}


def test_a_case_that_was_cut_down_says_so() -> None:
    rows = measure(small(SPECS["giou"], 64, bench=Bench(checked_size=lambda size: 7)), CPU)
    (row, *_) = [row for row in rows if row.way == "ours"]
    assert row.checked is not None and "cut down to fit" in row.checked.against
    assert {row.status for row in rows if row.way == "reference"} == {"absent"}
    spec = SPECS["attention"]
    for size in spec.bench.sizes.values():
        checked = spec.bench.checked_size(size)
        assert sum(checked.lengths) <= 2048 + len(size.lengths) and len(checked.lengths) == len(size.lengths)
        assert checked[1:] == size[1:]


def test_not_a_number_is_the_worst_error() -> None:
    spec = SPECS["qk_norm_rope"]

    def not_a_number(**a: Any) -> tuple[Tensor, Tensor]:
        query, key = spec.function(**a)
        return query, key * math.nan

    (row, *_) = rows_of(small(spec, (5, 4, 2, 64, 1.0), function=not_a_number), "ours")
    assert row.status == "wrong" and "nan" in row.reason


def test_backward_runs_no_forward_and_forward_makes_no_graph() -> None:
    calls: list[bool] = []

    def counted(**arguments: Any) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return giou.function(**arguments)

    giou = SPECS["giou"]
    spec = replace(giou, function=counted)
    made = bench.calls_of(spec, Peer(counted), bench.Inputs.of(spec, 7, torch.float32, CPU))
    calls.clear()
    first, second = made["backward"](), made["backward"]()
    assert calls == [] and isinstance(first, tuple) and len(first) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # type: ignore[arg-type]
    for direction in ("forward", "forward and backward"):
        made[direction]()
    assert calls == [False, True]


def test_compiled_code_runs_backward_more_than_once(graphs_are_kept: None) -> None:
    spec, size = SPECS["qk_norm_rope"], (5, 4, 2, 64, 1.0)
    peer = Peer(torch.compile(spec.reference, backend="aot_eager", dynamic=False))
    made = bench.ready(spec, peer, bench.Inputs.of(spec, size, torch.float32, CPU), bench.PEER_BOUND)
    assert made.checked.passed
    first, second = made.calls["backward"](), made.calls["backward"]()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # type: ignore[call-overload]


def test_a_form_in_place_keeps_the_arguments_of_the_others() -> None:
    spec = SPECS["qk_norm_rope_"]
    inputs = bench.Inputs.of(spec, (3, 4, 2, 64, 1.0), torch.float32, CPU)
    before = inputs.timed["query"].clone()
    calls = bench.calls_of(spec, Peer(spec.function), inputs)
    once = calls["forward"]()
    assert torch.equal(inputs.timed["query"], before)
    query = once[0].clone()  # type: ignore[index]
    assert not torch.equal(calls["forward"]()[0], query), "the second call must turn what the first one left"  # type: ignore[index]


def test_gradients_of_a_merger_are_its_own() -> None:
    """Each merger's tensors are leaves: no stack of all gradients is built inside the clock."""
    spec = SPECS["projector"]
    inputs = bench.Inputs.of(spec, (7, 32, 128, 24, (False, True)), torch.float32, CPU)
    gradients = bench.calls_of(spec, Peer(spec.function), inputs)["backward"]()
    assert isinstance(gradients, tuple) and len(gradients) == 2 * len(spec.differentiable)


def test_memory_on_the_cpu_is_counted() -> None:
    calls: dict[str, Callable[[], object]] = {"doubled": lambda: torch.ones(1000).mul(2), "nothing": lambda: None}
    counted = time_ways(calls, CPU, repeats=1, budget_s=0, counts_cpu_memory=True)
    assert 8000 <= counted["doubled"].peak_bytes < 9000 and counted["nothing"].peak_bytes == 0
    assert time_ways(calls, CPU, repeats=1, budget_s=0)["doubled"].peak_bytes == 0


@pytest.mark.parametrize("size", list(SPECS["attention"].sizes))
def test_flex_attention_is_given_the_right_mask(size: str) -> None:
    arguments = verify.arguments_of(SPECS["attention"], SPECS["attention"].sizes[size], torch.float32)
    bounds, causal, prompts = (arguments[name] for name in ("cu_seqlens", "causal", "prompt_of"))
    count = arguments["query"].shape[0]
    seen = attention.flex_mask(bounds, causal, prompts, count)
    token = torch.arange(count)
    found = seen(token[:0], token[:0], token[:, None], token[None, :])
    assert torch.equal(found, visible_pairs(arguments["query"], bounds, causal, prompts))


def test_flex_attention_computes_the_same_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_flex_attend", flex_attention)
    monkeypatch.setattr(attention, "_block_mask", create_block_mask)
    spec = replace(SPECS["attention"], differentiable=())  # on the CPU it has no backward
    arguments = verify.arguments_of(spec, spec.sizes["prompts, rotary"], torch.float32)
    verify.check(spec, arguments, PEERS["attention"]["FlexAttention"])


def test_one_room_runs_through_the_collector(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    chosen = ["bench_kernels.py", "--short", "-k", "[giou", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *chosen, "--out", str(tmp_path / "result.json")],
        cwd=ROOT, capture_output=True, text=True, env=environment, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = schema.read(tmp_path / "result.json")
    assert result.short and {row.subject for row in result.rows} == {"giou"}
    ours = [row for row in result.rows if row.way == "ours"]
    assert [row.direction for row in ours] == ["forward", "backward", "forward and backward"]
    assert all(row.status == "timed" and row.median_us > 0 and row.peak_bytes > 0 for row in ours)
    assert [(row.bytes > 0, row.flops > 0) for row in ours] == [(True, True), (False, False), (False, False)]
    absent = {row.way: row.reason for row in result.rows if row.status == "absent"}
    if not torch.cuda.is_available():
        assert absent == {"reference, compiled": "runs on a GPU only"}
