"""Texts of the embedded set say what the masks show, are drawn alike each time, and do not give answers away."""

from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest
from PIL import Image

from medmo_core.data.images.load import load_image
from medmo_core.data.records.read import sample_from_json
from medmo_core.data.records.sample import Sample
from medmo_core.data.sample_text import SampleText
from medmo_core.data.text.tokenizer import Tokenizer
from medmo_core.datasets.catalogue import CATALOGUE
from medmo_core.datasets.embedded.facts import EMBEDDED_ROOT, ImageFacts, load_facts, look
from medmo_core.datasets.embedded.tasks import ABSENT_RATIO, EMBEDDED_TASKS, EmbeddedTasks, eval_samples
from medmo_core.datasets.embedded.texts import REPORT_ORGANS, place
from medmo_core.metrics import report_fact_f1, vqa_correct
from medmo_core.profile import QWEN3_VL
from medmo_recipes.evaluation.baselines import best_constant_box, fit_baselines, mean_iou

WORDS = SampleText(QWEN3_VL)
BY_PATH = {r.path: r for r in load_facts()}
TRAIN = {task: eval_samples(task, "train", n=300, seed=11) for task in EMBEDDED_TASKS}


def window_mask(sample: Sample) -> tuple[ImageFacts, np.ndarray]:
    """The mask cut out and padded as the picture is, by other means than the code under test."""
    record = BY_PATH[sample.images[0].path]
    mask = np.asarray(Image.open(EMBEDDED_ROOT / str(record.mask)))
    x0, y0, x1, y1 = sample.images[0].crop or (0, 0, record.width, record.height)
    pad = 1000
    return record, np.pad(mask, pad)[y0 + pad : y1 + pad, x0 + pad : x1 + pad]


def pixels_of(record: ImageFacts, mask: np.ndarray, name: str) -> np.ndarray:
    """Where a structure is."""
    return np.isin(mask, [s.mask_value for s in record.structures if s.name == name])


def form_of(sample: Sample) -> str:
    """The form of question that wrote a sample."""
    return str(sample.provenance["template"])


def masked(samples: list[Sample]) -> list[Sample]:
    """The samples about images of which every structure has a mask."""
    records = [BY_PATH[s.images[0].path] for s in samples]
    known = [r.mask is not None and all(s.mask_value is not None for s in r.structures) for r in records]
    return [s for s, is_known in zip(samples, known, strict=True) if is_known]


@pytest.mark.parametrize("task", EMBEDDED_TASKS)
@pytest.mark.parametrize("crops", [True, False])
def test_a_source_is_a_function_of_index_and_random_state(task: str, crops: bool) -> None:
    source = CATALOGUE[f"embedded:{task}"].open("train", crops)
    samples = [source.get(i * 7, Random(i)) for i in range(20)]
    assert samples == [source.get(i * 7, Random(i)) for i in range(20)]
    if crops:
        assert samples != [source.get(i * 7, Random(i + 100)) for i in range(20)]
    assert all((s.images[0].crop is None) or crops for s in samples)


@pytest.mark.parametrize("task", EMBEDDED_TASKS)
def test_evaluation_samples_are_fixed_and_held_out(task: str) -> None:
    first = eval_samples(task, "test", n=60, seed=3)
    assert first == eval_samples(task, "test", n=60, seed=3)
    assert first != eval_samples(task, "test", n=60, seed=4)
    assert len({s.id for s in first}) == len(first) >= 50
    assert {s.split for s in first} == {"test"}
    assert not {s.group for s in first} & {s.group for s in TRAIN[task]}
    whole = eval_samples(task, "test", "none", n=60)
    assert all(s.images[0].crop is None for s in whole)


@pytest.mark.parametrize("task", EMBEDDED_TASKS)
def test_every_sample_is_a_valid_record(task: str) -> None:
    for sample in TRAIN[task][:60]:
        assert sample_from_json(sample.to_json()) == sample
        sample.truth_boxes()
        assert sample.licence and sample.provenance["template"]


