"""Command line of a stage: `--config NAME_OR_FILE section.field=value ...` to a checked `RunConfig`, and back to text.

The types come from the dataclasses of `run_config.py` and `reinforce.py`, so `false` is false and `1e-4` a number; an
unknown key stops with the nearest one that exists.
"""

import argparse
import ast
import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from medmo_core.printable import printable_lines

from .run_config import SECTIONS, ConfigError, RunConfig, describe_type, typed, unknown_key


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Request of a command line."""

    config: RunConfig
    """Settings of the run."""
    print_only: bool
    """Show the config and exit."""
    dry_run: bool
    """Build on meta tensors, show sizes and the first batch, and exit."""


def parse_value(text: str, hint: Any, where: str) -> Any:
    """Read `text` as the type `hint`.

    Lists are written "a,b", mappings "name=weight,name=weight" (a name alone weighs 1), nothing is written "none".

    Raises:
        ConfigError: the text does not fit; names the field, the text and what is expected.
    """
    origin, args = get_origin(hint), get_args(hint)
    wrong = ConfigError(f"{where}={text}: expected {describe_type(hint)}")
    if origin in (Union, types.UnionType):
        if type(None) in args and text.lower() in ("none", "null"):
            return None
        for option in args:
            if option is not type(None):
                try:
                    return parse_value(text, option, where)
                except ConfigError:
                    continue
        raise wrong
    if origin is Literal:
        return typed(text, hint, where)
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        inner = [args[0]] * len(parts) if args[-1] is Ellipsis else list(args)
        if len(inner) != len(parts):
            raise wrong
        return tuple(parse_value(part, h, where) for part, h in zip(parts, inner, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        pairs = [part.strip() for part in text.split(",") if part.strip()]
        return dict(_parse_pair(pair, args[1], where) for pair in pairs)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise wrong
        return text.lower() == "true"
    if hint in (int, float):
        try:
            return hint(text.replace("_", ""))
        except ValueError:
            raise wrong from None
    return text


def _parse_pair(pair: str, value_type: Any, where: str) -> tuple[str, Any]:
    """Read "name=value" or "name" (value 1); the last "=" separates, so paths may contain one."""
    name, equals, value = pair.rpartition("=")
    return (name, parse_value(value, value_type, f"{where}.{name}")) if equals else (pair, typed(1, value_type, where))


def setting_types() -> dict[str, Any]:
    """Return "section.field" -> type for every field of every section."""
    return {
        f"{name}.{item.name}": typing.get_type_hints(section)[item.name]
        for name, section in SECTIONS.items()
        for item in dataclasses.fields(section)  # type: ignore[arg-type]
    }


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return `config` with each "section.field=value" (or "section.mapping.name=value") applied in order.

    Raises:
        ConfigError: an argument without "=", an unknown key (the nearest is named), or a value of the wrong type.
    """
    known = setting_types()
    changes: dict[str, dict[str, Any]] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{override!r}: expected section.field=value, for example train.steps=100")
        field_key = next((k for k in known if key.startswith(k + ".")), key)
        if field_key not in known:
            raise unknown_key(key, known)
        section, name = field_key.split(".")
        if field_key == key:
            value = parse_value(text, known[key], key)
        else:
            value = _changed_entry(config, changes, override, field_key, known[field_key])
        changes.setdefault(section, {})[name] = value
    return config.change(**changes)


def _changed_entry(
    config: RunConfig, changes: Mapping[str, Mapping[str, Any]], override: str, field_key: str, hint: Any
) -> dict[str, Any]:
    """Return the mapping `field_key` with the one entry of "section.field.entry=value" replaced."""
    section, name = field_key.split(".")
    if get_origin(hint) is None or not issubclass(get_origin(hint), Mapping):
        raise unknown_key(override.partition("=")[0], setting_types())
    entry, value = _parse_pair(override.removeprefix(field_key + "."), get_args(hint)[1], field_key)
    before = changes.get(section, {}).get(name, getattr(getattr(config, section), name))
    return {**before, entry: value}


