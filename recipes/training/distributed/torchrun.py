"""torchrun: what it has started, how a module is run under it, and how a program under it ends."""

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import NoReturn


def num_launched() -> int:
    """Return how many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def attempt() -> int:
    """Return how often torchrun has started this launch's processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def torchrun(module: str, words: Sequence[str], *, num_processes: int) -> int:
    """Run a module under torchrun on this machine and wait for it; returns its exit status.

    Args:
        module: dotted name.
        words: its command line.
        num_processes: processes, of one thread each.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    # Said here, since torchrun warns when nobody says how many threads a process may use.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*launcher, "-m", module, *words], env=environment, check=False).returncode


def leave(status: int) -> NoReturn:
    """End the program with an exit status; the last line of a stage launched as a program.

    Among several processes it ends at once, without tearing torch down: about one FSDP2 run over gloo in thirty aborts
    there ("terminate called without an active exception", torch 2.13, also without any of our code), after all is
    written, and torchrun would call the finished run a failure.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if num_launched() > 1:
        os._exit(status)
    raise SystemExit(status)
