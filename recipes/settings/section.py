"""The base of config dataclasses: values are checked when a section is made, and errors say what was expected."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from medmo_core.errors import UserError
from medmo_core.nearest import nearest_name


class ConfigError(UserError, ValueError):
    """A setting that does not exist or cannot have this value; the message names it and the fix."""


class Section:
    """Base of every config dataclass: types are checked, and ints given for floats become floats."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            where = f"{type(self).__name__.lower()}.{item.name}"
            value = typed(getattr(self, item.name), hints[item.name], where)
            object.__setattr__(self, item.name, value)
        self.check()

    def check(self) -> None:
        """Raise ConfigError where values are of the right type and still make no sense."""


def require(condition: bool, where: str, value: object, expected: str) -> None:
    """Raise ConfigError unless `condition` holds.

    Args:
        condition: what must be true.
        where: "section.field".
        value: the offending value, shown.
        expected: what would have been right.
    """
    if not condition:
        raise ConfigError(f"{where} = {value!r}: expected {expected}")


def unknown_key(key: str, known: Iterable[str], what: str = "setting") -> ConfigError:
    """Make the error for a name that does not exist, with the nearest one that does."""
    names = list(known)
    tails = {name.rsplit(".", 1)[-1]: name for name in names}  # "docs_per_step" for "train.docs_per_step"
    near = nearest_name(key, names) or tails.get(nearest_name(key.rsplit(".", 1)[-1], tails) or "")
    hint = f"did you mean {near!r}?" if near else f"known: {', '.join(sorted(names))}"
    return ConfigError(f"unknown {what} {key!r}: {hint}")


def describe_type(hint: Any) -> str:
    """Spell a type as a user would: "int or none", "one of 'align', 'instruct'"."""
    if hint is type(None):
        return "none"
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(a) for a in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list of {describe_type(args[0])}"
        return f"{len(args)} values of {describe_type(args[0])}"
    if origin in (dict, Mapping):
        return f"names with a {describe_type(args[1])} each"
    return "true or false" if hint is bool else getattr(hint, "__name__", str(hint))


def typed(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint` asks, or raise ConfigError naming `where`.

    Lossless only: int to float and list to tuple, nothing else.
    """
    origin, args = get_origin(hint), get_args(hint)
    wrong = ConfigError(f"{where} = {value!r}: expected {describe_type(hint)}, got {type(value).__name__}")
    if origin in (Union, types.UnionType):
        for option in args:
            try:
                return typed(value, option, where)
            except ConfigError:
                continue
        raise wrong
    if origin is Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        raise wrong
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise wrong
        inner = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(value):
            raise wrong
        return tuple(typed(v, h, where) for v, h in zip(value, inner, strict=True))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise wrong
        return {typed(k, args[0], where): typed(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise wrong