def field_docs() -> dict[str, str]:
    """Return "section.field" -> the string that stands under the field where its section is defined."""
    names = {section.__name__: name for name, section in SECTIONS.items()}
    files = {inspect.getsourcefile(section): inspect.getmodule(section) for section in SECTIONS.values()}
    docs: dict[str, str] = {}
    for node in (node for module in files.values() if module for node in ast.parse(inspect.getsource(module)).body):
        if not isinstance(node, ast.ClassDef) or node.name not in names:
            continue
        for item, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(item, ast.AnnAssign)
                and isinstance(item.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[f"{names[node.name]}.{item.target.id}"] = " ".join(str(after.value.value).split())
    return docs


def format_value(value: Any) -> str:
    """Write a value so that `parse_value` reads it back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(format_value(v) for v in value)
    if isinstance(value, Mapping):
        return ",".join(f"{k}={format_value(v)}" for k, v in value.items())
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def format_config(config: RunConfig, *, docs: bool = True) -> str:
    """Write every setting as a line that the command line accepts, with its meaning behind it."""
    meaning = field_docs() if docs else {}
    lines = [f"# {config.name} ({config.stage})"]
    for key in setting_types():
        section, name = key.split(".")
        setting = f"{key}={format_value(getattr(getattr(config, section), name))}"
        lines.append(f"{setting:<48}  # {meaning[key]}" if key in meaning else setting)
    return "\n".join(lines)


def read_config_file(path: Path) -> RunConfig:
    """Read the settings of an earlier run: its config.json, or the folder that holds it.

    That run's train.resume is left out: whether to continue is a question of each launch.

    Raises:
        ConfigError: there is no such file, or it holds no settings of a run.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        config = RunConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"--config: {path} is no file; expected the name of a run or a run's config.json") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"--config {path}: expected the config.json that a run writes: {error}") from None
    return config.change(train={"resume": False})


def read_command_line(
    argv: Sequence[str] | None, *, stage: str, configs: Mapping[str, Callable[[], RunConfig]], about: str | None
) -> Launch:
    """Parse the command line of a stage; exits with code 2 and one clear line when it is wrong.

    Args:
        argv: arguments without the program's name; None = sys.argv.
        stage: "align", "instruct" or "reinforce".
        configs: name -> function making the config.
        about: text for --help, usually the stage's docstring.
    """
    own = [name for name in configs if configs[name]().stage == stage]
    parser = argparse.ArgumentParser(
        prog=f"medmo train {stage}",
        description=about,
        epilog="configs: " + ", ".join(own) + "\nAll settings with their meaning: --print",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = "name of a run, or a run's folder or config.json (default: %(default)s)"
    parser.add_argument("--config", default=f"tiny_{stage}", help=what)
    parser.add_argument("--data", action="append", metavar="JSONL", help="train on this file (may be repeated)")
    parser.add_argument("--print", action="store_true", dest="print_only", help="show every setting and exit")
    parser.add_argument("--dry-run", action="store_true", help="show sizes and the first batch, train nothing")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="replace settings")
    given = parser.parse_intermixed_args(argv)

    def fail(error: ConfigError) -> NoReturn:
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None

    try:
        if given.config in configs:
            config = configs[given.config]()
        elif Path(given.config).exists() or given.config.endswith(".json"):
            config = read_config_file(Path(given.config))
        else:
            raise unknown_key(given.config, own, "config")
        if config.stage != stage:
            raise ConfigError(f"config {given.config!r} is for {config.stage!r}: launch medmo_recipes.{config.stage}")
        if given.data:
            config = config.change(data={"sources": dict.fromkeys(given.data, 1.0)})
        config = apply_overrides(config, given.overrides)
    except ConfigError as error:
        fail(error)
    return Launch(config=config, print_only=given.print_only, dry_run=given.dry_run)
