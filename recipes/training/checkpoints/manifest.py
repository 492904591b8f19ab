"""The list of a finished checkpoint's files, with their sizes and SHA-256 sums, and the check against it.

    step-000100/manifest.json      {"files": {"state.json": {"size": 812, "sha256": "9f2c..."}, ...}}

It is written last, so a folder without one was never finished. A folder holds exactly the files that are listed:
anything else was put there by somebody else and is refused, so that nothing unlisted is ever opened.
"""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from medmo_core.durable import write_json
from medmo_core.errors import UserError

MANIFEST = "manifest.json"
THREADS = 4  # hashing leaves the interpreter free: several files at a time
PIECE_BYTES = 2**22


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read or written here; the message names the folder and the way out."""


@dataclass(frozen=True)
class FileSum:
    """Size and checksum that a file must have."""

    size: int
    sha256: str


def sum_file(path: Path) -> FileSum:
    """Return a file's size and SHA-256 sum."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return FileSum(size, digest.hexdigest())


def write_manifest(folder: Path, files: Mapping[str, FileSum]) -> None:
    """Write manifest.json: the folder is complete."""
    write_json(folder / MANIFEST, {"files": {name: asdict(files[name]) for name in sorted(files)}})


def find_damage(folder: Path, rank: int = 0, size: int = 1) -> str | None:
    """Say what is wrong with a checkpoint folder; None: it is as it was written.

    Args:
        folder: a checkpoint.
        rank, size: this process reads every size-th file only; names and sizes are checked by each.

    Returns:
        The first thing that is wrong, naming the file.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        files = {name: FileSum(**values) for name, values in listed.items()}
    except FileNotFoundError:
        if (folder / "state.json").is_file():
            return f"no {MANIFEST}; written by an earlier version of this program, whose checkpoints are not read"
        return f"no {MANIFEST}; it was never finished"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    there = {path.name for path in folder.iterdir()}
    if foreign := sorted(there - files.keys() - {MANIFEST}):
        return f"{foreign[0]} is not part of it; take the file away"
    for name, wanted in files.items():
        path = folder / name
        if name not in there:
            return f"{name} is missing"
        if not path.is_file() or path.is_symlink():
            return f"{name} is not a plain file"
        if path.stat().st_size != wanted.size:
            return f"{name} has {path.stat().st_size:,} bytes, expected {wanted.size:,}"
    own = sorted(files)[rank::size]
    with ThreadPoolExecutor(THREADS) as pool:
        sums = [pool.submit(sum_file, folder / name) for name in own]
    for name, reading in zip(own, sums, strict=True):
        try:
            found = reading.result()
        except OSError as error:
            return f"{name} cannot be read ({error})"
        if found != files[name]:
            return f"{name} has the checksum {found.sha256[:12]}..., expected {files[name].sha256[:12]}..."
    return None