def test_the_picture_has_the_size_the_sample_says() -> None:
    for sample in TRAIN["vqa"][:30]:
        image = sample.images[0]
        loaded = load_image(image.path, root=sample.root, crop=image.crop)
        assert loaded.pixels.shape == (image.height, image.width, 3)


def test_boxes_are_tight_round_what_the_crop_shows() -> None:
    checked = 0
    for sample in masked(TRAIN["grounding"]):
        record, mask = window_mask(sample)
        for box in sample.boxes:
            rows, columns = np.nonzero(pixels_of(record, mask, box.label))
            if box.label == "nucleus":
                continue
            assert box.xyxy_px == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), sample.id
            checked += 1
        if form_of(sample) == "absent":
            assert not sample.boxes
            assert not pixels_of(record, mask, sample.provenance["about"]).any(), sample.id
    assert checked > 200


def test_grounding_asks_mostly_for_one_box_and_sometimes_for_what_is_not_there() -> None:
    source = EmbeddedTasks("grounding")
    drawn = [source.get(Random(i).randrange(len(source)), Random(i)) for i in range(600)]
    share = {name: count / len(drawn) for name, count in Counter(map(form_of, drawn)).items()}
    assert share["absent"] == pytest.approx(ABSENT_RATIO, abs=0.06) and share["one"] > 0.65 and 0 < share["all"] < 0.1
    assert all(len(s.boxes) == 1 for s in eval_samples("grounding", "test", n=50))


def test_yes_and_no_follow_from_the_masks() -> None:
    seen = Counter()
    for sample in masked(TRAIN["vqa"]):
        if form_of(sample) in ("visible", "lesion"):
            record, mask = window_mask(sample)
            pixels = pixels_of(record, mask, sample.provenance["about"]).sum()
            assert sample.answer is not None
            assert (pixels >= 16) if sample.answer.value == "yes" else (pixels == 0), sample.id
            seen[sample.answer.value] += 1
    assert min(seen["yes"], seen["no"]) > 30


def test_halves_follow_from_the_boxes() -> None:
    seen = Counter()
    for sample in masked(TRAIN["vqa"]):
        axis = {"image_half": 1, "image_height": 0}.get(form_of(sample))
        if axis is not None:
            record, mask = window_mask(sample)
            where = np.nonzero(pixels_of(record, mask, sample.provenance["about"]))[axis]
            centre = (where.min() + where.max() + 1) / 2 / mask.shape[axis]
            assert sample.answer is not None
            assert sample.answer.value == (("upper", "left")[axis] if centre < 0.5 else ("lower", "right")[axis])
            seen[sample.answer.value] += 1
    assert min(seen.values()) >= 5 and len(seen) == 4


def test_neither_template_nor_words_give_away_a_paired_answer() -> None:
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_template: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in eval_samples("vqa", "train", n=1500, seed=5):
        if form_of(sample) in ("visible", "image_half", "image_height") and sample.answer is not None:
            by_question[WORDS.question_text(sample)][str(sample.answer.value)] += 1
            by_template[form_of(sample)][str(sample.answer.value)] += 1
    for counts in by_template.values():
        assert max(counts.values()) / counts.total() < 0.6, counts
    # In expectation the commoner answer of n coin tosses is a little over n / 2; only often asked questions count.
    often = [c for c in by_question.values() if c.total() >= 20]
    assert len(often) >= 10
    assert sum(max(c.values()) for c in often) / sum(c.total() for c in often) < 0.62


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_report_states_its_facts_and_they_follow_from_the_masks(split: str) -> None:
    for sample in eval_samples("report", split, n=120, seed=2):
        assert sample.answer is not None and sample.facts
        assert report_fact_f1(str(sample.answer.value), sample.facts) == 1.0, sample.answer.value
        record, mask = window_mask(sample)
        for fact in sample.facts:
            pixels = pixels_of(record, mask, fact.finding).sum()
            assert (pixels >= 16) if fact.status == "present" else (pixels == 0), (sample.id, fact)
        if record.source.startswith("ct-") or record.source == "mr-abdomen":
            assert {f.finding for f in sample.facts} <= set(REPORT_ORGANS)


