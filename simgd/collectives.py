"""What every library's collectives have in common: how bus bandwidth is counted, and what a cost says.

Throughout, `nbytes` is the whole buffer: what each rank gives to an all-reduce, reduce-scatter, all-to-all, exchange or
push, or receives from an all-gather, broadcast or pull, as nccl-tests counts "size".
"""

from typing import NamedTuple, assert_never

from simgd.profile import CollectiveKind


class Cost(NamedTuple):
    """Seconds of a collective alone, of which `latency_s` would remain for an empty message, and the algorithm."""

    seconds: float
    latency_s: float
    algorithm: str


def bus_bytes_per_s(kind: CollectiveKind, ranks: int, nbytes: float, seconds: float) -> float:
    """Return the bus bandwidth as nccl-tests defines it: what a link would carry, whatever the number of ranks.

    nbytes/seconds times 2(n-1)/n for an all-reduce, (n-1)/n for reduce-scatter, all-gather and all-to-all, else 1.

    >>> bus_bytes_per_s("all_reduce", 4, 1e9, 1.0)
    1500000000.0
    """
    if ranks == 1 or seconds <= 0:
        return 0.0
    return nbytes / seconds * bus_share(kind, ranks)


def bus_share(kind: CollectiveKind, ranks: int) -> float:
    """Return how many times its message a rank must send at least."""
    match kind:
        case "all_reduce":
            return 2 * (ranks - 1) / ranks
        case "reduce_scatter" | "all_gather":
            return (ranks - 1) / ranks
        case "all_to_all":
            return (ranks - 1) / ranks
        case "broadcast" | "exchange" | "push" | "pull":
            return 1.0
        case _ as never:
            assert_never(never)
