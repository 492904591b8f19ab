"""Data of other tools as records: converted, validated without a fault, loaded, and their boxes on the right pixels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmo_core.convert.outcome import LeftOut
from medmo_core.convert.run import CONVERTERS, Counts, convert
from medmo_core.data.images.load import load_image
from medmo_core.data.records.sample import Sample
from medmo_core.data.sources.file_check import iter_faults
from medmo_core.data.sources.foreign import FORMATS
from medmo_core.data.sources.open_source import open_source

SQUARES = {"liver": (5, 3, 17, 11), "left, kidney": (20, 8, 30, 24)}
"""Label -> corners of a bright rectangle in a dark picture of 40 x 30 px."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.zeros((30, 40, 3), np.uint8)
    for value, (x1, y1, x2, y2) in zip((100, 200), SQUARES.values(), strict=True):
        pixels[y1:y2, x1:x2] = value
    for name in ("images/a.png", "images/b.png", "images/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def run(name: str, source: Path, out: Path, **options: Any) -> tuple[Counts, list[LeftOut], list[Sample]]:
    """Convert, check that validate finds nothing but what no source says, and load all samples."""
    told: list[LeftOut] = []
    counts = convert(name, source, out, report=told.append, **options)
    faults = [fault for fault in iter_faults(out, counts.root) if fault.field != "licence"]
    assert faults == []
    samples = open_source(str(out), counts.root).samples
    assert len(samples) == counts.written and all(sample.split is None for sample in samples)
    assert len(told) == counts.rows_left_out + counts.parts_left_out
    return counts, told, samples


def assert_boxes_fit(sample: Sample) -> None:
    """Every box of a sample holds all pixels of its rectangle, and no other."""
    for box in sample.boxes:
        pixels = load_image(sample.images[0].path, root=sample.root).pixels[..., 0]
        x1, y1, x2, y2 = (round(v) for v in box.xyxy_px)
        assert box.xyxy_px == pytest.approx((x1, y1, x2, y2), abs=2e-3)
        value = dict(zip(SQUARES, (100, 200), strict=True))[box.label]
        assert (pixels[y1:y2, x1:x2] == value).all() and (pixels == value).sum() == (y2 - y1) * (x2 - x1)


def coco_file(folder: Path, annotations: list[dict[str, Any]]) -> Path:
    document = {
        "info": {"nested": [{"file_name": "no"}]},
        "licenses": [{"id": 3, "name": "CC-BY-4.0"}],
        "annotations": annotations,
        "images": [
            {"id": 1, "file_name": "a.png", "width": 40, "height": 30, "license": 3},
            {"id": "2", "file_name": "b.png", "width": 40, "height": 30},
            {"id": 4, "file_name": "lost.png"},
            {"id": 5, "file_name": "deep/c.png", "width": 30, "height": 40},
            {"id": 6, "file_name": "a.png"},
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(SQUARES)],
    }
    path = folder / "anno.json"
    path.write_text(json.dumps(document, indent=1))
    return path


def annotation(number: int, category: int, **changes: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = list(SQUARES.values())[category]
    box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
    return {"id": number, "image_id": 1, "category_id": category, **box, **changes}


def test_coco(folder: Path) -> None:
    masks = pytest.importorskip("pycocotools.mask")
    rows = [annotation(1, 0), annotation(2, 1)]
    wrong = [
        annotation(3, 0, iscrowd=1),
        annotation(4, 0, bbox=[1, 2, 0, 4]),
        annotation(5, 0, category_id=9),
        annotation(6, 0, image_id=77),
        annotation(7, 0, bbox=[30, 20, 40, 40]),
        annotation(8, 0, bbox=[1, 2, float("nan"), 4]),
        *[annotation(9, 0, **change, image_id=6) for change in ({"iscrowd": 1}, {"category_id": 9})],
    ]
    counts, told, samples = run(
        "coco", coco_file(folder, [*wrong, *rows]), folder / "my.jsonl", pictures=folder / "images"
    )
    assert (counts.written, counts.boxes, counts.rows_left_out, counts.parts_left_out) == (2, 2, 3, 8)
    first, second = samples
    assert [box.label for box in first.boxes] == list(SQUARES) and second.boxes == ()
    assert (first.licence, first.images[0].path) == ("CC-BY-4.0", "images/a.png")
    assert_boxes_fit(first)
    for box, row in zip(first.boxes, rows, strict=True):  # pycocotools paints the outline and finds its box
        outline = masks.merge(masks.frPyObjects(row["segmentation"], 30, 40))
        x, y, width, height = masks.toBbox(outline)
        assert box.xyxy_px == (x, y, x + width, y + height)
    reasons = {item.what: item.reason for item in told}
    assert "crowd" in reasons["annotation 3"] and "without area" in reasons["annotation 4"]
    assert "category 9" in reasons["annotation 5"] and "image 77" in reasons["annotation 6"]
    assert "outside its image" in reasons["anno:1 box 0"] and "no such file" in reasons["anno:4"]
    assert "not the same as none to find" in reasons["image 6"]
    assert reasons["anno:5"] == "30x40 px is stated, the file has 40x30"


@pytest.mark.parametrize(
    "names",
    [
        "names: [liver, 'left, kidney']",
        "names:\n  0: liver\n  1: 'left, kidney'  # one",
        'names:\n- liver\n- "left, kidney"\nnc: 2',
        "names: {0: liver, 1: 'left, kidney'}",
    ],
)
def test_yolo(folder: Path, names: str) -> None:
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nval: images/deep\n{names}\n")
    (folder / "labels" / "deep").mkdir(parents=True)
    lines = [
        f"{i} {(x1 + x2) / 80:.6f} {(y1 + y2) / 60:.6f} {(x2 - x1) / 40:.6f} {(y2 - y1) / 30:.6f}"
        for i, (x1, y1, x2, y2) in enumerate(SQUARES.values())
    ]
    x1, y1, x2, y2 = SQUARES["liver"]
    outline = " ".join(f"{x / 40:.6f} {y / 30:.6f}" for x, y in ((x1, y1), (x2, y1), (x2, y2), (x1, y2)))
    wrong = ["7 0.5 0.5 0.1 0.1", "0 12 14 5 5", "0 0.5 0.5", "liver 1 2 3 4", "0 0.5 0.5 0 0.1"]
    (folder / "labels" / "a.txt").write_text("\n".join([*lines, *wrong]))
    (folder / "labels" / "deep" / "c.txt").write_text(f"\ufeff0 {outline}\r\n", encoding="utf-8")
    (folder / "labels" / "b.txt").write_text("0 0,5 0,5 0,1 0,1")
    counts, told, (first, second) = run("yolo", folder, folder / "my.jsonl")
    assert (counts.boxes, counts.rows_left_out, counts.parts_left_out) == (3, 1, 6)
    assert [box.label for box in (*first.boxes, *second.boxes)] == [*SQUARES, "liver"]
    assert_boxes_fit(first)
    assert_boxes_fit(second)
    (lost,) = (item for item in told if not item.is_part)
    assert lost.what == "images/b.png" and "not the same as none to find" in lost.reason
    (folder / "labels" / "b.txt").unlink()
    assert "no label file" in run("yolo", folder, folder / "my.jsonl")[1][-1].reason


TURNS = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "Left."}]
CONVERSATIONS: list[dict[str, Any]] = [
    {"id": 7, "image": "a.png", "conversations": TURNS},
    {"image": "a.png", "system": "Be brief.", "conversations": [*TURNS, {"from": "human", "value": "Why?"}, TURNS[1]]},
    {"images": ["a.png", "b.png"], "messages": [{"role": "user", "content": "<image><image>Same?"},
                                                {"role": "assistant", "content": "Yes."}]},
    {"conversations": [{"from": "user", "value": "What is CT?"}, {"from": "assistant", "value": "A scan."}]},
    {"image": "a.png", "conversations": [{"from": "human", "value": "Where?"}, TURNS[1]]},
    {"image": "a.png", "conversations": [TURNS[0]]},
    {"image": "a.png", "conversations": [TURNS[0], {"from": "function_call", "value": "{}"}]},
    {"image": "lost.png", "conversations": TURNS},
    {"image": "a.png"},
    {"id": 7, "image": "a.png", "conversations": TURNS},
]  # fmt: skip


