"""Algorithms of collectives as their steps: who sends how many blocks to whom, without any time.

Model
    A buffer has equal blocks. In a step all transfers read what was there before it, then all are written; a pipelined
    step does its transfers in list order, block by block. Consecutive pipelined steps are one pipeline.

    kind            a rank starts with            and ends with
    all_reduce      its buffer                    the sum of all buffers
    reduce_scatter  its buffer                    its own part (block number `own[rank]`) of the sum
    all_gather      its own part                  all parts
    broadcast       rank 0, or the first of the order, has the buffer; in the end everybody has
    all_to_all      in block d what it has for    in block d what rank - d had for it
                    rank + d (mod ranks)          (mod ranks)
    exchange        its buffer                    the buffer of rank ^ 1 (its own if there is none)
    push            its buffer                    its buffer; each server has its own block of the sum
    pull            nothing                       all blocks; each server has its own from the start

    Participants beyond the ranks are NVSwitches or servers; those that add start with zeros.

What it leaves out
    Segments and channels of libraries, roots other than the first rank, and any copy inside a rank's own memory.

Sources: Thakur, Rabenseifner, Gropp 2005 (the algorithms of MPICH; all-reduce and all-gather pair near ranks first,
reduce-scatter far ones); Patarasuk, Yuan 2009 (ring); Bruck et al. 1997; Barnett et al. 1994 (scatter and all-gather);
Sanders, Speck, Traeff 2009 and NCCL's src/graph/trees.cc (two trees).
"""

from collections.abc import Callable

from simgd.algorithms import all_gather, all_reduce, all_to_all, broadcast, reduce_scatter, servers
from simgd.algorithms.steps import Pattern, Step, Steps, patterns, volume
from simgd.profile import CollectiveKind

__all__ = [
    "ALGORITHMS",
    "Pattern",
    "Step",
    "Steps",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "at_once",
    "broadcast",
    "patterns",
    "reduce_scatter",
    "servers",
    "volume",
    "workers",
]


def workers(kind: CollectiveKind, ranks: int) -> int:
    """Return how many of *ranks* an algorithm is made for: of a push or pull the last rank is the server."""
    return ranks - 1 if kind in ("push", "pull") else ranks


#: The algorithms that need no more than the number of ranks, by kind and name.
ALGORITHMS: dict[CollectiveKind, dict[str, Callable[[int], Steps]]] = {
    "all_reduce": all_reduce.BY_NAME,
    "reduce_scatter": reduce_scatter.BY_NAME,
    "all_gather": all_gather.BY_NAME,
    "broadcast": broadcast.BY_NAME,
    "all_to_all": all_to_all.BY_NAME,
    "exchange": {"pairs": all_to_all.exchange},
    "push": {"direct": servers.push},
    "pull": {"direct": servers.pull},
}


def at_once(kind: CollectiveKind, ranks: int) -> Steps:
    """Return the steps of an all-to-all, exchange, push or pull whose messages all go straight to where they belong."""
    return ALGORITHMS[kind]["pairs" if kind == "exchange" else "direct"](workers(kind, ranks))
