"""A checkpoint is read into shards: each process builds on meta and reads its own rows; random weights are alike."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from medmo_core.models.medmo import MedMO
from medmo_core.models.official import read as read_module
from medmo_recipes.configs import CONFIGS
from medmo_recipes.settings.run_config import ConfigError, RunConfig
from medmo_recipes.training.distributed.sharding import prepare
from medmo_recipes.training.distributed.shards import whole_tensors
from medmo_recipes.training.distributed.world import connect
from medmo_recipes.training.model.kit import is_filled_later, load_kit
from medmo_recipes.training.model.trainable import make_trainable


class CountedFile:
    """A safetensors file that remembers the bytes of everything read from it."""

    def __init__(self, file: Any, reads: list[int]) -> None:
        self.file, self.reads = file, reads

    def _count(self, tensor: Tensor) -> Tensor:
        self.reads.append(tensor.nbytes)
        return tensor

    def get_tensor(self, name: str) -> Tensor:
        return self._count(self.file.get_tensor(name))

    def get_slice(self, name: str) -> "CountedSlice":
        return CountedSlice(self, self.file.get_slice(name))


class CountedSlice:
    """A tensor of such a file, read in part."""

    def __init__(self, file: CountedFile, rows: Any) -> None:
        self.file, self.rows = file, rows

    def __getitem__(self, rows: slice) -> Tensor:
        return self.file._count(self.rows[rows])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every read of weights."""
    counted: list[int] = []
    opened = read_module.opened

    @contextmanager
    def counting(path: Path) -> Iterator[CountedFile]:
        with opened(path) as file:
            yield CountedFile(file, counted)

    monkeypatch.setattr(read_module, "opened", counting)
    return counted


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied model of the debug size in bfloat16, in the official layout."""
    folder = tmp_path_factory.mktemp("checkpoint") / "final"
    kit = load_kit(CONFIGS["debug_align"]().change(model={"dtype": "bfloat16"}), "cpu")
    kit.model.save_pretrained(folder, tokenizer=kit.tokenizer, profile=kit.profile)
    return folder


def sharded(folder: Path, **model: Any) -> RunConfig:
    return CONFIGS["debug_align"]().change(model={"init": str(folder), **model}, parallel={"shard": True})


@pytest.mark.parametrize(("world_size", "trainable"), [(2, "all"), (3, "decoder")])
def test_each_process_reads_its_own_rows(
    checkpoint: Path, reads: list[int], run_processes: Callable[..., Any], world_size: int, trainable: str
) -> None:
    config = sharded(checkpoint, trainable=(trainable,))
    stored = MedMO.from_pretrained(checkpoint).state_dict()
    reads.clear()

    def load() -> tuple[list[int], int, dict[str, Tensor]]:
        with connect("cpu", shard=True) as world:
            kit = load_kit(config, world.device)
            assert all(parameter.is_meta for parameter in kit.model.parameters()) and not reads
            make_trainable(kit.model, config.model.trainable)
            prepare(kit.model, config, world)
            assert kit.model.head_weight is kit.model.decoder.embed_tokens.weight
            assert {p.dtype for p in kit.model.parameters()} == {torch.float32}
            held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in kit.model.parameters())
            return list(reads), held, whole_tensors(kit.model, world)

    answers = run_processes(load, world_size)
    whole = answers[0][2]
    assert whole.keys() == stored.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, stored[name].float()), name
    total = sum(tensor.numel() for tensor in stored.values())
    tower = sum(tensor.numel() for name, tensor in stored.items() if name.startswith("model.visual."))
    shared = tower if trainable == "decoder" else 0  # a frozen tower is whole on each process
    for read, held, _ in answers:
        assert sum(read) == 2 * held  # bfloat16, and not a byte more than is kept
        assert held <= shared + (total - shared) * 1.1 / world_size
    assert sum(held for _, held, _ in answers) == total + (world_size - 1) * shared


def test_the_same_weights_as_one_process(checkpoint: Path, run_processes: Callable[..., Any]) -> None:
    """Read whole, read in shards and drawn from the seed: the models of one process and of two are equal."""
    random = CONFIGS["debug_align"]().change(parallel={"shard": True})
    expected = [load_kit(c.change(parallel={"shard": False}), "cpu").model for c in (sharded(checkpoint), random)]

    def load() -> None:
        with connect("cpu", shard=True) as world:
            for config, model in zip((sharded(checkpoint), random), expected, strict=True):
                kit = load_kit(config, world.device)
                assert is_filled_later(config) == next(kit.model.parameters()).is_meta == (config is not random)
                prepare(kit.model, config, world)
                for name, tensor in whole_tensors(kit.model, world).items():
                    assert torch.equal(tensor, model.get_parameter(name)), name

    run_processes(load)


def test_what_is_made_whole_first(checkpoint: Path) -> None:
    config = sharded(checkpoint)
    assert is_filled_later(config)
    for change in ({"parallel": {"shard": False}}, {"model": {"encoder": "siglip2"}}, {"lora": {"rank": 2}}):
        assert not is_filled_later(config.change(**change))


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_read(
    checkpoint: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sharded(checkpoint)
    with connect("cpu", shard=True) as world:
        kit = load_kit(config, world.device)
        kit.model.lm_head = torch.nn.Linear(2, 2, device="meta")
        with pytest.raises(ValueError, match="1 missing: lm_head.bias|2 missing: lm_head.bias"):
            prepare(kit.model, config, world)
    assert not reads


def test_settings_that_need_shards() -> None:
    for setting in ({"replicas": 2}, {"compute_dtype": "bfloat16"}, {"blank_images": True}):
        with pytest.raises(ConfigError, match="without parallel.shard=true"):
            CONFIGS["debug_align"]().change(parallel=setting)
        CONFIGS["debug_align"]().change(parallel={**setting, "shard": True})
