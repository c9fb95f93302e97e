"""Parameter servers: participants beyond the ranks (the workers), each with an equal block of the buffer."""

import numpy as np

from simgd.algorithms.steps import Ints, Steps, check_transfers, numbers, send, whole
from simgd.errors import ClusterError


def push(ranks: int, servers: int = 1) -> Steps:
    """Send every worker's buffer to the servers, which add: 1/servers of it to each."""
    worker, server = _pairs(ranks, servers)
    return whole("direct", "push", ranks, servers, [send(worker, ranks + server, server, reduce=True)], others=servers)


def pull(ranks: int, servers: int = 1) -> Steps:
    """Send every worker the blocks of all servers."""
    worker, server = _pairs(ranks, servers)
    return whole("direct", "pull", ranks, servers, [send(ranks + server, worker, server)], others=servers)


def _pairs(ranks: int, servers: int) -> tuple[Ints, Ints]:
    rank = numbers(ranks)
    if servers < 1:
        raise ClusterError(f"collective with {servers} servers: there must be at least 1")
    check_transfers(f"{ranks} workers with {servers} servers", ranks * servers)
    return np.repeat(rank, servers), np.tile(np.arange(servers), ranks)
