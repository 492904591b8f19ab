"""`medmo evaluate`: score a checkpoint on held-out images, beside what needs no looking.

    medmo evaluate
    medmo evaluate --checkpoint runs/quickstart/reinforce/final
    medmo evaluate --checkpoint exported/ --data my.jsonl --split test --out results/
    medmo evaluate --checkpoint exported/ --data embedded:pair

Greedy answers are scored as VQA accuracy, box IoU and F1 at 0.5 of what is there, and report fact F1; how often they
deny what is there, or say boxes where nothing is, stands apart. Captions are ranked for each image (and images for
each caption) by log-likelihood per token. Beside each stands its baseline, fitted on training data: the
commonest answer per kind of question, the best constant box per label, chance. Brackets are 95 % intervals
over images, and so speak of these scans only. The embedded images are scored under fixed random crops (the bar) and
whole (`_full`), pairs of them (`embedded:pair`) when asked for. In `_shuffled` each question comes with another image:
what is left there was not seen.

Without --checkpoint it scores medmo-tiny-demo, the toy that the package carries.

Writes metrics.json, predictions.jsonl and report.html (pictures with boxes, every answer, provenance); none of them
names a patient. Research use only.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medmo_core.datasets.names import current_name
from medmo_core.demo.checkpoint import DEMO_NAME
from medmo_core.errors import InputError

NUM_REPORTS, NUM_CAPTIONS = 30, 20
"""Images that reports and captions are asked for at most."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from medmo_core.data.sources.open_source import find_files  # late: help need not wait for PyTorch
    from medmo_core.datasets.catalogue import find_data_set
    from medmo_core.inference import load
    from medmo_core.inference.copies import num_useful
    from medmo_core.models.official.folder import find_folder

    from ..evaluation.ask import Asking
    from ..evaluation.progress import ProgressLine
    from ..evaluation.provenance import provenance_of
    from ..evaluation.results import FILES, NOTICE, counted, format_table, refuse_overwriting, write_evaluation
    from ..evaluation.suites import evaluate_data, evaluate_embedded
    from ..pages.evaluation_page import write_page

    progress = ProgressLine()
    asking = Asking(arguments.batch_size, arguments.max_new_tokens, arguments.seed, progress)
    if arguments.num_samples < 1:
        raise InputError(f"--num-samples is {arguments.num_samples}, expected 1 or more")
    name = None if arguments.data is None else current_name(arguments.data)
    files = find_files(name) if name is not None and find_data_set(name) is None else []
    refuse_overwriting(arguments.out, files, overwrite=arguments.overwrite)
    folder = find_folder(arguments.checkpoint)
    kit = load(folder, device=arguments.device, dtype=arguments.dtype)
    asking = replace(asking, num_processes=num_useful(kit.model))
    started = time.perf_counter()
    split = arguments.split
    if name is None:
        most = arguments.num_samples
        result = evaluate_embedded(
            kit.model, kit.processor, num_samples=most, num_reports=min(NUM_REPORTS, most),
            num_captions=min(NUM_CAPTIONS, most), split=split, asking=asking,
        )  # fmt: skip
    else:
        result = evaluate_data(
            kit.model, kit.processor, name, root=arguments.root, num_samples=arguments.num_samples, split=split,
            asking=asking,
        )  # fmt: skip
    progress.close()
    where = name or "embedded images"
    provenance = provenance_of(
        result, checkpoint=arguments.checkpoint, folder=folder, data=where, files=files, split=split, asking=asking
    )
    write_evaluation(arguments.out, result, provenance)
    try:
        write_page(arguments.out, result, provenance)
    except ImportError as error:  # figures and answers are written all the same
        print(f"no page: {error}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"metrics": result.to_json(), "provenance": provenance, "out": str(arguments.out)}, indent=2))
        return 0
    print(format_table(result.metrics))
    count = sum(map(len, result.predictions.values()))
    print(f"{where}, split {split}: {counted(count, 'answer')} in {time.perf_counter() - started:.0f} s")
    print(NOTICE)
    there = [arguments.out / name for name in FILES if (arguments.out / name).is_file()]
    print(f"wrote {', '.join(map(str, there))}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", default=DEMO_NAME, help="official folder, a run's folder, or a hub id (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        help="data set (embedded:pair), JSONL file, Parquet files or tar shards (default: the embedded images)",
    )
    parser.add_argument(
        "--root", type=Path, help="folder that image paths are relative to (default: the first file's own)"
    )
    parser.add_argument("--split", default="test", help="split of --data to score (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="folder to write (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation in that folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    parser.add_argument(
        "--num-samples", type=int, default=200, help="questions per task, at most (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="answers decoded together (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=int, help="longest answer (default: half as long again as the longest true one)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of crops and shuffling (default: %(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on CUDA, else float32")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
