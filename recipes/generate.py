"""`medmo generate`: ask a checkpoint about one image.

    medmo generate --checkpoint runs/quickstart/reinforce/final --image scan.dcm --prompt "Where is the liver?"
    medmo generate --checkpoint exported/ --image ct.nii.gz --slice 40 --window soft_tissue --prompt "Find the spleen."

Prints what the model says and the boxes it wrote, in pixels of the image and, where the file knows the patient's axes,
in millimetres; draws them on a picture. How boxes are written comes from the checkpoint's medmo_profile.json. Nothing
that a file's header says of a person is printed or stored.

Research use only: not a medical device, not for diagnosis.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmo_core.boxes import Boxes
from medmo_core.data.image import LoadedImage, load_image
from medmo_core.data.overlay import draw_overlay
from medmo_core.data.packing import pack
from medmo_core.data.record import ImageRef, Sample

from .training.build import Kit
from .training.inference import load_for_inference
from .training.scoring import read_boxes

NOTICE = "Research use only: not a medical device, not for diagnosis."


@dataclass(frozen=True)
class Generated:
    """What a checkpoint said about one image.

    Attributes:
        text: as the model wrote it.
        finished: the model ended its answer; otherwise it was cut at max_new_tokens.
        boxes: what could be read out of the text, in pixels of `image`.
        errors: what could not be read as written, in words.
        image: the picture as it was shown, with its geometry.
    """

    text: str
    finished: bool
    boxes: Boxes
    errors: tuple[str, ...]
    image: LoadedImage

    def corners_mm(self) -> list[list[list[float]]] | None:
        """Return four corners x, y, z per box in the patient's space (DICOM axes); None without a geometry."""
        geometry = self.image.geometry
        return None if geometry is None else self.boxes.to_patient(geometry).tolist()

    def to_json(self) -> dict[str, Any]:
        """Return plain values; nothing in them names a person."""
        corners_mm = self.corners_mm()
        boxes = [
            {"label": label, "xyxy_px": [round(v, 1) for v in row]}
            for label, row in zip(self.boxes.labels, self.boxes.xyxy.tolist(), strict=True)
        ]
        for box, corners in zip(boxes, corners_mm or [], strict=corners_mm is not None):
            box["corners_mm"] = [[round(v, 2) for v in corner] for corner in corners]
        return {
            "text": self.text,
            "finished": self.finished,
            "boxes": boxes,
            "errors": list(self.errors),
            "image_size": list(self.image.size),
            "notice": NOTICE,
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Answer as the command line says; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    kit = load_for_inference(arguments.checkpoint, device=arguments.device, dtype=arguments.dtype)
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
    out = arguments.out or Path(f"{arguments.image.name.split('.')[0]}_overlay.png")
    out.parent.mkdir(parents=True, exist_ok=True)
    picture = draw_overlay(
        generated.image.pixels, generated.boxes, title=arguments.prompt, geometry=generated.image.geometry
    )
    picture.save(out, format="PNG")
    if not arguments.json:
        print(f"overlay: {out}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        prog="medmo generate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="official folder, a run's folder, or a hub id")
    parser.add_argument("--image", type=Path, required=True, help="PNG, JPEG, TIFF, DICOM or NIfTI file")
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument("--out", type=Path, help="overlay PNG to write (default: NAME_overlay.png, here)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    parser.add_argument("--frame", type=int, help="of a multi-frame file, from 0")
    parser.add_argument("--slice", type=int, help="of a volume, from 0 (default: the middle one)")
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
        raise ValueError(f"--window {text}: expected a preset's name or two numbers, as in --window 40,400") from None
    return center, width


def generate_one(
    kit: Kit,
    image: str | Path,
    prompt: str,
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    frame: int | None = None,
    slice_index: int | None = None,
    plane: str = "axial",
    window: Any = None,
) -> Generated:
    """Ask about one image file.

    Args:
        kit: from `load_for_inference`.
        image: PNG, JPEG, TIFF, DICOM or NIfTI file.
        prompt: the question.
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token.
        seed: of the sampling.
        frame: of a multi-frame file.
        slice_index: of a volume; None: the middle one.
        plane: of a volume.
        window: a preset's name, (center, width), or None for the file's own.

    Raises:
        ValueError: the image cannot be read as asked (the message names it and the fix), or the prompt is empty.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty: ask something, as in --prompt 'Where is the liver?'")
    path = Path(image)
    loaded = load_image(path, frame=frame, slice_index=slice_index, plane=plane, window=window)
    width, height = loaded.size
    reference = ImageRef(
        path=path.name,
        width=width,
        height=height,
        frame=frame,
        slice_index=slice_index,
        plane=plane,
        window=window,
    )
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    question = {"role": "user", "content": content}
    sample = Sample(id="question", task="vqa", images=(reference,), messages=(question,), root=path.parent)
    item = kit.processor.encode(sample, for_generation=True)
    batch = pack([item]).to(kit.model.head_weight.device)
    outcome = kit.model.generate(batch, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)[0][0]
    text = kit.tokenizer.decode(outcome.tokens)
    parsed = read_boxes(text, loaded.size, kit.profile)
    return Generated(text, outcome.finished, parsed.boxes, parsed.errors, loaded)


def describe(generated: Generated) -> str:
    """Write text and boxes for people."""
    lines = [generated.text or "(the model said nothing)"]
    if not generated.finished:
        lines.append("(cut: the answer reached --max-new-tokens)")
    corners_mm = generated.corners_mm()
    for index, (label, row) in enumerate(zip(generated.boxes.labels, generated.boxes.xyxy.tolist(), strict=True)):
        lines.append(f"box {label or index}: [{', '.join(f'{v:.0f}' for v in row)}] px")
        if corners_mm is not None:
            first, last = corners_mm[index][0], corners_mm[index][2]
            spans = [f"({', '.join(f'{v:.1f}' for v in corner)})" for corner in (first, last)]
            lines.append(f"    {spans[0]} to {spans[1]} mm in the patient (left, back, head)")
    lines += [f"note: {error}" for error in generated.errors if generated.boxes or "{" in generated.text]
    lines.append(NOTICE)
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
