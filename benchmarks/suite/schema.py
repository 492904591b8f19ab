"""The result of a benchmark run: one JSON file of this shape, checked whenever it is read or written.

A result holds where it was taken (`Machine`), the ceilings measured there, and rows. A row is one way of doing one
thing in one direction. It is `timed`, and then carries the correctness check made in the same run and passed it; or
`absent` (cannot run here: why); or `wrong` (it computed something else: what), and then has no figure.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medmo_core.durable import write_text
from medmo_recipes.settings.section import ConfigError, Section, require, unknown_key

SCHEMA = 1
Level = Literal["kernels", "modules", "recipes"]
Role = Literal["ours", "reference", "peer"]
Status = Literal["timed", "absent", "wrong"]


class ResultError(ValueError):
    """A result file that is not of this shape; the message names the file and the field."""


@dataclass(frozen=True)
class Machine(Section):
    """The machine and software with which figures were taken.

    Attributes:
        device: name of the GPU, or of the processor.
        kind: "cuda" or "cpu".
        capability: capability of a GPU, times ten (90: Hopper); 0 for a CPU.
        driver: driver of a GPU; empty for a CPU.
        cuda: version that torch was built for; empty for a CPU.
        memory_bytes: memory of the device.
        cores: cores of the host that this process may use.
        threads: number of threads that torch uses.
        versions: package -> version, empty where it is absent.
        commit: short commit of this project.
        changed: files differed from the commit.
        date: start of the run, UTC, ISO 8601.
    """

    device: str
    kind: Literal["cuda", "cpu"]
    capability: int
    driver: str
    cuda: str
    memory_bytes: int
    cores: int
    threads: int
    versions: dict[str, str]
    commit: str
    changed: bool
    date: str


@dataclass(frozen=True)
class Check(Section):
    """The comparison of a way's result in the same run, before it was timed.

    Attributes:
        against: name of the truth ("float64 reference", "our loss").
        error: largest, in the unit of `bound`.
        bound: largest error that passes.
    """

    against: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; a NaN is not."""
        return self.error <= self.bound


@dataclass(frozen=True)
class Row(Section):
    """One way of doing one thing in one direction.

    Attributes:
        level: part of the suite.
        subject: op, module or recipe.
        case: shape class and size, as shown ("8B, 1280 px, 8 images").
        dtype: dtype of inputs or activations.
        direction: "forward", "backward", "forward and backward", or a phase ("rollout", "save").
        way: name of the way as shown; "ours" for ours.
        role: ours, the plain reference, or a peer.
        status: timed, absent or wrong, as the module's docstring explains.
        reason: reason why it is absent or wrong.
        checked: the check of a timed row.
        samples_us: every duration in microseconds, in the order taken.
        median_us: middle of them; p20_us, p80_us: a fifth of them were faster, slower.
        peak_bytes: most memory torch allocated on the device during the call beyond what stood before; 0: not counted,
            as on the CPU for all but kernels.
        bytes: counted bytes that must move; 0: not counted.
        flops: counted operations that must be done; 0: not counted.
        items: how many `unit`s are processed ("tokens", "images"); 0: not counted.
        unit: unit of the items.
        axis: axis of a scaling curve ("tokens", "images", "group size", "boxes", "processes"); empty: no part of one.
        at: place on that axis.
    """

    level: Level
    subject: str
    case: str
    dtype: str
    direction: str
    way: str
    role: Role
    status: Status
    reason: str = ""
    checked: Check | None = None
    samples_us: tuple[float, ...] = ()
    median_us: float = 0.0
    p20_us: float = 0.0
    p80_us: float = 0.0
    peak_bytes: int = 0
    bytes: float = 0.0
    flops: float = 0.0
    items: float = 0.0
    unit: str = ""
    axis: str = ""
    at: float = 0.0

    def check(self) -> None:
        """Raise ConfigError where the fields contradict one another."""
        where = f"row {' / '.join(self.place)} / {self.way}: "
        if self.status != "timed":
            require(bool(self.reason), where + "reason", self.reason, f"why it is {self.status}")
            require(not self.samples_us and not self.median_us, where + "median_us", self.median_us, "no figure")
            return
        passed = self.checked is not None and self.checked.passed
        require(passed, where + "checked", self.checked, "a check that passed")
        require(len(self.samples_us) > 0, where + "samples_us", self.samples_us, "at least one duration")
        require(0 < self.p20_us <= self.median_us <= self.p80_us, where + "median_us", self.median_us, "p20 to p80")

    @property
    def place(self) -> tuple[str, str, str, str, str]:
        """What is done: rows of one place compete."""
        return self.level, self.subject, self.case, self.dtype, self.direction


@dataclass(frozen=True)
class Result(Section):
    """A whole run.

    Attributes:
        machine: machine of the run.
        short: the run of CI: small sizes and few repeats; its figures are not published.
        ceilings: "copy_bytes_per_s", "matmul_float32_flops_per_s", ...: best rates measured here at the start.
        rows: rows in the order measured.
        left_out: comparisons for which no time was left.
        schema: version of this shape.
    """

    machine: Machine
    short: bool
    ceilings: dict[str, float]
    rows: tuple[Row, ...] = ()
    left_out: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA)


def read(path: Path) -> Result:
    """Read a result.

    Raises:
        ResultError: not JSON, or not of this shape; names the file and the field.
    """
    try:
        return _made(Result, json.loads(path.read_text(encoding="utf-8")), "result")
    except (ConfigError, json.JSONDecodeError, TypeError) as error:
        raise ResultError(f"{path}: {error}") from error


def write(result: Result, path: Path) -> None:
    """Write a result in one step: a stopped run leaves the file before or the file after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _plain(result)
    rows = ",\n".join(json.dumps(row) for row in plain.pop("rows", []))  # a line each
    head = json.dumps(plain, indent=1)[:-2]
    write_text(path, f'{head},\n "rows": [\n{rows}\n]\n}}\n')


def _plain(value: Any) -> Any:
    """Turn dataclasses into objects without the fields that hold their default."""
    if dataclasses.is_dataclass(value):
        items = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value)}
        return {name: _plain(v) for name, (v, default) in items.items() if name == "schema" or v != default}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return round(value, 3) if isinstance(value, float) and abs(value) > 1 else value


def _made(kind: type, values: Any, where: str) -> Any:
    """Make a dataclass of this module from an object, its parts too."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected an object, got {type(values).__name__}")
    names = [f.name for f in dataclasses.fields(kind)]
    for name in values:
        if name not in names:
            raise unknown_key(f"{where}.{name}", [f"{where}.{n}" for n in names], "field")
    missing = [f.name for f in dataclasses.fields(kind) if f.name not in values and _required(f)]
    if missing:
        raise ConfigError(f"{where}.{missing[0]} is missing")
    parts = dict(values)
    if kind is Result:
        if values.get("schema") != SCHEMA:
            raise ConfigError(f"{where}.schema = {values.get('schema')!r}: expected {SCHEMA}")
        parts["machine"] = _made(Machine, values["machine"], f"{where}.machine")
        parts["rows"] = tuple(_made(Row, row, f"{where}.rows[{i}]") for i, row in enumerate(values.get("rows", [])))
    if kind is Row and values.get("checked") is not None:
        parts["checked"] = _made(Check, values["checked"], f"{where}.checked")
    return kind(**parts)


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
