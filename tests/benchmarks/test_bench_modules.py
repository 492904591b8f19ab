"""The benchmark of modules and the model: every way computes the same, or there is no figure."""

import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import bench_modules
from benchmarks.modules import continuing, decode, decoder_block, forward, prefill, projector, train_step, vision_tower
from benchmarks.modules.documents import DocumentSizes, for_transformers, make_batch
from benchmarks.modules.judged import Judge
from benchmarks.peers import transformers_model
from benchmarks.peers.transformers_model import Flavour, build, flavours
from benchmarks.suite import schema
from benchmarks.suite.comparison import OURS, Comparison, measure
from benchmarks.suite.schema import Row
from medmo_core.models.medmo import MedMO

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = DocumentSizes("debug", (24, 24), 4, 6)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("short", [False, True], ids=["whole", "short"])
def test_listing_is_cheap_and_complete(device: torch.device, short: bool) -> None:
    began = time.process_time()
    found = bench_modules.comparisons(device, short=short)
    assert time.process_time() - began < 10
    assert list(dict.fromkeys(comparison.subject for comparison in found)) == list(bench_modules.ORDER)
    assert len({comparison.name for comparison in found}) == len(found)
    for comparison in found:
        assert comparison.ways[0].name == OURS and len(comparison.ways) > 1
        assert comparison.work.keys() == set(comparison.directions)
        assert all(work.flops > 0 and work.items > 0 for work in comparison.work.values())
    if device == GPU and not short:
        batches = {(c.subject, way.name) for c in found for way in c.ways if "batch 64" in c.name}
        assert ("decode", "transformers, static cache, compiled") in batches and ("prefill", OURS) in batches


def test_every_flavour_is_absent_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert {reason for _, reason in flavours(GPU)} == {"transformers not installed"}


