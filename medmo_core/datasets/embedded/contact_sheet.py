"""A contact sheet: one or more images of every source with their boxes, to be looked at."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...durable import replacing
from .facts import EMBEDDED_ROOT, ImageFacts, load_facts

TILE_PX, CAPTION_PX, COLUMNS, MARGIN_PX = 320, 34, 4, 6
LINE_PX, NUM_LINES = 14, 3  # of the names below a picture: over it they would hide one another and the picture
COLOURS = ("#ff4d4d", "#4dd2ff", "#ffe14d", "#7dff4d", "#ff8cf0", "#ffa64d", "#9d8cff", "#4dffc3")
MAX_BOXES = len(COLOURS)  # per picture, each in its own colour; boxes of one name share theirs


def pick(records: tuple[ImageFacts, ...], per_group: int = 3) -> list[ImageFacts]:
    """Return images of every volume: those that show most, spread over its slices."""
    chosen: list[ImageFacts] = []
    for group in dict.fromkeys(r.group for r in records):
        members = [r for r in records if r.group == group and r.structures]
        number = min(per_group, len(members))
        for part in range(number):
            stretch = members[part * len(members) // number : (part + 1) * len(members) // number]
            chosen.append(max(stretch, key=lambda r: len(r.structures)))
    return chosen


def contact_sheet(path: str | Path, *, records: list[ImageFacts] | None = None, columns: int = COLUMNS) -> Path:
    """Draw a sheet of the embedded images with boxes and names, and return where it is.

    Args:
        path: PNG to write.
        records: what to draw; None: up to three images of every volume.
        columns: pictures in a row.
    """
    chosen = pick(load_facts()) if records is None else records
    rows = -(-len(chosen) // columns)
    cell_width, cell_height = TILE_PX + MARGIN_PX, TILE_PX + CAPTION_PX + NUM_LINES * LINE_PX + MARGIN_PX
    sheet = Image.new("RGB", (columns * cell_width + MARGIN_PX, rows * cell_height + MARGIN_PX), "#202020")
    draw = ImageDraw.Draw(sheet)
    for index, record in enumerate(chosen):
        x = MARGIN_PX + index % columns * cell_width
        y = MARGIN_PX + index // columns * cell_height
        sheet.paste(tile(record), (x, y + CAPTION_PX))
        title = f"{record.id}  [{record.split}]"
        contrast = {"given": "contrast given", "none": "no contrast"}.get(record.contrast or "", "")
        words = ", ".join(w for w in (record.modality, record.region, record.plane, contrast) if w)
        draw.text((x, y), title, fill="white", font=_font(13))
        draw.text((x, y + 16), words, fill="#b0b0b0", font=_font(11))
    target = Path(path)
    with replacing(target) as partial:
        sheet.save(partial, format="PNG")
    return target


def tile(record: ImageFacts, side: int = TILE_PX) -> Image.Image:
    """Return one picture of `side` px with its boxes drawn, and below it their names in the colours of the boxes."""
    with Image.open(EMBEDDED_ROOT / record.path) as stored:
        picture = stored.convert("RGB")
    scale = side / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", (side, side + NUM_LINES * LINE_PX), "black")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    many = len(record.structures) > 1 and len({s.name for s in record.structures}) == 1
    ordered = sorted(record.structures, key=lambda s: -(s.area_mm2 or 0))[: None if many else MAX_BOXES]
    colours = dict(zip(dict.fromkeys(item.name for item in ordered), COLOURS, strict=False))
    for item in ordered:
        x1, y1, x2, y2 = (round(v * scale) for v in item.xyxy_px)
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colours[item.name])
    for name, (x, y) in name_places(list(colours), side).items():
        draw.text((x, side + y), name, fill=colours[name], font=_font(11))
    return canvas


def name_places(names: list[str], width: int) -> dict[str, tuple[int, int]]:
    """Return where each name stands, in lines from the left and top; names that find no room are left out."""
    places: dict[str, tuple[int, int]] = {}
    x, line = 2, 0
    for name in names:
        length = round(_font(11).getlength(name))
        if x > 2 and x + length > width:
            x, line = 2, line + 1
        if line >= NUM_LINES:
            break
        places[name] = (x, line * LINE_PX)
        x += length + 9
    return places


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
