"""The memory estimate: within a tenth of what torch counts in a step, and what it says fits one GPU."""

import dataclasses

import pytest
import torch

from benchmarks import bench_memory as bench
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import ConfigError, Lora, RunConfig
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.trainable import make_trainable
from medmo_recipes.training.optim.adam_8bit import QuantisedAdamW
from medmo_recipes.training.optim.optimizer import RULES, Optimizer
from medmo_recipes.training.sizing.activations import BatchShape, stages
from medmo_recipes.training.sizing.dry_run import device_of, dry_run, estimate_memory
from medmo_recipes.training.sizing.memory import Memory, estimate, hidden_matrices, state_bytes

TOLERANCE = 0.1
CASES = [*bench.SMALL, *bench.FROZEN, *bench.SHARDED, bench.OTHER[0]]


def check(estimated: Memory, counted: int) -> None:
    assert abs(estimated.total / counted - 1) <= TOLERANCE, (estimated, counted)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_estimate_is_near_what_torch_counts(case: bench.Case) -> None:
    check(*bench.compare(case))


def test_a_forgotten_tensor_is_noticed() -> None:
    """Counting the blocks as computed again, which keeps a quarter as much, or without the optimiser's state."""
    case = next(case for case in bench.SMALL if case.name == "tiny, nothing")
    estimated, counted = bench.compare(case)
    model, _ = case.model()
    again = dataclasses.replace(case, recompute="all").config()
    with pytest.raises(AssertionError):
        check(estimate(model, again, BatchShape.of(case.batch(model)), device="cpu"), counted)
    with pytest.raises(AssertionError):
        check(dataclasses.replace(estimated, parts={**estimated.parts, "optimiser": 0}), counted)


def test_profiler_and_tracker_agree() -> None:
    """Each is the oracle of some cases."""
    case = dataclasses.replace(bench.SMALL[0], kind="adamw")
    counts = []
    for peak in (bench.tracked_peak, bench.profiled_peak):
        model, mode = case.model()
        optimizer = Optimizer(model, case.config().optim, 10)
        counts.append(peak(model, optimizer, case.batch(model), 1, mode))
    assert counts[0] == pytest.approx(counts[1], rel=0.01)


@pytest.mark.parametrize("kind", RULES)
def test_state_is_counted_to_the_byte(kind: str) -> None:
    case = bench.Case("tiny", "tiny", dtype="bfloat16", kind=kind)
    model, _ = case.model()
    optimizer = Optimizer(model, case.config().optim, 10)
    state = {key: t for key, t in optimizer.state_tensors().items() if not key.startswith("steps:")}
    exact = sum(t.numel() * t.element_size() for t in state.values())
    matrices = hidden_matrices(model)
    assert exact == sum(state_bytes(p, kind, is_matrix=id(p) in matrices) for p in model.parameters())
    assert RULES["adamw_8bit"] is QuantisedAdamW


@pytest.mark.parametrize("name", bench.ON_ONE_GPU)
def test_what_is_said_to_fit_fits(name: str) -> None:
    """8B on 141 GB, 4B on 80 GB with every weight trained: 10^9 bytes, and 3 of them for what is not counted."""
    config, room, changes = bench.ON_ONE_GPU[name]
    memory = bench.planned(config, changes)
    assert memory.device == "cuda"
    assert memory.total < (room - 3) * 1e9
    assert memory.parts["decoder"] > 0 and memory.parts["working"] > 0


def test_fp32_state_of_8b_does_not_fit_and_the_dry_run_says_so() -> None:
    """The same run with optim.kind=adamw; the text names what decides the memory."""
    config, room, changes = bench.ON_ONE_GPU["8B, all weights, on 141 GB"]
    assert bench.planned(config, {**changes, "optim": {"kind": "adamw"}}).total > room * 1e9
    text = dry_run(CONFIGS[config]().change(**changes)).text
    assert "ESTIMATED, not measured, for CUDA with liger-kernel" in text and "GB) in the backward pass of" in text
    assert "model.recompute_text=all model.recompute_vision=all optim.kind=adamw_bf16 parallel.shard=false" in text
    assert "as documents of one image of data.max_pixels" in text


