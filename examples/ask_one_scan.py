"""Ask a checkpoint about one scan and save a picture of its answer.

    python examples/ask_one_scan.py medmo-tiny-demo scan.dcm "Where is the liver?"

Research use only: not a medical device, not for diagnosis.
"""

import sys

from medmo_core.inference import ask, load


def main(checkpoint: str, scan: str, question: str) -> None:
    """Print text, boxes and millimetres; write answer.png."""
    kit = load(checkpoint)
    answer = ask(kit, scan, question, max_new_tokens=128)
    print(answer.text)
    for label, box, corners in zip(answer.boxes.labels, answer.boxes.xyxy.tolist(), answer.corners_mm(), strict=True):
        print(f"{label}: {box} px, corners in mm: {corners}")
    for error in answer.errors:
        print(f"not read as boxes: {error}")
    answer.picture(question).save("answer.png")
    print("wrote answer.png (research use only)")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(f"usage: {sys.argv[0]} CHECKPOINT IMAGE QUESTION")
    main(*sys.argv[1:])
