"""The rollout browser: one static page per shown step, with images, boxes, completions and what they earned.

`rollouts/step-000020.html` of the run's folder holds everything it shows, runs no script and loads nothing: boxes are
drawn as SVG over the image, so that they can be hidden one completion at a time. All text is escaped. Prompts are shown
as the model gets them; of where an image comes from only the sample's id is named.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from medmo_core.boxes import AnyBoxes, Boxes, ParsedBoxes, by_image, resize_like
from medmo_core.data.images.load import load_image
from medmo_core.data.images.overlay import TRUE_COLOUR
from medmo_core.data.records.sample import Sample, message_parts
from medmo_core.data.records.store import Root
from medmo_core.data.sample_text import SampleText
from medmo_core.durable import write_text

from ..reinforcement.groups import Group
from ..reinforcement.reward_calls.reward_set import RewardSet
from ..reinforcement.reward_figures import short_names
from .page_templates import page_template
from .rollout_index import write_index

MAX_SIDE = 512  # px; larger images are shrunk for the page
MAX_TEXT = 4000  # characters of a prompt or completion that are shown
MAX_BOXES = 200  # of one text that are drawn
TRUE, GIVEN = "#{:02x}{:02x}{:02x}".format(*TRUE_COLOUR), "#ffffff"
COLOURS = ("#ff9628", "#4ea1ff", "#ff5d8f", "#c48bff", "#ffd84d", "#2fd6d0", "#ff6b4a", "#a9d84a")


def rollout_template(name: str) -> Any:
    """Return a template of the rollout browser.

    Raises:
        ImportError: jinja2 is missing; names the extra.
    """
    return page_template(name, "the rollout browser")


def write_page(
    folder: Path,
    step: int,
    groups: Sequence[Group],
    rewards: RewardSet,
    sample_text: SampleText,
    *,
    root: Root = None,
    max_prompts: int = 8,
) -> Path:
    """Write the page of a step, and index.html anew; only the main process calls this, with its own groups.

    Args:
        folder: rollouts/ in the run's folder, whose metrics.jsonl the index reads; created.
        step: 1-based.
        groups: sampled and rewarded.
        rewards: scored them.
        sample_text: writer of the prompts' words.
        root: data root of samples that do not carry one.
        max_prompts: most prompts on the page; the first of the groups are shown.

    Returns:
        The page's path.

    Raises:
        ImportError: jinja2 is missing; names the extra.
    """
    folder.mkdir(parents=True, exist_ok=True)
    largest = max((len(group.texts) for group in groups), default=0)
    html = rollout_template("rollout_page.html.j2").render(
        step=step,
        total=len(groups),
        names=list(short_names(list(groups[0].components)).values()) if groups else [],
        prompts=[_prompt(group, rewards, sample_text, root) for group in groups[:max_prompts]],
        true_colour=TRUE,
        colours=[_colour(number) for number in range(1, largest + 1)],
    )
    path = folder / f"step-{step:06d}.html"
    write_text(path, html)
    write_index(folder, rollout_template("rollout_index.html.j2"))
    return path


@dataclass(frozen=True)
class _Layer:
    """Boxes that are shown or hidden together; `number` is that of the completion that has them."""

    css: str
    title: str
    colour: str
    boxes: AnyBoxes
    number: int = 0


def _prompt(group: Group, rewards: RewardSet, sample_text: SampleText, root: Root) -> dict[str, Any]:
    sample = group.prompt.sample
    return {
        "name": group.name,
        "task": sample.task,
        "text": _cut(_prompt_text(sample_text, sample)),
        "truth": _cut(_truth(sample_text, sample)),
        "mean": float(group.rewards.mean()),
        "flat": group.is_flat,
        "pictures": _pictures(sample, _layers(sample, group.parsed_boxes), root),
        "completions": [
            {
                "text": _cut(text),
                "tokens": len(generation.tokens),
                "finished": generation.finished,
                "components": [values[i] for values in group.components.values()],
                "reward": float(group.rewards[i]),
                "advantage": float(group.advantages[i]),
                "extra": rewards.extra(generation),
            }
            for i, (text, generation) in enumerate(zip(group.texts, group.generations, strict=True))
        ],
    }


def _layers(sample: Sample, parsed_boxes: Sequence[ParsedBoxes[AnyBoxes] | None]) -> list[_Layer]:
    truth = sample.truth_boxes()
    given = sample.boxes_at([i for i in range(len(sample.boxes)) if i not in sample.sought])
    if truth is None or given is None:
        return []
    layers = [_Layer("given", "given in the question", GIVEN, given), _Layer("true", "true", TRUE, truth)]
    for number, parsed in enumerate(parsed_boxes, 1):
        if parsed is not None:
            boxes = resize_like(parsed.boxes, truth)
            layers.append(_Layer(f"s-{number}", f"completion {number}", _colour(number), boxes, number))
    return layers


def _pictures(sample: Sample, layers: Sequence[_Layer], root: Root) -> list[dict[str, Any]]:
    """Return every image of a sample, at most MAX_SIDE px wide and high, with the boxes that lie in it."""
    pictures = []
    for index, ref in enumerate(sample.images):
        pixels = load_image(
            ref.path, root=sample.root if sample.root is not None else root, frame=ref.frame,
            slice_index=ref.slice_index, plane=ref.plane, window=ref.window, crop=ref.crop,
        ).pixels  # fmt: skip
        height, width = pixels.shape[:2]
        picture = Image.fromarray(pixels)
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=85)  # of pixels alone: nothing of the file's header is in it
        font = round(max(width, height) / 26, 2)
        pictures.append(
            {
                "width": width,
                "height": height,
                "jpeg": base64.b64encode(buffer.getvalue()).decode("ascii"),
                "font": font,
                "layers": [_drawn(layer, by_image(layer.boxes)[index], font) for layer in layers],
            }
        )
    return pictures


def _drawn(layer: _Layer, boxes: Boxes, font: float) -> dict[str, Any]:
    """Return a layer's rectangles in one image, in its px, noted with their label or the completion's number."""
    rectangles = []
    for (x1, y1, x2, y2), label in zip(boxes.pixel().xyxy.tolist()[:MAX_BOXES], boxes.labels, strict=False):
        rectangles.append(
            {
                "x": round(x1, 2),
                "y": round(y1, 2),
                "width": round(x2 - x1, 2),
                "height": round(y2 - y1, 2),
                "label": label,
                "note": str(layer.number) if layer.number else label,
                "note_x": round(x2 if layer.number else x1, 2),
                "note_y": round(max(y1 - 0.2 * font, font), 2),
            }
        )
    anchor = "end" if layer.number else "start"
    return {
        "css": layer.css, "title": layer.title, "colour": layer.colour, "dashed": bool(layer.number), "anchor": anchor,
        "boxes": rectangles,
    }  # fmt: skip


def _colour(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)]


def _prompt_text(sample_text: SampleText, sample: Sample) -> str:
    """Return the prompt's turns, an image as "[image]"."""
    turns = []
    for message in sample_text.messages(sample, for_generation=True):
        parts = message_parts(message)
        words = "".join(part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in parts)
        turns.append(f"{message['role']}: {words}")
    return "\n".join(turns)


def _truth(sample_text: SampleText, sample: Sample) -> str:
    try:
        return sample_text.target_text(sample)
    except ValueError as error:  # a sample need not have an answer to be rewarded
        return f"(no text: {error})"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ... ({len(text) - MAX_TEXT} characters more)"
