"""`medmo generate`: ask a checkpoint about one image, or about several at once.

    medmo generate --checkpoint runs/quickstart/reinforce/final --image scan.dcm --prompt "Where is the liver?"
    medmo generate --checkpoint exported/ --image ct.nii.gz --slice 40 --window soft_tissue --prompt "Find the spleen."
    medmo generate --checkpoint exported/ --image prior.png --image current.png --prompt "What is new in image 2?"

Prints what the model says and the boxes it wrote, in pixels of the image and, where the file knows the patient's axes,
in millimetres; draws them on a picture. How boxes are written comes from the checkpoint's medmo_profile.json. Nothing
that a file's header says of a person is printed or stored.

Research use only: not a medical device, not for diagnosis.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medmo_core.boxes import AnyBoxes, by_image
from medmo_core.data.images.load import LoadedImage, load_image
from medmo_core.data.images.overlay import beside, draw_overlay
from medmo_core.data.packing import pack
from medmo_core.data.records.sample import ImageRef, Sample
from medmo_core.errors import InputError
from medmo_core.inference.kit import Kit
from medmo_core.inference.load import load

NOTICE = "Research use only: not a medical device, not for diagnosis."


@dataclass(frozen=True)
class Generated:
    """What a checkpoint said about its images.

    Attributes:
        text: as the model wrote it.
        finished: the model ended its answer; otherwise it was cut at max_new_tokens.
        boxes: what could be read out of the text, in pixels of the image it lies in; `ImageBoxes` of several images.
        errors: what could not be read as written, in words.
        images: the pictures as they were shown, with their geometry.
    """

    text: str
    finished: bool
    boxes: AnyBoxes
    errors: tuple[str, ...]
    images: tuple[LoadedImage, ...]

    def corners_mm(self) -> list[list[list[float]] | None]:
        """Return four corners x, y, z per box in the patient's space (DICOM axes); None where a geometry lacks."""
        corners: list[list[list[float]] | None] = []
        for boxes, image in zip(by_image(self.boxes), self.images, strict=True):
            geometry = image.geometry
            corners += [None] * len(boxes) if geometry is None else boxes.to_patient(geometry).tolist()
        return corners

    def to_json(self) -> dict[str, Any]:
        """Return plain values, images by index from 0 where there are several; nothing in them names a person."""
        boxes: list[dict[str, Any]] = [
            {"label": label, "xyxy_px": [round(v, 1) for v in row]} | ({"image": index} if len(self.images) > 1 else {})
            for index, part in enumerate(by_image(self.boxes))
            for label, row in zip(part.labels, part.xyxy.tolist(), strict=True)
        ]
        for box, corners in zip(boxes, self.corners_mm(), strict=True):
            if corners is not None:
                box["corners_mm"] = [[round(v, 2) for v in corner] for corner in corners]
        sizes = [list(image.size) for image in self.images]
        return {
            "text": self.text,
            "finished": self.finished,
            "boxes": boxes,
            "errors": list(self.errors),
            **({"image_sizes": sizes} if len(sizes) > 1 else {"image_size": sizes[0]}),
            "notice": NOTICE,
        }

    def draw(self, title: str) -> Image.Image:
        """Return the pictures with their boxes, beside one another."""
        titles = [f"Image {n}: {title}" for n in range(1, len(self.images) + 1)] if len(self.images) > 1 else [title]
        parts = zip(self.images, by_image(self.boxes), titles, strict=True)
        return beside([draw_overlay(i.pixels, b, title=words, geometry=i.geometry) for i, b, words in parts])


def main(argv: Sequence[str] | None = None) -> int:
    """Answer as the command line says; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    kit = load(arguments.checkpoint, device=arguments.device, dtype=arguments.dtype)
    generated = generate_one(
        kit,
        arguments.image,
        arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
        frame=arguments.frame,
        slice_index=arguments.slice,
        plane=arguments.plane,
        window=read_window_argument(arguments.window),
    )
    if arguments.json:
        print(json.dumps(generated.to_json(), indent=2))
    else:
        print(describe(generated))
    out = arguments.out or Path(f"{arguments.image[0].name.split('.')[0]}_overlay.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    generated.draw(arguments.prompt).save(out, format="PNG")
    if not arguments.json:
        print(f"overlay: {out}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="official folder, a run's folder, or a hub id")
    parser.add_argument(
        "--image",
        type=Path,
        required=True,
        action="append",
        help="PNG, JPEG, TIFF, DICOM or NIfTI file; again for more",
    )
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--out", type=Path, help="overlay PNG to write (default: NAME_overlay.png, here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    parser.add_argument("--frame", type=int, help="of a multi-frame file, from 0")
    parser.add_argument(
        "--slice", type=int, action="append", help="of a volume, from 0 (default: the middle one); once, or per --image"
    )
    parser.add_argument("--plane", default="axial", choices=("axial", "coronal", "sagittal"), help="of a volume")
    parser.add_argument("--window", help='a preset such as soft_tissue, or "center,width"')
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling, when temperature is above 0")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on CUDA, else float32")
    return parser


def read_window_argument(text: str | None) -> str | tuple[float, float] | None:
    """Return a preset's name, or (center, width) from "center,width"."""
    if text is None or "," not in text:
        return text
    try:
        center, width = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--window {text}: expected a preset's name or two numbers, as in --window 40,400") from None
    return center, width


