"""The checkpoint that every arm of a round starts from: which one it is, and that a round goes on from no other."""

import json
from pathlib import Path

from medmo_core.durable import write_json
from medmo_core.errors import InputError
from medmo_recipes.evaluation.provenance import WEIGHTS, weights_digest

from .plan import StudyPlan

QUICKSTART = Path("runs/quickstart/instruct/final")
NOTE = "init.json"
"""File of a round's folder that says which weights its runs began from."""


def init_of(plan: StudyPlan, init: Path | None) -> Path:
    """Return the folder of the checkpoint that a round starts from.

    Args:
        plan: the round.
        init: folder that the user named; None: the quickstart's, where the round does not train its own.

    Raises:
        InputError: the round trains its own and `init` is None.
    """
    if init is not None:
        return init
    if plan.start:
        raise InputError(
            f"--init is missing: this round trains the checkpoint it starts from. Run `{plan.start}`, then "
            "name the final/ of that run with --init"
        )
    return QUICKSTART


def pin_weights(init: Path, out: Path) -> str:
    """Note in the folder of a round which weights its runs begin from, and return their SHA-256.

    Args:
        init: folder of the checkpoint.
        out: folder of the runs.

    Raises:
        InputError: `init` has no weights, or `out` holds runs that began from others.
    """
    if not any(init.glob(WEIGHTS)):
        raise InputError(f"{init}: no weights ({WEIGHTS}) there; name a checkpoint, such as the final/ of a run")
    digest, note = weights_digest(init), out / NOTE
    if note.exists():
        stored = str(json.loads(note.read_text(encoding="utf-8"))["weights_sha256"])
        began = f"from weights of SHA-256 {stored[:12]}..."
    elif out.exists() and any(out.iterdir()):
        stored, began = "", f"before {NOTE} said from which weights"
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(note, {"weights_sha256": digest})
        return digest
    if stored != digest:
        raise InputError(
            f"--out {out}: its runs began {began}, and --init {init} has {digest[:12]}...; name the checkpoint that "
            "they began from, or another --out"
        )
    return digest
