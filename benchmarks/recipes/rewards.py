"""The box rewards, from text to score, beside loops over NumPy and SciPy and beside COCOeval, on one core.

Completions name boxes of four labels, as Qwen3-VL's JSON: most near a true box, some astray, some under a wrong label;
true boxes of one prompt do not overlap. All ways start from the same texts and true boxes, and parse them.

- NumPy and SciPy: per completion one `json.loads`, all overlaps as matrices, and `linear_sum_assignment` for each
  matching of the reward. Its scores are ours.
- COCOeval: per completion one call of pycocotools with its own settings, to the average precision. That is no reward
  of ours: what is compared is F1 of its matches at IoU 0.5, our formula `f1`.
- COCOeval, one threshold: the least it can do: one threshold, one area range, no precision; compared in the same way.
"""

import contextlib
import importlib.util
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from medmo_core.boxes import Boxes
from medmo_core.profile import QWEN3_VL
from medmo_core.rewards import REWARDS

from ..suite.comparison import OURS, Comparison, Ready, Way, Work
from ..suite.made_once import Shared
from ..suite.schema import Check

SIZE = (1024, 768)
LABELS = ("liver", "spleen", "left kidney", "right kidney")
IDS = {label: number for number, label in enumerate(LABELS, 1)}
THRESHOLD = 0.5
TOLERANCE = 1e-9
ROUNDING = 1e-12
"""Of a division: it must not decide a pair that lies exactly on the threshold."""
DIRECTION = "text to score"

T = TypeVar("T")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Texts:
    """Completions and what is true of each, in the form that each way likes best."""

    completions: list[str] = field(default_factory=list)
    boxes: list[Boxes] = field(default_factory=list)
    corners: list[Array] = field(default_factory=list)
    labels: list[NDArray[Any]] = field(default_factory=list)


Score = Callable[[Texts], Sequence[float | None]]


def comparisons(device: torch.device, *, short: bool) -> list[Comparison]:
    """Return the comparisons; all of them run on the CPU."""
    prompts, samples, boxes, few = (2, 3, 4, 1) if short else (64, 8, 16, 2)
    loops, missing = "NumPy and SciPy", "" if importlib.util.find_spec("pycocotools") else "pycocotools not installed"

    def comparison(case: str, prompts: int, ours: Score, *peers: tuple[str, Score, Score]) -> Comparison:
        """Compare ways with the scores that each must have; ours must have those of the first peer."""
        texts, count = Shared(partial(make_texts, prompts, samples, boxes)), prompts * samples
        ways = [Way(OURS, partial(ready, texts, ours, peers[0][1], loops), "ours")]
        for name, score, expected in peers:
            absent = missing if name.startswith("COCOeval") else ""
            ways.append(Way(name, partial(ready, texts, score, expected, "our scores"), absent=absent))
        case = f"{case}{count} completions of {boxes} boxes"
        work = {DIRECTION: Work(items=count, unit="completions")}
        return Comparison("recipes", "rewards", case, "float64", (DIRECTION,), ways, work, seconds=0.6)

    lean = partial(coco_f1, lean=True)
    return [
        comparison("", prompts, our_scores, (loops, numpy_scores, our_scores)),
        comparison("", few, our_scores, (loops, numpy_scores, our_scores), ("COCOeval", coco_f1, our_f1),
                   ("COCOeval, one threshold", lean, our_f1)),
        comparison("MedMO's formula, ", prompts, our_medmo_scores, (loops, numpy_medmo_scores, our_medmo_scores)),
    ]  # fmt: skip


def ready(texts: Shared[Texts], score: Score, expected: Score, against: str) -> Ready:
    given = texts()

    def call() -> Sequence[float | None]:
        return score(given)

    # None becomes NaN, which nothing equals.
    pair = [np.array(on_one_core(partial(way, given))(), dtype=np.float64) for way in (score, expected)]
    check = Check(against, float(np.abs(pair[0] - pair[1]).max()), TOLERANCE)
    return Ready({DIRECTION: on_one_core(call)}, check)


