"""COCO detection files: one record per image, with its boxes from x, y, width, height to corners in pixels."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from .json_stream import list_items
from .outcome import DEFAULT_QUESTION, NONE_LEFT, Job, LeftOut, Outcome


def convert_coco(job: Job) -> Iterator[Outcome]:
    """Yield a record per image; crowds and boxes without an area, a known category or a known image are left out.

    The file is read twice, so that the outlines in it never lie in memory together.
    """
    labels: dict[Any, str] = {}
    licences: dict[Any, str] = {}
    boxes: dict[Any, list[tuple[Any, Any, list[float]]]] = defaultdict(list)
    lost: set[Any] = set()
    for kind, item in list_items(job.source, ("categories", "licenses", "annotations")):
        if not isinstance(item, dict):
            yield LeftOut(f"{kind} {item!r:.40}", "no JSON object")
        elif kind == "annotations":
            reason = _fault(item)
            if reason:
                yield LeftOut(f"annotation {item.get('id')}", reason, is_part=True)
                lost |= {item.get("image_id")} if _is_key(item.get("image_id")) else set()
            else:
                boxes[item["image_id"]].append((item.get("id"), item["category_id"], item["bbox"]))
        elif isinstance(item.get("name"), str) and _is_key(item.get("id")):
            (labels if kind == "categories" else licences)[item["id"]] = item["name"]
    for _, image in list_items(job.source, ("images",)):
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or not _is_key(image.get("id")):
            yield LeftOut(f"image {image!r:.40}", "no id or no file_name")
            continue
        rows = []
        for number, category, (x, y, width, height) in boxes.pop(image["id"], []):
            if category not in labels:
                yield LeftOut(f"annotation {number}", f"category {category} is not among the categories", is_part=True)
                lost.add(image["id"])
            else:
                rows.append({"label": labels[category], "xyxy": [x, y, x + width, y + height]})
        if not rows and image["id"] in lost:
            yield LeftOut(f"image {image['id']}", NONE_LEFT)
            continue
        size = {key: image[key] for key in ("width", "height") if key in image}
        record = {
            "id": f"{job.source.stem}:{image['id']}",
            "image": {"path": image["file_name"], **size},
            "question": job.question or DEFAULT_QUESTION,
            "boxes": rows,
        }
        licence = licences.get(image.get("license")) if _is_key(image.get("license")) else None
        yield {**record, "licence": licence} if licence else record
    for image_id, rest in boxes.items():
        for number, _, _ in rest:
            yield LeftOut(f"annotation {number}", f"image {image_id} is not among the images", is_part=True)


def _fault(item: dict[str, Any]) -> str | None:
    """Say why an annotation is no box; None where it is one."""
    box = item.get("bbox")
    if not _is_key(item.get("image_id")) or not _is_key(item.get("category_id")):
        return "no image_id or no category_id"
    if item.get("iscrowd"):
        return "a crowd (iscrowd), not one object"
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, int | float) for v in box):
        return f"bbox is {box!r:.60}, not [x, y, width, height]"
    if not all(math.isfinite(v) for v in box) or box[2] <= 0 or box[3] <= 0:
        return f"bbox is {box!r:.60}: without area"
    return None


def _is_key(value: Any) -> bool:
    return isinstance(value, int | str)
