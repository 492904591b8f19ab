"""Parameters by name: the part of the model each belongs to, those a word selects, and factors on their rates."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from medmo_core.models.medmo import MedMO

from ...settings.run_config import unknown_key


@dataclass(frozen=True)
class NameFactor:
    """Parameter name -> product of the factors whose word means it (`name_factor` makes them)."""

    factors: Mapping[str, float] = field(default_factory=dict)
    """Word -> factor."""
    chosen: Mapping[str, set[str]] = field(default_factory=dict)
    """Word -> names of the parameters it means."""

    def words(self, name: str) -> tuple[str, ...]:
        """Return the words that mean this parameter."""
        return tuple(word for word, names in self.chosen.items() if name in names)

    def __call__(self, name: str) -> float:
        """Return this parameter's factor."""
        return math.prod(self.factors[word] for word in self.words(name))


NO_FACTOR = NameFactor()


PARTS = ("encoder", "projector", "decoder")


def parameter_parts(model: MedMO) -> dict[str, str]:
    """Return parameter name -> "encoder", "projector" or "decoder" (the head included)."""
    projector = {id(p) for p in model.projector.parameters()}
    parts = {}
    for name, parameter in model.named_parameters():
        vision = "projector" if id(parameter) in projector else "encoder"
        parts[name] = vision if name.startswith("model.visual.") else "decoder"
    return parts


def select(model: MedMO, words: Iterable[str], where: str) -> set[str]:
    """Return the names of the parameters that `words` mean.

    Args:
        model: the model.
        words: words of a setting: "all", a part, or a prefix of parameter names that ends at a dot or at the end of a
            name.
        where: name of the setting, for the message.

    Raises:
        ConfigError: a word that means no parameter; the nearest is named.
    """
    parts = parameter_parts(model)
    chosen: set[str] = set()
    for word in words:
        found = {
            name
            for name, part in parts.items()
            if word in ("all", part) or name == word or name.startswith(word.rstrip(".") + ".")
        }
        if not found:
            prefixes = {name[:i] for name in parts for i, letter in enumerate(name) if letter == "."}
            raise unknown_key(word, [*PARTS, "all", *sorted(prefixes)], f"part in {where}")
        chosen |= found
    return chosen


def name_factor(model: MedMO, factors: Mapping[str, float], where: str) -> NameFactor:
    """Return parameter name -> product of the factors whose word means it."""
    return NameFactor(factors, {word: select(model, [word], where) for word in factors})
