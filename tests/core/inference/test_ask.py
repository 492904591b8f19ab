"""Questions about images: any kind of image in, text, boxes, millimetres and a picture out, nothing of the patient."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmo_core.batch import Batch
from medmo_core.boxes import by_image
from medmo_core.data.images.load import LoadedImage, load_image
from medmo_core.errors import InputError
from medmo_core.generation.decoding import Generation
from medmo_core.inference import Kit, Reply, ask
from medmo_core.inference import images as inference_images

BOX = 'It is here: [{"bbox_2d": [250, 500, 750, 1000], "label": "liver"}]'
GREY = np.full((48, 32, 3), 90, dtype=np.uint8)
LetSay = Callable[[str], None]


def pictures(count: int) -> list[np.ndarray]:
    """Pictures of different sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 8 * n, 64, 3), dtype=np.uint8) for n in range(count)]


def test_boxes_come_in_pixels_and_millimetres(kit: Kit, says: LetSay, named_dicom: Path) -> None:
    says(BOX)
    answer = ask(kit, named_dicom, "Where is the liver?")
    assert answer.text == BOX and answer.finished
    assert answer.boxes.labels == ("liver",)
    assert answer.boxes.xyxy.tolist() == [[15.0, 20.0, 45.0, 40.0]]  # of 60 x 40 px
    corners = answer.corners_mm()
    assert corners[0] is not None
    # Half a pixel before the first centre, then 15 columns of 0.5 mm and 20 rows of 2 mm.
    assert corners[0][0] == pytest.approx([-10.0 - 0.25 + 7.5, -20.0 - 1.0 + 40.0, 30.0])
    assert corners[0][2] == pytest.approx([-10.0 - 0.25 + 22.5, -20.0 - 1.0 + 80.0, 30.0])
    assert json.loads(json.dumps(answer.to_json()))["boxes"][0]["xyxy_px"] == [15.0, 20.0, 45.0, 40.0]


def test_nothing_names_the_patient(kit: Kit, says: LetSay, named_dicom: Path, tmp_path: Path) -> None:
    says(BOX)
    named_file = named_dicom.rename(tmp_path / "Vandelay_4711.dcm")
    answer = ask(kit, named_file, "Where is the liver?")
    answer.picture("Where is the liver?").save(tmp_path / "overlay.png")
    shown = repr(answer) + json.dumps(answer.to_json()) + repr(answer.images[0].info)
    for trace in ("Vandelay", "4711"):
        assert trace not in shown
        assert trace.encode() not in (tmp_path / "overlay.png").read_bytes()


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "deep.tif", "volume.nii.gz"])
def test_every_kind_of_file(kit: Kit, says: LetSay, nifti: Path, name: str) -> None:
    says(BOX)
    path = nifti.parent / name
    if name.startswith("picture"):
        Image.fromarray(GREY).save(path)
    elif name == "deep.tif":
        Image.fromarray(np.arange(48 * 32, dtype=np.uint16).reshape(48, 32)).save(path)
    answer = ask(kit, str(path), "Where is the liver?")
    assert answer.images[0].size == (32, 48)
    assert answer.boxes.xyxy.tolist() == [[8.0, 24.0, 24.0, 48.0]]
    assert (answer.corners_mm()[0] is not None) == (name == "volume.nii.gz")


def test_the_form_of_an_image_does_not_change_the_answer(kit: Kit, tmp_path: Path) -> None:
    """One picture as file, Pillow image, array and loaded image: the same pixels, the same tokens."""
    grey = pictures(1)[0][..., 0]
    path = tmp_path / "picture.png"
    Image.fromarray(grey).save(path)
    forms = [path, str(path), Image.open(path), grey, np.stack([grey] * 3, axis=-1), load_image(path)]
    answers = [ask(kit, form, "Where is the liver?", max_new_tokens=6) for form in forms]
    assert len({answer.text for answer in answers}) == 1
    assert all(np.array_equal(answer.images[0].pixels, answers[0].images[0].pixels) for answer in answers)


def test_a_pillow_image_is_turned_upright_and_left_alone(kit: Kit, says: LetSay, tmp_path: Path) -> None:
    says("no")
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn
    Image.fromarray(GREY).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as picture:
        assert ask(kit, picture, "Is it upright?").images[0].size == (48, 32)
        assert picture.size == (32, 48) and picture.getexif()[274] == 6
    transparent = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert ask(kit, transparent, "Is it white?").images[0].pixels.min() == 255
    deep = Image.fromarray(np.full((32, 32), 1000, dtype=np.uint16))
    assert 0 < ask(kit, deep, "Is it grey?").images[0].pixels.max() < 255


