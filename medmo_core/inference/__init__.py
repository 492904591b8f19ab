"""Load a checkpoint folder and ask it about images.

    from medmo_core.inference import ask, load

    kit = load("runs/quickstart/reinforce/final")
    answer = ask(kit, "scan.dcm", "Where is the liver?")
    print(answer.text, answer.boxes.xyxy, answer.corners_mm())

Research use only: not a medical device, not for diagnosis.
"""

from .answer import Answer
from .ask import ask
from .images import AnyImage
from .kit import Kit
from .load import load

__all__ = ["Answer", "AnyImage", "Kit", "ask", "load"]