def test_captions_name_only_what_is_there() -> None:
    for task in ("caption", "retrieval"):
        for sample in masked(TRAIN[task]):
            record, mask = window_mask(sample)
            assert sample.answer is not None
            for fact in sample.facts:
                assert pixels_of(record, mask, fact.finding).any()
                stem = "nucle" if fact.finding == "nucleus" else fact.finding
                assert stem in str(sample.answer.value)


def test_layout_facts_say_where() -> None:
    assert [place(x, y) for x, y in ((0.1, 0.1), (0.5, 0.5), (0.9, 0.5), (0.5, 0.99))] == [
        "upper left",
        "centre",
        "right",
        "lower",
    ]
    samples = eval_samples("retrieval", "test", n=80, seed=0)
    assert len({s.facts for s in samples}) >= 20  # enough distinct candidates
    for sample in samples:
        assert sample.answer is not None
        parts = str(sample.answer.value).partition(": ")[2].rstrip(".").split(", ")
        assert parts == [f"{fact.finding} {fact.site}" for fact in sample.facts]


def test_texts_are_short() -> None:
    tokenizer = Tokenizer.embedded()
    for samples in TRAIN.values():
        for sample in samples:
            assert len(WORDS.question_text(sample).split()) <= 12
            assert sample.answer is not None and len(tokenizer.encode(sample.answer.value or "")) <= 40


def test_an_empty_corner_has_no_organ_and_a_cut_organ_is_neither_there_nor_absent() -> None:
    record = next(r for r in load_facts() if r.id == "ct-abdomen-085")
    liver = next(s for s in record.structures if s.name == "liver")
    corner = look(record, (-100, -100, 4, 4))
    assert not corner.seen and corner.is_absent("liver")
    sliver = look(record, (liver.xyxy_px[0] - 60, 0, liver.xyxy_px[0] + 3, 101))
    assert not sliver.is_absent("liver") and "liver" not in sliver.visible_names


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmbeddedTasks("grouding"), "no task 'grouding'"),
        (lambda: EmbeddedTasks("vqa", "valid"), "no split 'valid'"),
        (lambda: eval_samples("vqa", crops="some"), "crops='some'"),
    ],
)
def test_wrong_names_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_the_constant_box_is_the_best_one() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.4, (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.5, (40, 2))], 1)
    found = float(mean_iou(np.array([best_constant_box(boxes)]), boxes)[0])
    grid = np.linspace(0, 0.9, 10)
    candidates = np.array([(a, b, c, d) for a in grid for b in grid for c in grid for d in grid if a < c and b < d])
    assert found >= mean_iou(candidates, boxes).max()
    assert found >= mean_iou(boxes, boxes).max()
    np.testing.assert_allclose(mean_iou(np.array([[0, 0, 1, 1.0]]), np.array([[0, 0, 0.5, 0.5]])), [0.25])


def test_baselines_answer_with_the_majority_and_only_what_training_knows() -> None:
    baselines = fit_baselines([*TRAIN["vqa"], *TRAIN["grounding"], *TRAIN["report"]])
    truth = [s for s in TRAIN["vqa"] if form_of(s) == "modality"]
    common = Counter(s.answer.value for s in truth if s.answer).most_common(1)[0][0]
    assert baselines.answer(truth[0]) == common
    assert baselines.answer(TRAIN["caption"][0]) is None
    one = next(s for s in TRAIN["grounding"] if s.boxes)
    boxes = baselines.boxes(one)
    assert boxes is not None and boxes.frame == "pixel" and boxes.size == one.image_size()
    unknown = fit_baselines(TRAIN["vqa"]).boxes(one)
    assert unknown is None
    right = [vqa_correct(baselines.answer(s) or "", s.answer) for s in TRAIN["vqa"] if s.answer]
    words = fit_baselines(TRAIN["vqa"], by="question")
    right_by_words = [vqa_correct(words.answer(s) or "", s.answer) for s in TRAIN["vqa"] if s.answer]
    assert 0.4 < np.mean(right) <= np.mean(right_by_words)
    assert report_fact_f1(baselines.answer(TRAIN["report"][0]) or "", TRAIN["report"][0].facts) >= 0
