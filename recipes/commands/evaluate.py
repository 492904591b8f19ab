"""`medmo evaluate`: score a checkpoint on held-out images, beside what needs no looking.

    medmo evaluate --checkpoint runs/quickstart/reinforce/final
    medmo evaluate --checkpoint exported/ --data my.jsonl --split test --out results/
    medmo evaluate --checkpoint exported/ --data embedded:pair

Greedy answers are scored as VQA accuracy, box IoU and F1 at 0.5, and report fact F1; captions are ranked for each image
(and images for each caption) by log-likelihood per token. Beside each stands its baseline, fitted on training data: the
commonest answer per kind of question, the best constant box per label, chance. Brackets are 95 % bootstrap intervals
over images, and so speak of these scans only. The embedded images are scored under fixed random crops (the bar) and
whole (`_full`), pairs of them (`embedded:pair`) when asked for. In `_shuffled` each question comes with another image:
what is left there was not seen.

Writes metrics.json and predictions.jsonl; neither names a patient. Research use only.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from medmo_core.datasets.names import current_name
from medmo_core.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from medmo_core.inference import load  # late: help need not wait for PyTorch

    from ..evaluation.ask import Asking
    from ..evaluation.results import NOTICE, format_table, write_evaluation
    from ..evaluation.suites import evaluate_data, evaluate_embedded

    asking = Asking(arguments.batch_size, arguments.max_new_tokens, arguments.seed)
    if arguments.num_samples < 1:
        raise InputError(f"--num-samples is {arguments.num_samples}, expected 1 or more")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise InputError(f"--out {arguments.out} is a file, expected a folder to write into")
    kit = load(arguments.checkpoint, device=arguments.device, dtype=arguments.dtype)
    started = time.perf_counter()
    if arguments.data is None:
        result = evaluate_embedded(kit.model, kit.processor, num_samples=arguments.num_samples, asking=asking)
        where = "embedded images"
    else:
        name = current_name(arguments.data)
        result = evaluate_data(
            kit.model,
            kit.processor,
            name,
            root=arguments.root,
            num_samples=arguments.num_samples,
            split=arguments.split,
            asking=asking,
        )
        where = f"{name}, split {arguments.split}"
    print(format_table(result.metrics))
    print(f"{where}: {sum(map(len, result.predictions.values()))} answers in {time.perf_counter() - started:.0f} s")
    print(NOTICE)
    write_evaluation(arguments.out, result)
    print(f"wrote {arguments.out / 'metrics.json'} and {arguments.out / 'predictions.jsonl'}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="official folder, a run's folder, or a hub id")
    parser.add_argument(
        "--data",
        help="data set (embedded:pair), JSONL file, Parquet files or tar shards (default: the embedded images)",
    )
    parser.add_argument(
        "--root", type=Path, help="folder that image paths are relative to (default: the first file's own)"
    )
    parser.add_argument("--split", default="test", help="split of --data to score (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder to write (default: %(default)s)")
    parser.add_argument(
        "--num-samples", type=int, default=200, help="questions per task of a data set (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="answers decoded together (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, help="longest answer (default: half as long again as the longest true one)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of crops, shuffling and bootstrap (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on CUDA, else float32")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
