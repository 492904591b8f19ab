"""Products in float8: which layers, what error, what device; emulated, as there is no such hardware in a test."""

import pytest
import torch
from torch import Tensor

from medmo_core.batch import Batch
from medmo_core.models.medmo import MedMO
from medmo_recipes.settings.run_config import ConfigError
from medmo_recipes.training.model.float8 import LAYERS, check_device, convert
from medmo_recipes.training.model.trainable import make_trainable


def test_loss_and_gradients_stay_near_and_names_stay(model_and_batch: tuple[MedMO, Batch]) -> None:
    """e4m3 has 4 significant bits: a factor is off by up to 1/16; over many terms errors average out."""
    model, batch = model_and_batch
    names = list(model.state_dict())
    exact = model.loss(batch)
    exact.backward()
    wanted: dict[str, Tensor] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    converted = convert(model, emulate=True)
    assert converted == [f"model.language_model.layers.{i}.{part}" for i in range(2) for part in (
        *(f"self_attn.{n}" for n in LAYERS[:4]), *(f"mlp.{n}" for n in LAYERS[4:]))]  # fmt: skip
    assert list(model.state_dict()) == names
    loss = model.loss(batch)
    loss.backward()
    assert loss.item() != exact.item()
    assert loss.item() == pytest.approx(exact.item(), rel=0.01)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        cosine = torch.cosine_similarity(parameter.grad.flatten(), wanted[name].flatten(), dim=0)
        assert cosine > 0.97, (name, cosine)


def test_only_layers_that_train_and_fit_are_converted(model_and_batch: tuple[MedMO, Batch]) -> None:
    model, _ = model_and_batch
    make_trainable(model, ["model.language_model.layers.1.mlp"])
    assert convert(model, emulate=True) == [f"model.language_model.layers.1.mlp.{n}" for n in LAYERS[4:]]
    make_trainable(model, ["encoder"])
    with pytest.raises(ConfigError, match="no linear layer of the decoder trains"):
        convert(model, emulate=True)


def test_a_device_without_float8_is_named(
    model_and_batch: tuple[MedMO, Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = model_and_batch
    with pytest.raises(ConfigError, match="cpu is no CUDA device; float8 products need 8.9 or later; set"):
        convert(model)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ConfigError, match=r"cuda:0 \(NVIDIA A100\) has compute capability 8.0"):
        check_device(torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_device(torch.device("cuda", 0))