def test_dry_run_of_token_budgets_and_adapters() -> None:
    config = CONFIGS["debug_instruct"]().change(
        train={"tokens_per_batch": 128, "batches_per_step": 3, "pack_buffer": 8}, lora={"rank": 2}
    )
    text = dry_run(config).text
    assert "lora.rank=2" in text and "and a pass of 128 tokens" in text
    assert "tokens per step: at most 384 (3 passes of 128 over 1 process(es)" in text
    assert "for the CPU" in text


def test_reinforce_learns_from_completions() -> None:
    """Eight completions of 1,024 tokens in groups of four share two prompts of 576 visual tokens and 256 of text."""
    config = CONFIGS["medmo_8b_reinforce"]().change(
        train={"micro_batch": 8}, data={"max_pixels": 768 * 768, "share_prefixes": True}
    )
    kit = load_kit(config, "meta")
    make_trainable(kit.model, ["all"], Lora())
    memory, shape = estimate_memory(config, kit, None, 1)
    assert (shape.tokens, shape.learned) == (2 * (576 + 256) + 8 * 1024, 8 * 1024)
    assert shape.patches == {"qwen3_vl": 2 * 2304}
    alone = estimate_memory(config.change(data={"share_prefixes": False}), kit, None, 1)
    assert alone[1].tokens == 8 * (576 + 256 + 1024)
    assert memory.total < alone[0].total


def test_dry_run_refuses_what_the_run_would() -> None:
    with pytest.raises(ConfigError, match="optim.kind=adamw_bf16 rounds bfloat16"):
        dry_run(CONFIGS["debug_instruct"]().change(optim={"kind": "adamw_bf16"}))


def test_sharding_divides_what_is_sharded() -> None:
    config = CONFIGS["medmo_8b_align"]()
    kit = load_kit(config, "meta")
    make_trainable(kit.model, ["all"], Lora())
    alone, eight = (estimate_memory(config, kit, None, processes)[0] for processes in (1, 8))
    assert eight.parts["optimiser"] == pytest.approx(alone.parts["optimiser"] / 8, rel=1e-6)
    assert eight.parts["weights"] == pytest.approx(alone.parts["weights"] / 8, rel=1e-6)
    pairs = estimate_memory(config.change(parallel={"replicas": 2}), kit, None, 8)[0]
    assert pairs.parts["weights"] == pytest.approx(alone.parts["weights"] / 4, rel=1e-6)
    # A frozen tower stays whole on every process.
    make_trainable(kit.model, ["decoder"], Lora())
    tower = sum(p.numel() for p in kit.model.model.visual.parameters())
    frozen = estimate_memory(config, kit, None, 8)[0]
    assert frozen.parts["weights"] == pytest.approx((alone.parts["weights"] - 2 * tower) / 8 + 2 * tower, rel=1e-6)


def test_cuda_keeps_less_than_the_cpu() -> None:
    """Its norms keep no fp32 copies, its gated unit no third factor, its attention no rotated copies of patches."""
    model = bench.Case("tiny", "tiny", dtype="bfloat16").model()[0]
    shape = BatchShape(tokens=512, learned=128, patches={"qwen3_vl": 576})
    kept = {}
    for device in ("cpu", "cuda"):
        found = stages(model, shape, device=device, width=2, recompute_text="nothing", recompute_vision="nothing",
                       dense_logits=2**24, fused_head=device == "cuda")  # fmt: skip
        kept[device] = {stage.name: stage.kept for stage in found}
    text = model.config.text
    dim, hidden, tokens = text.hidden_size, text.intermediate_size, shape.tokens
    # Two norms: 8 bytes a number against 2; the third factor: 2.
    assert kept["cpu"]["layer 0"] - kept["cuda"]["layer 0"] == tokens * (2 * 6 * dim + 2 * hidden)
    vision = model.config.vision.hidden_size
    assert kept["cpu"]["qwen3_vl 0"] - kept["cuda"]["qwen3_vl 0"] == 576 * 2 * 2 * vision


def test_the_planned_device() -> None:
    def device(**changes: dict[str, str]) -> str:
        return device_of(RunConfig(stage="align").change(**changes))

    assert device(train={"device": "cpu"}, model={"dtype": "bfloat16"}) == "cpu"
    assert device(train={"device": "cuda"}) == "cuda"
    if not torch.cuda.is_available():
        assert device() == "cpu" and device(model={"dtype": "bfloat16"}) == "cuda"
