"""Where there is no GPU the Triton code of every room runs in Triton's interpreter.

The interpreter must be asked for before Triton is imported, so the variable is set before anything else.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
