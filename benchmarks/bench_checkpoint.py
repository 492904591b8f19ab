"""What a checkpoint costs, beside torch.save of the same state, in one run on this machine.

    python -m benchmarks.bench_checkpoint                     # 100 million parameters with AdamW in fp32: 1.2 GB
    python -m benchmarks.bench_checkpoint --layers 2          # a smaller model

Written to and read from a folder on the disk (--folder), every file flushed to it. The ways take turns, so that a busy
minute hits all alike; medians, with the fastest and slowest fifth. "stall" is what a training step waits for a save in
the background: the copy to the host, made again into buffers that stand since the first save. Resuming includes the
check of every file's SHA-256 sum, which torch.load has nothing like.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from medmo_core.models import PRESETS, MedMO
from medmo_recipes.training.checkpoint import Checkpoints
from medmo_recipes.training.config import Optim, RunConfig
from medmo_recipes.training.distributed import World
from medmo_recipes.training.optim import Optimizer
from medmo_recipes.training.state import run_tensors

from .timing import Timing, time_ways

CPU = torch.device("cpu")
CONFIG = RunConfig(stage="instruct", name="bench")
REQUIRED_STALL = 0.5
"""A save in the background may stall training for this share of what torch.save takes."""


def make(layers: int) -> tuple[MedMO, Optimizer]:
    """Return a model of the official structure with AdamW: 4 million parameters a layer and 19 million beside."""
    text = {
        "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "mrope_section": (12, 10, 10),
    }  # fmt: skip
    config = PRESETS["tiny"].override(text=text)
    torch.manual_seed(0)
    model = MedMO.from_config(config, dtype=torch.float32, device=CPU)
    optimizer = Optimizer(model, Optim(), 10)
    with torch.no_grad():
        for tensor in optimizer.state_tensors().values():
            tensor.normal_()  # as after some steps: nothing that a file system could leave out
    return model, optimizer


def flushed(folder: Path) -> None:
    """Wait until everything in a folder is on the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def compare(layers: int, folder: Path, repeats: int) -> bool:
    """Print the table; return whether a save in the background stalls training as little as required."""
    model, optimizer = make(layers)
    tensors = run_tensors(model, optimizer)
    size = sum(tensor.nbytes for tensor in tensors.values())
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.0f} M parameters, {len(tensors)} tensors, {size / 1e9:.2f} GB; {platform.machine()}, "
          f"torch {torch.__version__}, {torch.get_num_threads()} threads")  # fmt: skip
    alone = World(rank=0, size=1, device=CPU)
    whole = Checkpoints(folder / "whole", alone, keep=1)
    aside = Checkpoints(folder / "aside", alone, keep=1, in_background=True)
    plain = folder / "plain"
    plain.mkdir()
    step = 0

    def save_plain() -> None:
        torch.save(tensors, plain / "state.pt")
        flushed(plain)

    def save(store: Checkpoints) -> Callable[[], None]:
        def way() -> None:
            nonlocal step
            step += 1
            store.save(step, CONFIG, model, optimizer)

        return way

    def load_plain() -> None:
        for name, tensor in torch.load(plain / "state.pt", weights_only=True).items():
            tensors[name].copy_(tensor)

    first = time.perf_counter()
    save(aside)()
    first = time.perf_counter() - first
    aside.wait()
    save(whole)()
    save_plain()
    ways = {
        "torch.save, flushed": save_plain,
        "save and wait": save(whole),
        "stall of a save in the background": save(aside),
        "its writing, waited for": aside.wait,  # before the next way's turn: nothing runs beside the others
        "torch.load": load_plain,
        "resume (sums checked)": lambda: whole.load_newest(model, optimizer),
    }
    times = time_ways(ways, CPU, repeats=repeats, budget_s=600)
    print(f"{'':34} {'median s':>9} {'fifths s':>15} {'GB/s':>6} {'of torch.save':>14}")
    for name, timing in times.items():
        ratio = timing.median_us / times["torch.save, flushed"].median_us
        print(f"{name:34} {_line(timing)} {size / timing.median_us / 1e3:6.2f} {ratio:13.2f}x")
    print(f"the first save in the background, which makes the buffers, stalled {first:.2f} s")
    share = times["stall of a save in the background"].median_us / times["torch.save, flushed"].median_us
    print(f"stall: {100 * share:.0f} % of torch.save (required: at most {100 * REQUIRED_STALL:.0f} %)")
    return share <= REQUIRED_STALL


def _line(timing: Timing) -> str:
    return f"{timing.median_us / 1e6:9.3f} {timing.p20_us / 1e6:7.3f} {timing.p80_us / 1e6:7.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return 1 where a save stalls training for too long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20, help="decoder layers (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each way (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        return 0 if compare(arguments.layers, Path(folder), arguments.repeats) else 1


if __name__ == "__main__":
    sys.exit(main())
