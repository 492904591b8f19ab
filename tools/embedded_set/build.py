"""Build the embedded data set from pinned public packages; the same bytes every time.

    python -m tools.embedded_set.build --sources FOLDER [--out medmo_core/datasets/embedded/files]

needs the extras `medical` and `test` and these files in FOLDER (each is checked against its SHA-256):

    pip download --no-deps --no-binary :all: totalsegmentator==2.18.0
    pip download --no-deps --no-binary :all: --no-build-isolation pyradiomics==3.0.1   # wants numpy and setuptools
    pip download --no-deps --only-binary :all: --python-version 3.11 --platform manylinux_2_28_x86_64 \\
        stardist==0.9.2 scikit-image==0.26.0 pydicom==3.0.2

What is written: `images/*.png` (8 bit), `masks/*.png` (label values of the structures), `facts.jsonl` (one facts table
per image), `counted/*.png` and `counted.jsonl` (vertebrae and ribs of the CT slices one by one, for questions that
count them) and `manifest.json` (SHA-256 of every file and of every source). Boxes are half-open pixel edges; left and
right in names are the patient's; volumes are shown with the patient's left on image right, anterior up.
"""

import argparse
from pathlib import Path

from .chest import add_chest
from .organs import add_totalsegmentator, snomed_codes
from .pictures import add_lesions, add_nuclei, add_overlay, add_pictures
from .tables import SOURCES, Writer
from .volumes import Archive

ROOT = Path(__file__).resolve().parents[2]
TARGET = "medmo_core/datasets/embedded/files"
MAX_BYTES = 6_000_000


def main() -> None:
    """Check the sources, build the set, and say what it weighs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True, help="folder with the downloaded packages")
    parser.add_argument("--out", type=Path, default=ROOT / TARGET, help="folder to replace")
    arguments = parser.parse_args()
    archives = {
        name: Archive(arguments.sources / source["file"], source["sha256"], source["fetch"])
        for name, source in SOURCES.items()
    }
    writer = Writer(arguments.out)
    add_totalsegmentator(writer, archives["totalsegmentator"])
    add_chest(writer, archives["totalsegmentator"], snomed_codes(archives["totalsegmentator"]))
    add_lesions(writer, archives["pyradiomics"])
    add_overlay(writer, archives["pydicom"])
    add_nuclei(writer, archives["stardist"])
    add_pictures(writer, archives["scikit-image"])
    size = writer.finish()
    print(f"wrote {len(writer.tables)} images, {size / 1e6:.2f} MB, to {arguments.out}")
    if size > MAX_BYTES:
        raise SystemExit(f"the set may hold at most {MAX_BYTES / 1e6:g} MB")


if __name__ == "__main__":
    main()
