"""The choice of which parameters train, by name and count."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from medmo_core.models.medmo import MedMO

from ...settings.run_config import ConfigError, Lora, RunConfig
from .lora import add_adapters, is_adapter
from .parts import parameter_parts, select


@dataclass(frozen=True)
class Trainable:
    """Parameters that train, by name."""

    names: tuple[str, ...]
    """Names of the parameters that train, in the model's order."""
    num_parameters: int
    """Numbers in them."""
    total: int
    """Numbers in all parameters of the model."""
    parts: Mapping[str, int]
    """Part -> numbers that train in it; parts without any are absent."""

    def describe(self) -> str:
        """Say what trains: one line in all, one per part."""
        share = 100 * self.num_parameters / self.total
        parts = ", ".join(f"{part} {number:,}" for part, number in self.parts.items())
        return (
            f"trains {self.num_parameters:,} of {self.total:,} parameters ({share:.1f} %) "
            f"in {len(self.names)} tensors: {parts}"
        )


def choose_trainable(config: RunConfig, model: MedMO) -> Trainable:
    """Let the parameters of model.trainable, or adapters (lora.rank), train and no others; see `make_trainable`."""
    return make_trainable(model, config.model.trainable, config.lora)


def make_trainable(model: MedMO, words: Iterable[str], lora: Lora | None = None) -> Trainable:
    """Let exactly the parameters that `words` mean require gradients, or adapters added here and nothing else.

    Args:
        model: changed in place.
        words: parts and prefixes of parameter names, as in model.trainable.
        lora: adapters; with a rank, they train in place of what `words` mean.

    Raises:
        ConfigError: a word that means no parameter.
    """
    if lora is not None and lora.rank > 0:
        add_adapters(model, lora)
        chosen = {name for name, _ in model.named_parameters() if is_adapter(name)}
    else:
        chosen = select(model, words, "model.trainable")
    parts = parameter_parts(model)
    numbers: dict[str, int] = {}
    total = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        total += parameter.numel()
        if name in chosen:
            numbers[parts[name]] = numbers.get(parts[name], 0) + parameter.numel()
    names = tuple(name for name, _ in model.named_parameters() if name in chosen)
    return Trainable(names=names, num_parameters=sum(numbers.values()), total=total, parts=numbers)


def assert_only_projector(model: MedMO, trainable: Trainable) -> None:
    """Check by name and by count that the projector trains, whole, and nothing else does."""
    wanted = {name for name, part in parameter_parts(model).items() if part == "projector"}
    training = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    count = sum(p.numel() for p in model.projector.parameters())
    if training != wanted or trainable.num_parameters != count:
        odd = sorted(training ^ wanted)
        raise ConfigError(f"projector-only training: {len(odd)} parameters differ from the projector's, as {odd[:3]}")
