"""What a checkpoint is made of, piece by piece: copies on the host, generators, files' headers, the official folder."""

import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from medmo_core.models import MedMO
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import Lora
from medmo_recipes.training.checkpoints import shard_writer
from medmo_recipes.training.checkpoints.background import Background
from medmo_recipes.training.checkpoints.manifest import CheckpointError
from medmo_recipes.training.checkpoints.official import official_tensors, write_final
from medmo_recipes.training.checkpoints.state import HostCopies, generator_states, set_generators
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.model.kit import load_kit
from medmo_recipes.training.model.lora import is_adapter
from medmo_recipes.training.model.trainable import make_trainable

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


def test_copies_use_their_memory_again_and_leave_constants_alone() -> None:
    copies, weight, frozen = HostCopies(), torch.ones(3), torch.ones(2)
    first = copies.take({"a": weight, "b": frozen}, {"b"})
    weight.add_(1)
    assert first["a"].tolist() == [1, 1, 1] and first["b"].data_ptr() == frozen.data_ptr()
    second = copies.take({"a": weight, "b": frozen}, {"b"})
    assert second["a"].data_ptr() == first["a"].data_ptr() != weight.data_ptr()
    assert second["a"].tolist() == [2, 2, 2]
    for other in (torch.zeros(4), torch.zeros(4, dtype=torch.float64)):  # another shape, then another type
        assert torch.equal(copies.take({"a": other}, ())["a"], other)


def test_generators_go_on_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's too, which is asked for by its device."""
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.tensor([1, 2, 250], dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: asked.append((state.tolist(), device)))
    device = torch.device("cuda", 1)
    states = json.loads(json.dumps(generator_states(device)))
    expected = random.random(), random.gauss(0, 1), torch.rand(2).tolist()
    set_generators(states, device)
    assert (random.random(), random.gauss(0, 1), torch.rand(2).tolist()) == expected
    assert asked == [([1, 2, 250], device)]
    set_generators(states, torch.device("cpu"))
    assert (random.random(), random.gauss(0, 1), torch.rand(2).tolist()) == expected and len(asked) == 1
    assert "cuda" not in generator_states(torch.device("cpu"))


def test_a_save_that_waits_says_whose_files_are_missing(tmp_path: Path) -> None:
    partial = tmp_path / "step-000003"
    partial.mkdir()
    for rank in (0, 2):
        (partial / shard_writer.own_file(rank)).touch()
    told = shard_writer._who_is_missing(partial, 4)
    assert "the files of process 1, 3 are missing" in told and "parallel.timeout_s" in told
    assert "every process wrote its files" in shard_writer._who_is_missing(partial, 1)


def test_a_group_that_falls_apart_is_told_by_its_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fall_apart(*args: Any, **settings: Any) -> None:
        raise RuntimeError("timed out")

    monkeypatch.setattr(shard_writer.dcp, "save", fall_apart)
    writer = shard_writer.ShardWriter(tmp_path, rank=0, own={}, finish=lambda files: None)
    group: Any = SimpleNamespace(size=lambda: 2)
    with pytest.raises(CheckpointError, match="the files of process 0, 1 are missing"):
        shard_writer.write_tensors({}, {}, writer, group)
    with pytest.raises(RuntimeError, match="timed out"):
        shard_writer.write_tensors({}, {}, writer, None)


def test_a_file_says_where_its_shards_begin(tmp_path: Path) -> None:
    """In the words that torch's own reader looks for."""
    tensors = {"model:a": torch.arange(6.0).view(2, 3), "model:b": torch.ones(1, dtype=torch.bfloat16)}
    finished: dict[str, Any] = {}
    writer = shard_writer.ShardWriter(tmp_path / "made", rank=0, own={"x": 1}, finish=finished.update)
    shard_writer.write_tensors(tensors, tensors, writer, None)
    assert sorted(finished) == ["process-0.json", "tensors-0-0.safetensors"]
    with safe_open(tmp_path / "made" / "tensors-0-0.safetensors", "pt") as file:
        metadata = file.metadata()
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118 - no mapping
            name: tensor.tolist() for name, tensor in tensors.items()
        }
    begins = json.loads(metadata["DCP_SHARDING_INFO"])
    assert begins == {"model:a": {"saved_offsets": [0, 0]}, "model:b": {"saved_offsets": [0]}}
    assert (metadata["format"], metadata["DCP_VERSION"]) == ("pt", "1.0")


def test_work_in_the_background_is_one_piece_at_a_time() -> None:
    background, done = Background(), []
    gate = threading.Event()
    background.start(lambda: (gate.wait(10), done.append(1))[1])
    assert not background.failed and done == []
    gate.set()
    background.start(lambda: done.append(2))  # waits for the first
    background.wait()
    assert done == [1, 2]

    def fail() -> None:
        raise ValueError("no room")

    background.start(fail)
    with pytest.raises(ValueError, match="no room"):
        background.start(lambda: done.append(3))
    assert not background.failed, "it was raised"
    background.close()
    assert done == [1, 2]


def test_the_official_folder_has_the_adapters_in_its_weights_and_by_themselves(tmp_path: Path) -> None:
    run = CONFIGS["debug_align"]()
    kit = load_kit(run, "cpu")
    plain = {name: tensor.clone() for name, tensor in official_tensors(kit, ALONE).items()}
    write_final(tmp_path / "plain", kit, ALONE, init="debug")
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
    assert_weights(tmp_path / "plain", plain)

    make_trainable(kit.model, ["all"], Lora(rank=2, targets=("decoder",)))
    with torch.no_grad():
        for name, parameter in kit.model.named_parameters():
            if is_adapter(name):
                parameter.fill_(0.1)
    merged = official_tensors(kit, ALONE)
    assert merged.keys() == plain.keys()
    assert any(not torch.equal(merged[name], plain[name]) for name in plain)
    write_final(tmp_path / "run" / "final", kit, ALONE, init="owner/name")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["adapter", "final"]
    assert_weights(tmp_path / "run" / "final", merged)
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["base_model_name_or_path"] == "owner/name" and adapter["r"] == 2
    settings = json.loads((tmp_path / "run" / "final" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert settings["size"] == {
        "shortest_edge": kit.processor.min_pixels, "longest_edge": kit.processor.max_pixels,
    }  # fmt: skip


def assert_weights(folder: Path, expected: dict[str, Tensor]) -> None:
    own = dict(MedMO.from_pretrained(folder, dtype=next(iter(expected.values())).dtype).named_parameters())
    assert all(torch.equal(own[name], expected[name]) for name in own)
