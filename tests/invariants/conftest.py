"""Toy models, documents and training steps, in one process or laid over several."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from medmo_core.batch import IGNORE_INDEX, Batch, mrope_position_ids
from medmo_core.data.document import Document
from medmo_core.data.packing import pack
from medmo_core.data.records.sample import Sample
from medmo_core.models import PRESETS, MedMO
from medmo_recipes.settings.run_config import Optim, RunConfig
from medmo_recipes.training.distributed.sharding import prepare
from medmo_recipes.training.distributed.world import World
from medmo_recipes.training.loading.skipped import SkippedSamples
from medmo_recipes.training.loop.fit import Minimise, StepResult, train_step
from medmo_recipes.training.optim.optimizer import Optimizer

CONFIG = PRESETS["debug"].override(vocab_size=60, bos_token_id=34, eos_token_id=36, vision_start_token_id=43)
CONFIG = CONFIG.override(vision_end_token_id=44, image_token_id=46, video_token_id=47)
TEXT = 30
"""Text tokens are below it."""


class Toy:
    """Models of the debug size in float64, and documents of random tokens and pixels."""

    config = CONFIG

    def model(self, *, tied: bool = True) -> MedMO:
        """Return a model whose weights are large enough for every token to matter."""
        torch.manual_seed(0)
        return MedMO.from_config(CONFIG, tie_word_embeddings=tied, initializer_range=0.15, dtype=torch.float64)

    def prompt(self, name: str, grids: Sequence[tuple[int, int]] = (), *, text: int = 5, seed: int = 0) -> Document:
        """Return a document without labels: `text` tokens, then each image of (rows, columns) patches and 2 tokens."""
        rng = np.random.default_rng([seed, len(grids), text])
        ids = rng.integers(0, TEXT, text).tolist()
        for rows, columns in grids:
            ids += [CONFIG.vision_start_token_id, *[CONFIG.image_token_id] * (rows * columns // 4)]
            ids += [CONFIG.vision_end_token_id, *rng.integers(0, TEXT, 2).tolist()]
        thw = np.array([[1, rows, columns] for rows, columns in grids], dtype=np.int64)
        positions = mrope_position_ids(
            torch.tensor(ids), torch.from_numpy(thw) if grids else None, merge_size=2, image_token_id=46,
            video_token_id=47,
        )  # fmt: skip
        num_patches = sum(rows * columns for rows, columns in grids)
        return Document(
            input_ids=np.array(ids),
            labels=np.full(len(ids), IGNORE_INDEX),
            position_ids=positions.numpy(),
            patches={"qwen3_vl": rng.integers(0, 256, (num_patches, 768), dtype=np.uint8)} if grids else {},
            image_grid_thw={"qwen3_vl": thw} if grids else {},
            sample=Sample(id=name, task="vqa"),
            visual_end=max((i + 1 for i, token in enumerate(ids) if token == CONFIG.image_token_id), default=0),
        )

    def extend(self, prompt: Document, question: int, answer: int, *, seed: int = 0) -> Document:
        """Return a prompt followed by random tokens: a question, not learned, and an answer, learned."""
        count = question + answer
        new = np.random.default_rng([seed, question, answer]).integers(0, TEXT, count)
        positions = np.broadcast_to(prompt.position_ids.max() + 1 + np.arange(count), (3, count))
        assert prompt.labels is not None
        return replace(
            prompt,
            input_ids=np.concatenate([prompt.input_ids, new]),
            labels=np.concatenate([prompt.labels, np.full(question, IGNORE_INDEX), new[question:]]),
            position_ids=np.concatenate([prompt.position_ids, positions], axis=1),
        )

    def gradients(self, model: MedMO, batches: Sequence[Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss of batches, each passed by itself, and the gradient of every parameter."""
        model.zero_grad()
        losses = []
        for batch in batches:
            loss = model.loss(batch, reduction="sum")
            loss.backward()
            losses.append(loss.detach())
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == {name for name, _ in model.named_parameters()}
        return torch.stack(losses).sum(), found

    def assert_equals_separate_rows(self, model: MedMO, items: Sequence[Document], batches: Sequence[Batch]) -> None:
        """Check loss and every gradient of some packing against the items one by one."""
        expected, expected_gradients = self.gradients(model, [pack([item]) for item in items])
        loss, gradients = self.gradients(model, batches)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0.0)
        for name, gradient in expected_gradients.items():
            assert gradient.norm() > 0, name
            assert (gradients[name] - gradient).norm() <= 1e-11 * gradient.norm(), name


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture
def blind_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which a batch no longer refuses what contradicts itself."""
    return lambda: monkeypatch.setattr(Batch, "_check_documents", lambda self: None)


ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class Training:
    """The toy model at work as `fit` works it, alone or as one of several processes."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy

    def batches(self) -> dict[str, Batch]:
        """Return two batches with images and two of text alone, all different."""
        toy = self.toy
        images = [toy.extend(toy.prompt(f"image {i}", [(4, 4 + 2 * i)], seed=i), 2, 3 + i, seed=i) for i in range(4)]
        texts = [toy.extend(toy.prompt(f"text {i}", text=4 + i, seed=i), 2, 4 + i, seed=i) for i in range(4)]
        mixed = {"image": images[:2], "other image": [*images[2:], texts[0]]}
        return {name: pack(items) for name, items in {**mixed, "text": texts[1:3], "other text": texts[3:]}.items()}

    def model(self, *, frozen: Sequence[str] = (), dtype: torch.dtype = torch.float64) -> MedMO:
        """Return the toy model with some of its parts frozen."""
        model = self.toy.model().to(dtype)
        for part in frozen:
            getattr(model, part).requires_grad_(False)
        return model

    def lay(self, world: World, model: MedMO, settings: dict[str, Any] | None = None, **parallel: Any) -> MedMO:
        """Shard a model over the processes, in place; returns it."""
        config = RunConfig(stage="align").change(model=settings or {}, parallel={"shard": True, **parallel})
        prepare(model, config, world)
        return model

    def gradients(self, model: MedMO, batches: Sequence[Batch], world: World = ALONE) -> dict[str, Tensor]:
        """Return what a step would move by: the gradient of every parameter that trains, whole, and the "loss".

        Args:
            model: alone, or laid over the processes of `world`.
            batches: of this process, each passed by itself.
            world: over which is summed.
        """
        losses = torch.zeros(1, dtype=torch.float64)
        for batch in batches:
            loss = model.loss(batch, reduction="sum")
            if loss.requires_grad:
                loss.backward()
            losses += loss.detach()
        found = {"loss": world.sum(losses)}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                parameter.grad = None
        return found

    def step(
        self,
        world: World,
        model: MedMO,
        optimizer: Optimizer,
        batches: Sequence[Batch],
        step: int,
        minimise: Minimise | None = None,
    ) -> StepResult:
        """Take one optimiser step with this process's batches."""
        run: Any = SimpleNamespace(
            world=world, optimizer=optimizer, kit=SimpleNamespace(model=model), skipped=SkippedSamples(None)
        )
        return train_step(run, batches, minimise or model.token_losses, step)

    def optimizer(self, model: MedMO, *, clip_norm: float = 1.0) -> Optimizer:
        """Return an optimiser that moves the toy model far in three steps."""
        return Optimizer(model, Optim(lr=1e-2, clip_norm=clip_norm, warmup_ratio=0.0, schedule="constant"), 3)


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    """Check loss and gradients, each relative to its norm."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.fixture(scope="session")
def training(toy: Toy) -> Training:
    return Training(toy)


@pytest.fixture(scope="session")
def same_gradients() -> Callable[..., None]:
    """Hand out `assert_same_gradients`."""
    return assert_same_gradients
