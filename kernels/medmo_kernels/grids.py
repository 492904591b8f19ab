"""Numbers of a launch: counts of blocks, powers of two, and the factor from natural to base-2 logarithms."""

LOG2E = 1.4426950408889634


def cdiv(count: int, block: int) -> int:
    """Return how many blocks hold `count`."""
    return -(-count // block)


def next_power_of_2(count: int) -> int:
    """Return the smallest power of two that is not below `count`; 1 at least."""
    return 1 << max(0, count - 1).bit_length()