def generate_one(
    kit: Kit,
    image: str | Path | Sequence[str | Path],
    prompt: str,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    frame: int | None = None,
    slice_index: int | Sequence[int] | None = None,
    plane: str = "axial",
    window: Any = None,
) -> Generated:
    """Ask about one image file, or about several.

    Args:
        kit: from `medmo_core.inference.load`.
        image: PNG, JPEG, TIFF, DICOM or NIfTI file; several are shown in their order, as image 1, image 2, ...
        prompt: the question.
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        seed: of the sampling.
        frame: of a multi-frame file.
        slice_index: of a volume, one for all images or one each; None: the middle one.
        plane: of a volume.
        window: a preset's name, (center, width), or None for the file's own.

    Raises:
        InputError: an image cannot be read as asked (the message names it and the fix), the prompt is empty, or there
            are other numbers of slices than of images.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty: ask something, as in --prompt 'Where is the liver?'")
    paths = [Path(image)] if isinstance(image, str | Path) else [Path(one) for one in image]
    slices = list(slice_index) if isinstance(slice_index, Sequence) else [slice_index]
    if len(slices) not in (1, len(paths)):
        raise InputError(
            f"{len(slices)} slices for {len(paths)} image(s): give one --slice for all, or one per --image"
        )
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    images: list[LoadedImage] = []
    references: list[ImageRef] = []
    for path, one in zip(paths, slices * (len(paths) // len(slices)), strict=True):
        images.append(load_image(path, frame=frame, slice_index=one, plane=plane, window=window))
        width, height = images[-1].size
        references.append(
            ImageRef(
                path=path.absolute().relative_to(root).as_posix(),
                width=width,
                height=height,
                frame=frame,
                slice_index=one,
                plane=plane,
                window=window,
            )
        )
    question = {"role": "user", "content": [*[{"type": "image"}] * len(paths), {"type": "text", "text": prompt}]}
    sample = Sample(id="question", task="vqa", images=tuple(references), messages=(question,), root=root)
    item = kit.processor.encode(sample, for_generation=True)
    batch = pack([item]).to(kit.model.head_weight.device)
    outcome = kit.model.generate(batch, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)[0][0]
    text = kit.tokenizer.decode(outcome.tokens)
    where = sample.truth_boxes()
    assert where is not None
    parsed = kit.profile.read_boxes(text, where)
    return Generated(text, outcome.finished, parsed.boxes, parsed.errors, tuple(images))


def describe(generated: Generated) -> str:
    """Write text and boxes for people."""
    lines = [generated.text or "(the model said nothing)"]
    if not generated.finished:
        lines.append("(cut: the answer reached --max-new-tokens)")
    numbers = [number for number, part in enumerate(by_image(generated.boxes), start=1) for _ in range(len(part))]
    boxes = zip(numbers, generated.boxes.labels, generated.boxes.xyxy.tolist(), generated.corners_mm(), strict=True)
    for index, (number, label, row, corners_mm) in enumerate(boxes):
        place = f" of image {number}" if len(generated.images) > 1 else ""
        lines.append(f"box {label or index}: [{', '.join(f'{v:.0f}' for v in row)}] px{place}")
        if corners_mm is not None:
            first, last = corners_mm[0], corners_mm[2]
            spans = [f"({', '.join(f'{v:.1f}' for v in corner)})" for corner in (first, last)]
            lines.append(f"    {spans[0]} to {spans[1]} mm in the patient (left, back, head)")
    lines += [f"note: {error}" for error in generated.errors if generated.boxes or "{" in generated.text]
    lines.append(NOTICE)
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
