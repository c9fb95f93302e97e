"""A cluster's links as a graph, to compare machines whatever their vertices are called."""

import networkx

from simgd.topology import Cluster


def graph(of: Cluster, *kinds: str) -> "networkx.Graph[str]":
    """The links of *kinds*, with what stands at their ends."""
    made: networkx.Graph[str] = networkx.Graph()
    for link in of.links:
        if link.kind in kinds:
            a, b = link.ends
            made.add_edge(a, b, kind=link.kind, count=link.count, bandwidth=link.bandwidth, latency=link.latency)
            made.nodes[a]["kind"], made.nodes[b]["kind"] = of.vertices[a], of.vertices[b]
    return made


def alike(a: "networkx.Graph[str]", b: "networkx.Graph[str]") -> bool:
    return networkx.is_isomorphic(
        a, b, node_match=lambda one, other: one == other, edge_match=lambda one, other: one == other
    )