def on_one_core(call: Callable[[], T]) -> Callable[[], T]:
    """Return the call with one thread of torch's."""

    def on_one() -> T:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return on_one


def make_texts(prompts: int, samples: int, boxes: int, seed: int = 0) -> Texts:
    """Return completions as a half-trained model writes them.

    Args:
        prompts: number of prompts, each with different true boxes.
        samples: completions of a prompt.
        boxes: true ones of a prompt, and as many said.
        seed: seed of the draws.
    """
    rng = np.random.default_rng(seed)
    texts = Texts()
    for _ in range(prompts):
        side = math.ceil(math.sqrt(boxes))
        cell = 1000 // side
        low = np.stack(np.divmod(np.arange(boxes), side), axis=1) * cell + rng.integers(0, cell // 4, (boxes, 2))
        truth = np.concatenate([low, low + rng.integers(cell // 4, cell // 2, (boxes, 2))], axis=1)
        names = rng.integers(0, len(LABELS), boxes)
        labels = tuple(LABELS[name] for name in names)
        true_boxes = Boxes(torch.from_numpy(truth).double(), "norm1000", SIZE, labels).pixel()
        for _ in range(samples):
            rows = truth + rng.integers(-(cell // 10), cell // 10, truth.shape)
            astray = rng.random(boxes) < 0.1
            rows[astray] = 1000 - rows[astray]
            rows = np.sort(rows.clip(0, 1000).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
            said = np.where(rng.random(boxes) < 0.1, rng.integers(0, len(LABELS), boxes), names)
            items = [{"bbox_2d": row.tolist(), "label": LABELS[name]} for row, name in zip(rows, said, strict=True)]
            texts.completions.append(json.dumps(items))
            texts.boxes.append(true_boxes)
            texts.corners.append(true_boxes.xyxy.numpy())
            texts.labels.append(np.array(labels))
    return texts


def our_scores(texts: Texts, reward: str = "box", **settings: Any) -> list[float | None]:
    """Take our way."""
    count = len(texts.completions)
    return REWARDS[reward](
        texts.completions, task=["grounding"] * count, boxes=texts.boxes, image_size=[SIZE] * count, profile=QWEN3_VL,
        **settings,
    )  # fmt: skip


our_f1 = partial(our_scores, formula="f1")
our_medmo_scores = partial(our_scores, reward="medmo_box")


def read_boxes(text: str) -> tuple[Array, list[str]]:
    """Return the corners in pixels and the labels of one completion; reversed boxes are left out."""
    try:
        items = json.loads(text)
    except ValueError:
        return np.zeros((0, 4)), []
    rows = np.array([item["bbox_2d"] for item in items], dtype=np.float64).reshape(-1, 4)
    labels = [item["label"].strip().lower() for item in items]
    rows = rows.clip(0, 1000) * np.array(SIZE * 2) / 1000
    good = (rows[:, 0] <= rows[:, 2]) & (rows[:, 1] <= rows[:, 3])
    if not good.all():
        rows, labels = rows[good], [label for label, kept in zip(labels, good, strict=True) if kept]
    return rows, labels


def overlaps(pred: Array, truth: Array) -> tuple[Array, Array]:
    """Return IoU and GIoU of all pairs."""
    sides = np.minimum(pred[:, None, 2:], truth[None, :, 2:]) - np.maximum(pred[:, None, :2], truth[None, :, :2])
    sides = sides.clip(0)
    inter = sides[..., 0] * sides[..., 1]
    area = (pred[:, 2] - pred[:, 0]) * (pred[:, 3] - pred[:, 1])
    true_area = (truth[:, 2] - truth[:, 0]) * (truth[:, 3] - truth[:, 1])
    union = area[:, None] + true_area - inter
    iou = inter / union
    sides = np.maximum(pred[:, None, 2:], truth[None, :, 2:]) - np.minimum(pred[:, None, :2], truth[None, :, :2])
    hull = sides[..., 0] * sides[..., 1]
    return iou, iou - (hull - union) / hull


def numpy_scores(texts: Texts) -> list[float]:
    """Take the way of NumPy and SciPy, completion by completion."""
    scores = []
    for text, truth, true_labels in zip(texts.completions, texts.corners, texts.labels, strict=True):
        pred, labels = read_boxes(text)
        if len(pred) == 0 or len(truth) == 0:
            scores.append(float(len(pred) == len(truth)))
            continue
        iou, giou = overlaps(pred, truth)
        pay = (iou + giou.clip(0)) / 2
        other = np.array(labels)[:, None] != true_labels
        pay[other] = 0
        iou[other] = 0
        overlap = pay[linear_sum_assignment(pay, maximize=True)].sum() / max(len(pred), len(truth))
        hits = (iou[linear_sum_assignment(iou, maximize=True)] >= THRESHOLD - ROUNDING).sum()
        scores.append((overlap + 2 * hits / (len(pred) + len(truth))) / 2)
    return scores


def numpy_medmo_scores(texts: Texts) -> list[float]:
    """Take the way of NumPy and SciPy with MedMO's formula (docs/box_reward.md), nothing priced."""
    scores = []
    for text, truth in zip(texts.completions, texts.corners, strict=True):
        pred, _ = read_boxes(text)
        if len(pred) == 0 or len(truth) == 0:
            scores.append(0.0)
            continue
        _, giou = overlaps(pred, truth)
        distance = np.abs(pred[:, None] - truth).sum(axis=2) / (2 * math.hypot(*SIZE))
        pairs = linear_sum_assignment(5 * distance + 2 * (1 - giou))
        pay = (5 * (1 - distance[pairs].clip(0, 1)) + (giou[pairs] + 1)) / 7
        scores.append(min(1.0, pay.sum() / len(truth)))
    return scores


def coco_f1(texts: Texts, *, lean: bool = False) -> list[float]:
    """Take the way of COCOeval, completion by completion.

    Args:
        texts: what is scored.
        lean: match at one threshold and leave the average precision out.

    Returns:
        F1 of the matches at IoU 0.5.
    """
    from pycocotools.cocoeval import COCOeval

    scores = []
    for text, truth, true_labels in zip(texts.completions, texts.corners, texts.labels, strict=True):
        pred, labels = read_boxes(text)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(_coco(truth, true_labels.tolist()), _coco(pred, labels), "bbox")
            if lean:
                evaluation.params.iouThrs = np.array([THRESHOLD - ROUNDING])
                evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
                evaluation.params.maxDets = [100]
            evaluation.evaluate()
            if not lean:
                evaluation.accumulate()
                evaluation.summarize()
        whole = [found for found in evaluation.evalImgs if found and found["aRng"] == evaluation.params.areaRng[0]]
        hits = sum(int((found["dtMatches"][0] > 0).sum()) for found in whole)
        scores.append(2 * hits / (len(pred) + len(truth)) if len(pred) + len(truth) else 1.0)
    return scores


def _coco(corners: Array, labels: Sequence[str]) -> Any:
    """Return boxes of one image as pycocotools keeps them."""
    from pycocotools.coco import COCO

    held: Any = COCO()
    held.dataset = {
        "images": [{"id": 1, "width": SIZE[0], "height": SIZE[1]}],
        "categories": [{"id": number, "name": name} for name, number in IDS.items()],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": IDS[label], "bbox": [x1, y1, x2 - x1, y2 - y1],
             "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, "score": 1.0}
            for number, ((x1, y1, x2, y2), label) in enumerate(zip(corners.tolist(), labels, strict=True), 1)
        ],
    }  # fmt: skip
    held.createIndex()
    return held
