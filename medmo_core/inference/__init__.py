"""Load a checkpoint folder and ask it about images.

    from medmo_core.inference import ask, load

    kit = load("medmo-tiny-demo")       # the toy in the package; or a folder, a run, a hub id
    answer = ask(kit, "scan.dcm", "Where is the liver?")
    print(answer.text, answer.boxes.xyxy, answer.corners_mm())

Research use only: not a medical device, not for diagnosis.
"""

from .ask import ask
from .images import AnyImage
from .kit import Kit
from .load import load
from .reply import Reply

__all__ = ["AnyImage", "Kit", "Reply", "ask", "load"]
