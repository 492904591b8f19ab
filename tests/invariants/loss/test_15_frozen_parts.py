"""Invariant 15: what is frozen has no gradient and no optimiser state and stays the same to the byte; everything else
receives a gradient and moves; what trains is said by name and count, and a name that means nothing is an error.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from medmo_core.models.medmo import MedMO
from medmo_recipes.settings.run_config import ConfigError, Lora
from medmo_recipes.training.model.trainable import Trainable, make_trainable
from medmo_recipes.training.optim.optimizer import Optimizer

STEPS = 3
CHOICES = {
    "all": (("all",), Lora()),
    "encoder": (("encoder",), Lora()),
    "projector": (("projector",), Lora()),
    "decoder": (("decoder",), Lora()),
    "a block and a norm": (("model.language_model.layers.1.mlp", "model.language_model.norm.weight"), Lora()),
    "adapters": (("all",), Lora(rank=2, targets=("decoder", "encoder"))),
    "adapters with lengths": (("all",), Lora(rank=2, targets=("projector",), dora=True)),
}


def bytes_of(model: MedMO) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def check(
    training: Any, choice: str, break_it: Callable[[MedMO], None] = lambda model: None
) -> tuple[Trainable, set[str]]:
    """Train a few steps and look at every parameter; `break_it` is called before."""
    words, lora = CHOICES[choice]
    model, batches = training.model(), training.batches()
    torch.manual_seed(0)
    trainable = make_trainable(model, words, lora)
    chosen = set(trainable.names)
    if lora.rank:  # B begins at zero, and then A has no gradient in the first step
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    break_it(model)
    before = bytes_of(model)
    optimizer: Optimizer = training.optimizer(model)
    seen: set[str] = set()
    for step in range(STEPS):
        batch = batches["image" if step % 2 == 0 else "other image"]
        model.loss(batch, reduction="sum").backward()
        for name, parameter in model.named_parameters():
            if name not in chosen:
                assert parameter.grad is None, f"{name} is frozen and has a gradient"
            elif parameter.grad is not None and parameter.grad.abs().max() > 0:
                seen.add(name)
        optimizer.step(step)
    assert seen == chosen, f"no gradient: {sorted(chosen - seen)}"
    assert {key.split(":", 1)[1] for key in optimizer.state_tensors()} == chosen
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in chosen), name
    assert trainable.num_parameters == sum(before[name].numel() for name in chosen) == sum(trainable.parts.values())
    assert trainable.total == sum(tensor.numel() for tensor in before.values())
    return trainable, before.keys() - chosen


@pytest.mark.parametrize("choice", CHOICES)
def test_frozen_parts_stay_and_the_rest_moves(training: Any, choice: str) -> None:
    trainable, frozen = check(training, choice)
    assert bool(frozen) == (choice != "all")
    assert f"trains {trainable.num_parameters:,} of {trainable.total:,} parameters" in trainable.describe()
    assert f"in {len(trainable.names)} tensors" in trainable.describe()


@pytest.mark.parametrize(
    ("words", "lora", "message"),
    [
        (("decodr",), Lora(), "unknown part in model.trainable 'decodr': did you mean 'decoder'"),
        (("model.language_model.layer",), Lora(), "did you mean 'model.language_model.layers'"),
        ((), Lora(rank=2, targets=("encodr",)), "unknown part in lora.targets 'encodr': did you mean 'encoder'"),
        ((), Lora(rank=2, targets=("model.visual.patch_embed",)), "no linear layer that can carry an adapter"),
    ],
)
def test_unknown_names_are_errors(training: Any, words: tuple[str, ...], lora: Lora, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_trainable(training.model(), words, lora)


def test_a_leak_is_noticed(training: Any) -> None:
    """A frozen weight that trains all the same; a part that the loss does not reach; a weight moved by hand."""

    def thaw(model: MedMO) -> None:
        model.decoder.norm.weight.requires_grad_(True)

    with pytest.raises(AssertionError, match="norm.weight is frozen and has a gradient"):
        check(training, "projector", thaw)

    def cut(model: MedMO) -> None:
        model.decoder.layers[0].register_forward_pre_hook(lambda layer, inputs: (inputs[0].detach(), *inputs[1:]))

    with pytest.raises(AssertionError, match=r"no gradient: .*model\.visual\.merger"):
        check(training, "projector", cut)

    def nudge(model: MedMO) -> None:
        weight = model.decoder.norm.weight

        def move(*_: Any) -> None:
            with torch.no_grad():
                weight.add_(1e-12)

        model.register_forward_pre_hook(move)
        model.decoder.register_forward_pre_hook(move)

    with pytest.raises(AssertionError, match="model.language_model.norm.weight"):
        check(training, "projector", nudge)