@pytest.mark.parametrize("form", ["list", "lines", "pretty"])
@pytest.mark.parametrize("name", ["llava", "sharegpt"])
def test_conversations(folder: Path, name: str, form: str) -> None:
    texts = [json.dumps(row, indent=2 if form == "pretty" else None) for row in CONVERSATIONS]
    source = folder / "talk.json"
    source.write_text("[" + ",\n".join(texts) + "]" if form == "list" else "\n".join(texts))
    counts, told, samples = run(name, source, folder / "my.jsonl", pictures=folder / "images")
    assert (counts.written, counts.rows_left_out) == (4, 6)
    assert [sample.task for sample in samples] == ["vqa", "dialogue", "vqa", "text"]
    assert samples[0].id == "talk:7"
    assert samples[0].messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "Where?"}]
    assert [message["role"] for message in samples[1].messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [part["type"] for part in samples[2].messages[0]["content"]] == ["image", "image", "text"]
    reasons = [item.reason for item in told]
    for reason, words in zip(reasons, ("0 times <image>", "nothing to learn", "'function_call'", "no such file",
                                       "no conversations", "an earlier record has this id"), strict=True):  # fmt: skip
        assert words in reason


def test_csv(folder: Path) -> None:
    boxes = [
        f'images/{picture}.png,Find it,,{",".join(map(str, corners))},"{label}"'
        for label, corners in SQUARES.items()
        for picture in "ab"  # rows of one picture do not follow one another
    ]
    lines = ["Path,Question,Answer,x1,y1,x2,y2,label", *boxes, "images/a.png,Is it there?,yes,,,,,",
             "images/deep/c.png,Find it,,,,,,", "images/b.png,Find it,,0.1,0.2,0.4,0.5,liver",
             "images/b.png,Find it,,1,2,x,5,liver", "images/b.png,Find it,,1,2,3,5,", ",Where?,yes,,,,,",
             "lost.png,Where?,yes,,,,,"]  # fmt: skip
    source = folder / "rows.csv"
    source.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    counts, told, samples = run("csv", source, folder / "my.jsonl")
    assert [len(sample.boxes) for sample in samples] == [0, 2, 2, 0]
    assert (counts.boxes, counts.rows_left_out, counts.parts_left_out) == (4, 2, 3)
    for sample in samples:
        assert_boxes_fit(sample)
    assert any("fractions" in item.reason for item in told)
    source.write_text("path;question;x1;y1;x2;y2;label\nimages/a.png;Find it;4,5;3;17,25;11;liver\n")
    (sample,) = run("csv", source, folder / "my.jsonl")[2]
    assert sample.boxes[0].xyxy_px == (4.5, 3, 17.25, 11)
    source.write_text('path,question,x1,y1,x2,y2,label\nimages/a.png,Find it,"1,004",3,17,11,liver\n')
    with pytest.raises(ValueError, match="nothing in it could be used"):  # a thousand and four, or one and a bit
        convert("csv", source, folder / "my.jsonl", report=told.append)
    source.write_text("file,text\na.png,x\n")
    with pytest.raises(ValueError, match=r"rows\.csv: its first line names file, text; expected columns of path"):
        convert("csv", source, folder / "my.jsonl", report=told.append)


def test_dicom_folder(folder: Path, write_dicom: Callable[..., Path]) -> None:
    pydicom = pytest.importorskip("pydicom")
    root = folder / "study"
    words = np.arange(48, dtype=np.int16).reshape(6, 8)

    def write(name: str, series: str, patient: str, number: int = 0, **tags: Any) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        ids = {"SeriesInstanceUID": series, "PatientID": patient, "InstanceNumber": number}
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 2.0 * number],
                 "PixelSpacing": [1, 1]}  # fmt: skip
        write_dicom(root / name, words + number, **{"Modality": "CT", **place, **ids, **tags})

    for number in range(3):
        write(f"ct/{number}.dcm", "1.1", "Doe^Jane", number)
        write(f"mixed/{number}.dcm", "1.2", "Doe^Jane", number)
    write("mixed/x.dcm", "1.3", "Roe^Richard", Modality="DX")
    (root / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    (root / "notes.txt").write_text("x")
    counts, told, samples = run("dicomdir", root, folder / "my.jsonl")
    assert [sample.images[0].path for sample in samples] == ["study/ct", "study/mixed/1.dcm", "study/mixed/x.dcm"]
    assert [sample.group for sample in samples] == ["study:patient-1", "study:patient-1", "study:patient-2"]
    assert [sample.answer and sample.answer.value for sample in samples] == ["CT", "CT", "DX"]
    assert np.array_equal(load_image("study/ct", root=folder).pixels, load_image("study/ct/1.dcm", root=folder).pixels)
    assert [(item.what, item.is_part) for item in told] == [
        ("broken.dcm", False), ("2 slices of the series of mixed/1.dcm", True)
    ]  # fmt: skip
    text = (folder / "my.jsonl").read_text() + str(told)
    assert "Doe" not in text and "Roe" not in text and "1.1" not in text
    index = pydicom.Dataset()
    index.DirectoryRecordSequence = [pydicom.Dataset() for _ in range(3)]
    for record, parts in zip(
        index.DirectoryRecordSequence, (["ct", "0.dcm"], ["mixed", "x.dcm"], ["/etc/no.dcm"]), strict=True
    ):
        record.ReferencedFileID = parts
    index.preamble, index.file_meta = b"\0" * 128, pydicom.dataset.FileMetaDataset()
    index.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    index.save_as(root / "DICOMDIR", enforce_file_format=False)
    counts, told, samples = run("dicomdir", root, folder / "index.jsonl", question="Which plane?", answer="axial")
    assert [sample.images[0].path for sample in samples] == ["study/ct/0.dcm", "study/mixed/x.dcm"]
    assert {sample.answer and sample.answer.value for sample in samples} == {"axial"}
    assert [item.what for item in told] == ["no.dcm"]


def test_pictures_that_lie_elsewhere_are_named_from_their_own_folder(folder: Path) -> None:
    source = coco_file(folder, [annotation(1, 0)])
    (folder / "out").mkdir()
    counts, _, samples = run("coco", source, folder / "out" / "my.jsonl", pictures=folder / "images")
    assert counts.root == folder / "images" and samples[0].images[0].path == "a.png"


def test_nothing_is_written_where_nothing_can_be_used(folder: Path) -> None:
    told: list[LeftOut] = []
    source = folder / "anno.json"
    for text, message in (("{", "cannot be read as JSON"), ('{"images": []}', "nothing in it could be used as coco"),
                          ('{"images": [1e', "cannot be read as JSON"), ("[]", "'{' is missing")):  # fmt: skip
        source.write_text(text)
        with pytest.raises(ValueError, match=message):
            convert("coco", source, folder / "my.jsonl", report=told.append)
    with pytest.raises(ValueError, match="is what is read; write to another file"):
        convert("coco", source, source, report=told.append)
    assert not (folder / "my.jsonl").exists()


def test_every_format_that_is_recognised_is_converted() -> None:
    from medmo_recipes.commands.convert import FORMATS as OFFERED

    assert set(CONVERTERS) == set(FORMATS) == set(OFFERED)
