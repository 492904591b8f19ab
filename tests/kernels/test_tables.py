"""The shipped tables name a back end for every class of shapes; dispatch and `choices` both obey them."""

import importlib
import importlib.util
import itertools
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import medmo_kernels
from medmo_core import doctor
from medmo_kernels import attention, back_ends, box_match, box_reward, giou, patch_embed, qk_norm_rope, runtime, tables
from medmo_kernels.back_ends import served_by
from medmo_kernels.spec import OpSpec, ShapesAlone

ROOMS = sorted(path.parent.name for path in Path(medmo_kernels.__path__[0]).glob(f"*/{tables.TABLE}"))
SPECS = [
    (room, spec) for room in ROOMS for spec in importlib.import_module(f"medmo_kernels.{room}.cases").SPECS
    if spec.shape_class is not None
]  # fmt: skip
PEER = {"device": "Test 200", "commit": "abc1234", "date": "2026-01-02", "ratio": 1.12, "over": "triton"}
GPU = torch.device("cuda", 0)
CONDITIONS = ("head_dim", "vision", "tokens", "mergers", "block_half", "tile_m")
IDS = [spec.name for _, spec in SPECS]


def choices_of(room: str, op: str) -> list[Mapping[str, Any]]:
    return [row for row in tables.table(room)["rows"] if row.get("op") == op]


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything that asks finds a Hopper with Triton; nothing runs there."""
    monkeypatch.delenv(runtime.SWITCH, raising=False)
    monkeypatch.setattr(runtime, "capability", lambda device: 90)
    monkeypatch.setattr(runtime, "triton_refusal", lambda device, dtype: "")
    forget()
    yield
    monkeypatch.undo()
    forget()


def forget() -> None:
    """Empty what remembers choices."""
    back_ends._choose.cache_clear()
    tables.launch_row.cache_clear()
    tables.back_end_row.cache_clear()


def plant(monkeypatch: pytest.MonkeyPatch, room: str, row: Mapping[str, Any]) -> None:
    """Let a room's table hold one more row."""
    shipped = tables.table
    rows = [*shipped(room)["rows"], row]

    def planted(name: str) -> Mapping[str, Any]:
        return MappingProxyType({**shipped(name), "rows": rows}) if name == room else shipped(name)

    monkeypatch.setattr(tables, "table", planted)
    forget()


@pytest.mark.parametrize(("room", "spec"), SPECS, ids=IDS)
def test_every_benchmark_case_has_a_row(room: str, spec: OpSpec) -> None:
    assert spec.shape_class is not None
    for name, size in spec.bench.sizes.items():
        with ShapesAlone():
            arguments = spec.make(size, torch.Generator(), torch.bfloat16)
        assert spec.shape_class(arguments) in tables.shapes(room, spec.name), name


@pytest.mark.parametrize(("room", "spec"), SPECS, ids=IDS)
def test_rows_name_back_ends_that_the_op_has(room: str, spec: OpSpec) -> None:
    rows = choices_of(room, spec.name)
    assert len({(row["capability"], row["shape"]) for row in rows}) == len(rows)
    for row in rows:
        assert row["backend"] in spec.back_ends
        assert set(row) <= {"capability", "op", "shape", "backend", "reason", "measured"}
        assert "measured" not in row or set(row["measured"]) == set(PEER)
    assert {row["shape"] for row in rows if row["capability"] == 80} == set(tables.shapes(room, spec.name))


