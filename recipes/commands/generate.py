"""`medmo generate`: ask a checkpoint about one image, or about several at once.

    medmo generate --image scan.dcm --prompt "Where is the liver?"
    medmo generate --checkpoint runs/quickstart/reinforce --image scan.dcm --prompt "Where is the liver?"
    medmo generate --checkpoint exported/ --image ct.nii.gz --slice 40 --window soft_tissue --prompt "Find the spleen."
    medmo generate --checkpoint exported/ --image series/ --plane coronal --window -600,1500 --prompt "Any nodule?"
    medmo generate --checkpoint exported/ --image prior.png --image current.png --prompt "What is new in image 2?"

Prints what the model says and the boxes it wrote, in pixels of the image and, where the file knows the patient's axes,
in millimetres; draws them on a picture. How boxes are written comes from the checkpoint's medmo_profile.json. Nothing
in a file's header that names a person is printed or stored. Without --checkpoint medmo-tiny-demo answers, the toy that
the package carries.

Research use only: not a medical device, not for diagnosis.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmo_core.demo.checkpoint import DEMO_NAME, FIRST_IMAGE, FIRST_QUESTION
from medmo_core.durable import replacing
from medmo_core.errors import InputError
from medmo_core.notice import RESEARCH_ONLY
from medmo_core.printable import printable

if TYPE_CHECKING:
    from medmo_core.inference import Reply

NEGATIVE = re.compile(r"-[.\d]")
IMAGE_SUFFIX = re.compile(r"(\.nii\.gz|\.[A-Za-z][A-Za-z0-9]{1,5})$")  # what begins with a digit is part of a name


def main(argv: Sequence[str] | None = None) -> int:
    """Answer as the command line says; returns the exit status."""
    words = build_parser().parse_args(join_window(sys.argv[1:] if argv is None else argv))
    refuse_gaps(words)
    from medmo_core.inference import ask, load  # late: help need not wait for PyTorch

    out = picture_path(words.out, words.image)
    kit = load(words.checkpoint, device=words.device, dtype=words.dtype)
    answer = ask(kit, words.image, words.prompt, **ask_settings(words))
    replaced = f"{out}: an earlier file of this name was replaced" if out.exists() else ""
    # Before the picture: an answer is not lost where that cannot be written.
    print(json.dumps(answer.to_json(), indent=2) if words.json else describe(answer), flush=True)
    with replacing(out) as partial:
        answer.picture(words.prompt).save(partial, format="PNG")
    if not words.json:
        print(f"overlay: {out}")
    if replaced:
        print(replaced, file=sys.stderr)
    return 0


def refuse_gaps(words: argparse.Namespace) -> None:
    """Refuse a command line without an image or without a question, with one that works as it stands.

    Raises:
        InputError: either is missing.
    """
    missing = [option for option in ("--image", "--prompt") if getattr(words, option[2:]) is None]
    if missing:
        from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT  # late: NumPy is needed by few command lines

        images = [str(image) for image in words.image or [EMBEDDED_ROOT / FIRST_IMAGE]]
        named = [word for image in images for word in ("--image", image)]
        example = shlex.join([*named, "--prompt", words.prompt or FIRST_QUESTION])
        raise InputError(f"{' and '.join(missing)} missing: for example medmo generate {example}")


def join_window(argv: Sequence[str]) -> list[str]:
    """Return the command line with a window that begins with a minus joined to its option.

    argparse takes such a word for an option otherwise.
    """
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--window" and NEGATIVE.match(word):
            joined[-1] = f"--window={word}"
        else:
            joined.append(word)
    return joined


def picture_path(out: Path | None, images: Sequence[Path]) -> Path:
    """Return the file that the overlay is written to, in a folder that is there.

    Raises:
        InputError: not the name of a PNG file, or one of the images.
    """
    first = images[0].expanduser()
    out = (out or Path(f"{IMAGE_SUFFIX.sub('', first.name or first.resolve().name)}_overlay.png")).expanduser()
    check_png(out)
    for image in (image.expanduser() for image in images):
        if not out.exists() or not image.exists():
            continue
        if out.samefile(image) or (image.is_dir() and out.resolve().is_relative_to(image.resolve())):
            raise InputError(f"--out {out}: is a file of --image {image}, which would be lost; name another file")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def check_png(out: Path) -> None:
    """Refuse a name that is none of a PNG file.

    Raises:
        InputError: it ends otherwise, or is a folder.
    """
    if out.suffix.lower() != ".png" or out.is_dir():
        raise InputError(f"--out {out}: expected the name of a PNG file, such as answer.png")


def ask_settings(words: argparse.Namespace) -> dict[str, Any]:
    """Return what the command line says of how to read the images and how to answer, as `ask` names it."""
    plain = ("max_new_tokens", "temperature", "seed", "frame", "plane")
    chosen = {name: getattr(words, name) for name in plain}
    return {**chosen, "slice_index": words.slice, "window": read_window_arguments(words.window)}


def image_path(word: str) -> Path:
    """Read the path of an image.

    Raises:
        ArgumentTypeError: it is empty, which `Path` would take for the folder one is in.
    """
    if not word:
        raise argparse.ArgumentTypeError("is empty, expected a file or a folder of DICOM slices")
    return Path(word)


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint", default=DEMO_NAME, help="official folder, a run's folder, or a hub id (default: %(default)s)"
    )
    parser.add_argument(
        "--image",
        type=image_path,
        action="append",
        help="PNG, JPEG, TIFF, DICOM or NIfTI file, or a folder of DICOM slices; again for more",
    )
    parser.add_argument("--prompt", help="the question")
    parser.add_argument("--out", type=Path, help="overlay PNG to write (default: NAME_overlay.png, here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    parser.add_argument("--frame", type=int, help="frame of a multi-frame file, from 0")
    parser.add_argument(
        "--slice",
        type=int,
        action="append",
        help="slice of a volume, from 0 (default: the middle one); once, or per --image",
    )
    parser.add_argument(
        "--plane", default="axial", choices=("axial", "coronal", "sagittal"), help="direction of slicing"
    )
    parser.add_argument(
        "--window",
        action="append",
        help='a preset such as soft_tissue, or "center,width"; three times for red, green and blue',
    )
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the sampling when temperature is above 0")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on CUDA, else float32")
    return parser


def read_window_arguments(texts: Sequence[str] | None) -> Any:
    """Return a preset's name or (center, width), or three of these for red, green and blue; None without any.

    Raises:
        InputError: neither one nor three, or one that is neither a name nor two numbers.
    """
    if texts is None:
        return None
    windows = [_read_window(text) for text in texts]
    if len(windows) not in (1, 3):
        raise InputError(f"--window is given {len(windows)} times: give one, or three for red, green and blue")
    return windows[0] if len(windows) == 1 else tuple(windows)


def _read_window(text: str) -> str | tuple[float, float]:
    if "," not in text:
        return text
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--window {text}: expected a preset's name or two numbers, as in --window 40,400") from None
    return center, width


def describe(answer: "Reply") -> str:
    """Write text and boxes for people."""
    from medmo_core.boxes import by_image

    lines = [printable(line) for line in answer.text.splitlines()] or ["(the model said nothing)"]
    if not answer.finished:
        lines.append("(cut: the answer reached --max-new-tokens)")
    numbers = [number for number, part in enumerate(by_image(answer.boxes), start=1) for _ in range(len(part))]
    boxes = zip(numbers, answer.boxes.labels, answer.boxes.xyxy.tolist(), answer.corners_mm(), strict=True)
    for index, (number, label, row, corners_mm) in enumerate(boxes):
        place = f" of image {number}" if len(answer.images) > 1 else ""
        lines.append(f"box {printable(label) or index}: [{', '.join(f'{v:.0f}' for v in row)}] px{place}")
        if corners_mm is not None:
            first, last = corners_mm[0], corners_mm[2]
            spans = [f"({', '.join(f'{v:.1f}' for v in corner)})" for corner in (first, last)]
            lines.append(f"    {spans[0]} to {spans[1]} mm in the patient (left, back, head)")
    lines += [f"note: {error}" for error in answer.errors if answer.boxes or "{" in answer.text]
    lines.append(RESEARCH_ONLY)
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