def test_an_image_is_decoded_once(kit: Kit, says: LetSay, nifti: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(BOX)
    decoded: list[object] = []

    def counted(path: Path, **choice: object) -> LoadedImage:
        decoded.append(path)
        return load_image(path, **choice)  # type: ignore[arg-type]

    monkeypatch.setattr(inference_images, "load_image", counted)
    ask(kit, nifti, "Where is the liver?")
    assert decoded == [nifti]
    monkeypatch.setattr(
        kit.model, "generate", lambda *_, **__: [[Generation(kit.tokenizer.encode("no"), [], True)]] * 3
    )
    ask(kit, nifti, ["Is it A?", "Is it B?", "Is it C?"])
    assert decoded == [nifti] * 2


def test_a_batch_answers_as_one_by_one(kit: Kit) -> None:
    """Greedy in float64: what is asked beside a question changes no token of its answer."""
    a, b, c = pictures(3)
    pairs = [(a, "Where is the liver?"), ([b, c], "What is new in image 2?"), (a, "Is it a CT?"), (c, "Describe it.")]
    together = ask(kit, pairs, max_new_tokens=8)
    apart = [ask(kit, images, question, max_new_tokens=8) for images, question in pairs]
    assert [answer.text for answer in together] == [answer.text for answer in apart]
    assert together == apart
    assert len({answer.text for answer in together}) > 1  # otherwise the comparison could not fail


def test_questions_about_the_same_images(kit: Kit) -> None:
    a, b = pictures(2)
    questions = ["Where is the liver?", "What is new?"]
    answers = ask(kit, [a, b], questions, max_new_tokens=8)
    assert [len(answer.images) for answer in answers] == [2, 2]
    assert answers == [ask(kit, [a, b], question, max_new_tokens=8) for question in questions]
    assert ask(kit, a, []) == [] and ask(kit, []) == []


def test_shared_images_run_through_the_encoder_once(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Batch] = []

    def generate(batch: Batch, **_: object) -> list[list[Generation]]:
        batches.append(batch)
        return [[Generation(kit.tokenizer.encode("no"), [], True)]] * batch.num_documents

    monkeypatch.setattr(kit.model, "generate", generate)
    picture = pictures(1)[0]
    ask(kit, picture, "Is it A?")
    ask(kit, picture, ["Is it A?", "Is it B?"])
    alone, together = (sum(len(rows) for rows in batch.patches.values()) for batch in batches)
    assert together == alone


def test_sampling_depends_on_the_seed_alone(kit: Kit) -> None:
    picture = pictures(1)[0]

    def said(seed: int) -> str:
        return ask(kit, picture, "Describe it.", temperature=1.0, seed=seed, max_new_tokens=8).text

    assert said(3) == said(3) != said(4)


def test_a_box_lies_in_the_image_it_names(kit: Kit, says: LetSay, nifti: Path) -> None:
    """A box that names no image lies in the last one."""
    old, new = '"bbox_2d": [250, 500, 750, 1000], "label": "old"', '"bbox_2d": [0, 0, 500, 500], "label": "new"'
    says(f'[{{"image": 1, {old}}}, {{{new}}}]')
    answer = ask(kit, [GREY, nifti], "What is new?")
    assert [part.xyxy.tolist() for part in by_image(answer.boxes)] == [
        [[8.0, 24.0, 24.0, 48.0]],
        [[0.0, 0.0, 16.0, 24.0]],
    ]
    assert [corners is not None for corners in answer.corners_mm()] == [False, True]
    assert [box["image"] for box in answer.to_json()["boxes"]] == [0, 1]


def test_slices_are_for_all_images_or_one_each(kit: Kit, says: LetSay, nifti: Path) -> None:
    says("no")

    def shown(slices: int | Sequence[int | None] | None) -> list[np.ndarray]:
        answer: Reply = ask(kit, [nifti, nifti], "Is it new?", slice_index=slices)
        return [image.pixels for image in answer.images]

    first, last = shown([0, 4])
    assert not np.array_equal(first, last)
    assert np.array_equal(shown(4)[0], last) and np.array_equal(shown([4])[1], last)
    assert np.array_equal(shown(None)[0], shown(2)[0])
    with pytest.raises(InputError, match=r"3 slices for 2 image\(s\)"):
        shown([0, 1, 2])


@pytest.mark.parametrize(
    ("images", "question", "options", "said"),
    [
        (GREY, "  ", {}, "the prompt is empty"),
        (GREY, ["Where?", ""], {}, "the prompt is empty"),
        (GREY, 7, {}, "question"),
        (GREY, None, {}, "there is no question"),
        ([GREY, GREY], None, {}, "there is no question"),
        ([], "Where?", {}, "there is no image"),
        ("missing.png", "Where?", {}, r"missing\.png: no such file"),
        (GREY / 255, "Where?", {}, r"shape \(48, 32, 3\) of float64, expected .*uint8"),
        (GREY[None], "Where?", {}, r"shape \(1, 48, 32, 3\)"),
        (np.zeros((0, 4), dtype=np.uint8), "Where?", {}, r"shape \(0, 4, 3\) .*holds no pixel"),
        (np.zeros((8, 8, 4), dtype=np.uint8), "Where?", {}, "drop its alpha channel"),
        (np.zeros((3, 8, 8), dtype=np.uint8), "Where?", {}, "move its channels to the end"),
        (np.zeros((8, 8)), "Where?", {}, r"shape \(8, 8\) of float64.*scale its values"),
        (GREY, "where " * 9000, {}, r"tokens and the answer may be 512 more; the checkpoint knows \d+ positions"),
        (GREY, "Where?", {"max_new_tokens": 1.5}, "max_new_tokens is 1.5, expected a whole number"),
        (GREY, "Where?", {"max_new_tokens": "5"}, "max_new_tokens is '5', expected a whole number"),
        (GREY, "Where?", {"temperature": float("nan")}, "temperature is nan, expected a finite number"),
        (GREY, "Where?", {"temperature": "hot"}, "temperature is 'hot', expected a finite number"),
        (GREY, "Where?", {"seed": "a"}, "seed is 'a', expected a whole number"),
        (3.5, "Where?", {}, "of type float, expected the path of a file"),
        (GREY, "Where?", {"slice_index": 3}, "choose from a file"),
        (GREY, "Where?", {"window": "soft_tissue"}, "window chooses grey levels of a file"),
        (Image.fromarray(GREY), "Where?", {"frame": 1}, "choose from a file"),
        ("a.png", "Where?", {"frame": "a"}, r"a\.png: frame is 'a', expected a whole number"),
        ("a.png", "Where?", {"slice_index": "12"}, r"a\.png: slice_index is '12', expected a whole number"),
        ("a.png", "Where?", {"slice_index": [1.5]}, r"a\.png: slice_index is 1\.5, expected a whole number"),
        ("a.png", "Where?", {"plane": ["axial"]}, r"a\.png: plane is \['axial'\], expected axial"),
        ("x" * 5000 + ".png", "Where?", {}, "File name too long"),
        ("\udcff.png", "Where?", {}, r"\\udcff\.png: no such file"),
        (GREY, "Where\ud800?", {}, "half a character"),
        (GREY, "Where?", {"temperature": 1e-320}, "temperature is 1e-320, below 1e-06; write 0"),
        (Image.fromarray(GREY), "Where?", {"window": "soft_tissue"}, "it takes no window"),
    ],
)
def test_mistakes_are_explained(kit: Kit, images: object, question: object, options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ask(kit, images, question, **options)  # type: ignore[call-overload]


def test_a_closed_pillow_image_is_explained(kit: Kit, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    lazy, loaded = Image.open(tmp_path / "a.png"), Image.open(tmp_path / "a.png")
    loaded.load()
    for image in (lazy, loaded):
        image.close()
        with pytest.raises(InputError, match="Pillow image: it is closed"):
            ask(kit, image, "Where?")


def test_a_folder_in_place_of_a_kit_is_explained() -> None:
    with pytest.raises(InputError, match="first argument is of type str, expected what `load"):
        ask("runs/mine", GREY, "Where?")  # type: ignore[call-overload]


def test_a_damaged_file_is_named(kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20)
    with pytest.raises(InputError, match=r"cut\.png"):
        ask(kit, tmp_path / "cut.png", "What is this?")