@pytest.mark.parametrize("room", ROOMS)
def test_one_row_serves_a_launch(room: str) -> None:
    """Two configurations of a kernel for one device differ in a condition, so that no launch meets both."""
    rows = [row for row in tables.table(room)["rows"] if "kernel" in row]
    for one, other in itertools.combinations(rows, 2):
        same = {name for name in one.keys() & other.keys() - set(tables.SETTINGS) if one[name] != other[name]}
        assert same or one["capability"] != other["capability"], (one, other)
        assert set(one) - set(tables.SETTINGS) <= {"kernel", "bits", *CONDITIONS}, one


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(("room", "spec"), SPECS, ids=IDS)
def test_a_measured_peer_is_named_with_its_measurement(
    room: str, spec: OpSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spec.choices is not None
    monkeypatch.setattr(runtime, "has_native", lambda: True)
    shape, peer = tables.shapes(room, spec.name)[0], spec.back_ends[-1]
    before = {choice.backend for label, choice in spec.choices(GPU).items() if label.endswith(shape)}
    row = {"capability": 90, "op": spec.name, "shape": shape, "backend": peer, "measured": PEER}
    plant(monkeypatch, room, row)
    (found,) = [choice for label, choice in spec.choices(GPU).items() if label.endswith(shape)]
    assert before == {"triton"} and found.backend == peer
    assert found.reason == "measured: 1.12x as fast as triton, Test 200, commit abc1234, 2026-01-02"
    assert dict(found.refused)["triton"] == f"the table names {peer}"
    monkeypatch.setattr(doctor, "choices", lambda device: {spec.name: spec.choices(GPU) if spec.choices else {}})
    text = "\n".join(doctor.report(doctor.diagnose()))  # laid out in columns, over several lines
    assert [word for word in (peer, *found.reason.split()) if word not in text.split()] == []


@pytest.mark.usefixtures("hopper")
def test_an_unmeasured_row_says_so() -> None:
    for room, spec in SPECS:
        unmeasured = {row["shape"] for row in choices_of(room, spec.name) if "measured" not in row}
        for shape in unmeasured if room != "attention" else ():
            details = ("",) if room == "projector" else ()
            assert "not measured yet" in back_ends.explain(spec.name, shape, GPU, torch.bfloat16, *details).reason


@pytest.mark.usefixtures("hopper")
def test_a_peer_that_is_absent_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    room = importlib.import_module("medmo_kernels.attention.op")
    monkeypatch.setattr(room.peers, "_missing", lambda backend: f"{backend} is not installed")
    shape = "bidirectional, head_dim 72, rotary"
    plant(monkeypatch, "attention", {"capability": 90, "op": "attention", "shape": shape, "backend": "xformers"})
    choice = room.choices(GPU)[shape]
    assert choice.backend == "triton" and dict(choice.refused) == {"xformers": "xformers is not installed"}


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = importlib.import_module("medmo_kernels.attention.peers")
    monkeypatch.setattr(runtime, "triton_version", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for refusal in (runtime.triton_refusal.__wrapped__(GPU, torch.bfloat16), peers._missing.__wrapped__("xformers")):
        assert refusal.endswith(' is not installed: pip install "medmo[cuda]"')


def vectors(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def a_few_heads() -> tuple[torch.Tensor, ...]:
    return vectors(3, 2, 8), vectors(3, 1, 8), torch.ones(8), torch.ones(8), vectors(3, 4), vectors(3, 4)


def an_image() -> tuple[torch.Tensor, ...]:
    return torch.zeros(2, 48, dtype=torch.uint8), vectors(5, 3, 4, 4)


def two_boxes() -> tuple[torch.Tensor, ...]:
    return vectors(2, 4), vectors(2, 4), torch.tensor([0, 2]), torch.tensor([0, 2])


CALLS = {
    "box_match": (lambda: box_match(*two_boxes()), "box_match", "box_match_triton", "fp32, fp16, bf16"),
    "box_reward": (lambda: box_reward(*two_boxes()), "box_reward", "box_reward_triton", "fp32, fp16, bf16"),
    "giou": (lambda: giou(vectors(2, 4), vectors(2, 4)), "giou", "aligned_forward", "fp32, fp16, bf16"),
    "patch_embed": (lambda: patch_embed(*an_image()), "patch_embed", "forward", "at most 8192 patches"),
    "qk_norm_rope": (lambda: qk_norm_rope(*a_few_heads()), "qk_norm_rope", "forward", "at most 64 tokens"),
}


class Ran(Exception):
    """The Triton code was reached."""


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("op", CALLS)
def test_the_row_decides_what_runs(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain form runs where the table names it, the kernels where it does not, on tensors said to be on a GPU."""
    pytest.importorskip("triton")
    call, room, launcher, shape = CALLS[op]
    launchers = importlib.import_module(f"medmo_kernels.{room}.launch")

    def launched(*_: Any, **__: Any) -> None:
        raise Ran

    monkeypatch.setattr(launchers, launcher, launched)
    monkeypatch.setattr(back_ends, "_on_host", lambda mode, device: False)
    forget()
    with pytest.raises(Ran):
        call()
    (spec,) = [spec for _, spec in SPECS if spec.name == op]
    row = {"capability": 90, "op": op, "shape": shape, "backend": spec.back_ends[-1], "measured": PEER}
    plant(monkeypatch, room, row)
    is_absent = row["backend"] == "native" and not runtime.has_native()
    with pytest.raises(Ran) if is_absent else nullcontext():
        call()
    with served_by(op, "triton"), pytest.raises(Ran):
        call()


@pytest.mark.usefixtures("hopper")
def test_decode_attention_goes_to_sdpa_for_full_caches_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    room = importlib.import_module("medmo_kernels.decode_attention.op")
    query, key, value = vectors(2, 4, 8).to("meta"), vectors(2, 2, 5, 8).to("meta"), vectors(2, 2, 5, 8).to("meta")
    lengths = torch.tensor([5, 3], dtype=torch.int32).to("meta")
    asked: list[int] = []
    monkeypatch.setattr(room, "to_own", lambda query, *_: asked.append(query.shape[0]) or query)
    monkeypatch.setattr(back_ends, "_on_host", lambda mode, device: False)
    forget()
    with served_by("decode_attention", "sdpa"):
        room._decode_attention(query, key, value, None, None, None, None, None, None, 1.0, None)
        with pytest.raises(NotImplementedError, match="full caches without prompts"):
            room._decode_attention(query, key, value, lengths, None, None, None, None, None, 1.0, None)
    assert asked == [2]


def test_a_back_end_that_cannot_serve_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.SWITCH, raising=False)
    bounds = torch.tensor([0, 3], dtype=torch.int32)
    calls = {
        "box_match": CALLS["box_match"][0],
        "attention": lambda: attention(vectors(3, 1, 64), vectors(3, 1, 64), vectors(3, 1, 64), bounds, True),
        "giou": CALLS["giou"][0],
    }
    for op, call in calls.items():
        with served_by(op, "triton"), pytest.raises(NotImplementedError, match=f"{op} by triton: no CUDA"):
            call()
        call()


def test_torch_compile_does_not_stop_at_a_table(hopper: None) -> None:
    """A graph that reads a table for the first time stays whole."""

    def chosen(x: torch.Tensor) -> torch.Tensor:
        choice = back_ends.choose("projector", "fp32", GPU, torch.float32, "")
        return x + 1 if choice.backend == "eager" else x - 1

    tables.table.cache_clear()
    compiled = torch.compile(chosen, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == 1


@pytest.mark.parametrize(("room", "spec"), SPECS, ids=IDS)
def test_every_class_that_a_table_gives_to_triton_is_compiled(room: str, spec: OpSpec) -> None:
    """In 16 bits, or where the class has fp32 in its name in that: else a routed kernel would ship unseen."""
    routed = {row["shape"] for row in choices_of(room, spec.name) if row["backend"] == "triton"}
    held = set()
    for name in spec.compile.sizes | spec.compile.classes:
        for _, size, dtype in spec.compile.calls(name):
            with ShapesAlone():
                shape = spec.shape_class(spec.make(size, torch.Generator(), dtype)) if spec.shape_class else ""
            held |= {shape} if dtype != torch.float32 or "fp32" in shape else set()
    assert routed - held == set()
