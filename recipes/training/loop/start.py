"""Beginning of a stage: processes joined, the run's folder claimed and its files looked for, before any work."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...settings.run_config import RunConfig
from ..distributed.world import World, connect
from ..loading.files import check_files
from ..loading.workers import check_shared_memory
from .run_folder import claimed


@contextmanager
def begin(config: RunConfig) -> Iterator[World]:
    """Join the other processes, hold the run's folder until the end of the block, and look for the files it names.

    Raises:
        ConfigError: another run has the folder, files are missing (all are named), or shared memory is full.
        ProcessFailed: another process failed first.
    """
    train, parallel = config.train, config.parallel
    with (
        connect(
            train.device, num_threads=train.num_threads, shard=parallel.shard, timeout_s=parallel.timeout_s
        ) as world,
        claimed(train, world),
    ):
        with world.together("looking for the files of the run"):
            check_files(config)
            check_shared_memory(config.data.num_workers)
        yield world