def prompted(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    """Return the comparison of a module that continues prompts, at the smallest size."""
    prompts = replace(SMALL, texts=(24,) * 3)
    monkeypatch.setattr(module, "prompts_of", lambda count, device: (prompts, torch.float32, "debug"))
    (found,) = module.comparisons(CPU, short=True)
    return found


def flipped(inputs: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Turn the images that transformers' model sees round."""

    def other(*arguments: Any, **options: Any) -> dict[str, Any]:
        honest = inputs(*arguments, **options)
        return honest | {"pixel_values": honest["pixel_values"].flip(0)}

    return other


def plant_pixels(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give transformers' model other images."""
    monkeypatch.setattr(module, "for_transformers", flipped(module.for_transformers))


def plant_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue transformers' model by other tokens."""
    advance = continuing.TheirContinuing.advance
    monkeypatch.setattr(continuing.TheirContinuing, "advance", lambda self, tokens: advance(self, tokens + 1))


def plant_gradient(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale the gradients of transformers' part, and nothing else."""
    honest = module.their_side

    def other(*arguments: Any) -> Any:
        side = honest(*arguments)
        for parameter in side.parameters.values():
            parameter.register_hook(lambda gradient: 1.001 * gradient)
        return side

    monkeypatch.setattr(module, "their_side", other)


def plant_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give transformers' tower other images where there are several: at the size that is timed."""
    honest = vision_tower.their_side

    def other(model: Any, flavour: Flavour, images: tuple[torch.Tensor, torch.Tensor]) -> Any:
        patches, grids = images
        return honest(model, flavour, (patches.flip(0) if len(grids) > 1 else patches, grids))

    monkeypatch.setattr(vision_tower, "their_side", other)


def rows_of(comparison: Comparison) -> tuple[list[Row], list[Row]]:
    """Measure ours and the first other that can run, as briefly as can be; returns the rows of each."""
    ways = [way for way in comparison.ways if not way.absent][:2]
    rows = measure(replace(comparison, ways=ways, seconds=0.0, repeats=1), CPU)
    ours = [row for row in rows if row.way == OURS]
    return ours, [row for row in rows if row.way != OURS]


CASES: dict[str, tuple[Callable[[pytest.MonkeyPatch], Comparison], Callable[[pytest.MonkeyPatch], None]]] = {
    "train_step": (lambda m: train_step.comparisons(CPU, short=True)[0], partial(plant_pixels, train_step)),
    "forward": (lambda m: forward.comparisons(CPU, short=True)[0], partial(plant_pixels, forward)),
    "prefill": (partial(prompted, prefill), partial(plant_pixels, continuing)),
    "decode": (partial(prompted, decode), plant_token),
    "projector": (lambda m: projector.comparisons(CPU, short=True)[0], partial(plant_gradient, projector)),
    "vision_tower": (lambda m: vision_tower.comparisons(CPU, short=True)[0], plant_timed),
    "decoder_block": (lambda m: decoder_block.comparisons(CPU, short=True)[0], partial(plant_gradient, decoder_block)),
}


@pytest.mark.parametrize("name", CASES)
def test_all_compute_the_same_or_have_no_figure(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    make, plant = CASES[name]
    made: list[weakref.ref[MedMO]] = []
    initialise = MedMO.init_weights

    def counted(model: MedMO) -> None:
        if not model.head_weight.is_meta:
            made.append(weakref.ref(model))
        initialise(model)

    monkeypatch.setattr(MedMO, "init_weights", counted)
    ours, theirs = rows_of(make(monkeypatch))
    gc.collect()
    assert len(made) == (2 if name == "train_step" else 1), "the ways share our model, but for those that train it"
    assert not any(model() for model in made), "nothing is kept"
    assert ours and theirs and {row.status for row in (*ours, *theirs)} == {"timed"}
    plant(monkeypatch)
    ours, theirs = rows_of(make(monkeypatch))
    assert {row.status for row in ours} == {"timed"}
    assert {row.status for row in theirs} == {"wrong"} and "allowed" in theirs[0].reason
    if plant is plant_timed:
        assert "from ours" in theirs[0].reason


def test_ours_is_held_to_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = continuing.OurContinuing.advance
    monkeypatch.setattr(continuing.OurContinuing, "advance", lambda self, tokens: advance(self, tokens + 1))
    ours, _ = rows_of(prompted(decode, monkeypatch))
    assert [row.status for row in ours] == ["wrong"] and "float64" in ours[0].reason


def test_what_is_timed_is_compared_with_ours() -> None:
    truth = [torch.tensor([1.0, 2.0], dtype=torch.float64)]
    right, off = [torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 2.1])]
    judge = Judge(truth, right, torch.float32)
    assert judge.check(right, off, ours=True).passed
    assert not judge.check(right, right, ours=False).passed and judge.check(right, off, ours=False).passed
    assert not judge.check(off, off, ours=False).passed
    assert not judge.check([right[0] * float("nan")], off, ours=False).passed


def test_packed_and_filled_rows_have_our_loss() -> None:
    pytest.importorskip("transformers")
    documents = DocumentSizes("debug", (40, 24, 30), 4, 6)
    torch.manual_seed(0)
    model = MedMO.from_config("debug").eval()
    theirs = build(model, Flavour("stock"), dtype=torch.float32, train=False)
    batch = make_batch(documents)
    with torch.no_grad():
        truth = float(model.loss(batch))
        for packed in (False, True):
            inputs = for_transformers(batch, model.config, torch.float32, packed=packed)
            assert float(theirs(**inputs, use_cache=False).loss) == pytest.approx(truth, rel=1e-5)


def test_a_static_cache_continues_like_a_growing_one() -> None:
    pytest.importorskip("transformers")
    prompts = continuing.Prompts(SMALL, CPU, torch.float32)
    model = build(prompts.model, Flavour("stock"), dtype=torch.float32, train=False)
    model.get_compiled_call = lambda config: model  # the compiler takes longer than the rest of these tests
    tokens = prompts.tokens(4, prompts.batches[0])
    static, growing = (prompts.begin_theirs(model, prompts.batches[0], room)() for room in (4, 0))
    with torch.no_grad():
        expected = continuing.continued(growing, tokens)
        for _ in range(2):  # and once more from the prompts on
            torch.testing.assert_close(continuing.continued(static, tokens), expected)


def test_liger_stays_with_its_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    names = vars(pytest.importorskip("transformers.models.qwen3_vl.modeling_qwen3_vl"))
    module = ModuleType("liger_kernel.transformers")

    def apply(model: Any) -> None:  # what Liger does: names of the module, and forwards of the instance's norms
        honest = names["apply_rotary_pos_emb"]
        names["apply_rotary_pos_emb"] = lambda q, k, cos, sin: honest(2 * q, k, cos, sin)

    module.apply_liger_kernel_to_qwen3_vl = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    torch.manual_seed(0)
    model, batch = MedMO.from_config("debug").eval(), make_batch(SMALL)
    inputs = for_transformers(batch, model.config, torch.float32, packed=False)
    before = names["apply_rotary_pos_emb"]
    stock = build(model, Flavour("stock"), dtype=torch.float32, train=False)
    liger = build(model, Flavour("Liger", liger=True), dtype=torch.float32, train=False)
    assert names["apply_rotary_pos_emb"] is before
    with torch.no_grad():
        plain, other = (float(each(**inputs, use_cache=False).loss) for each in (stock, liger))
        assert plain == pytest.approx(float(model.loss(batch)), rel=1e-5) and other != pytest.approx(plain, rel=1e-5)


def test_a_liger_that_does_not_fit_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    module = ModuleType("liger_kernel.transformers")

    def apply(model: Any) -> None:
        raise ImportError("no such name")

    module.apply_liger_kernel_to_qwen3_vl = apply  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    theirs = build(MedMO.from_config("debug"), Flavour("stock"), dtype=torch.float32, train=False)
    with pytest.raises(NotImplementedError, match="does not fit"):
        transformers_model.add_liger(theirs)


def test_a_short_run_leaves_a_result(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = ["bench_modules.py", "-k", "projector", "--short", "--out", str(tmp_path / "x.json")]
    done = subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=200, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = schema.read(tmp_path / "x.json").rows
    ours = [row for row in rows if row.way == OURS]
    assert [row.direction for row in ours] == ["forward", "backward", "forward and backward"]
    assert all(row.status == "timed" and row.subject == "projector" and row.flops > 0 for row in ours)
