"""Runs by name. A run is a function that returns a `RunConfig`; a variant calls its parent and changes fields.

Add yours: a function here or in a new file, and a line in `CONFIGS`. `--config NAME --print` shows it whole.
"""

from collections.abc import Callable

from ..settings.run_config import RunConfig
from .debug import debug_align, debug_instruct, debug_reinforce
from .demo import demo_align, demo_instruct, demo_reinforce
from .lora import medmo_4b_lora
from .medmo_4b import medmo_4b_align, medmo_4b_instruct, medmo_4b_instruct_highres, medmo_4b_reinforce
from .medmo_8b import medmo_8b_align, medmo_8b_instruct, medmo_8b_instruct_highres, medmo_8b_reinforce
from .tiny import tiny_align, tiny_instruct, tiny_reinforce

CONFIGS: dict[str, Callable[[], RunConfig]] = {
    "debug_align": debug_align,
    "debug_instruct": debug_instruct,
    "debug_reinforce": debug_reinforce,
    "tiny_align": tiny_align,
    "tiny_instruct": tiny_instruct,
    "tiny_reinforce": tiny_reinforce,
    "demo_align": demo_align,
    "demo_instruct": demo_instruct,
    "demo_reinforce": demo_reinforce,
    "medmo_4b_align": medmo_4b_align,
    "medmo_4b_instruct_highres": medmo_4b_instruct_highres,
    "medmo_4b_instruct": medmo_4b_instruct,
    "medmo_4b_reinforce": medmo_4b_reinforce,
    "medmo_4b_lora": medmo_4b_lora,
    "medmo_8b_align": medmo_8b_align,
    "medmo_8b_instruct_highres": medmo_8b_instruct_highres,
    "medmo_8b_instruct": medmo_8b_instruct,
    "medmo_8b_reinforce": medmo_8b_reinforce,
}
"""Name -> function; the name is the function's."""
