"""GraphSAGE of torch_geometric, trained on sampled neighbourhoods.

Model
    A sample is one seed node. Every hop draws its fan-out from each node of the hop before, and no node is drawn twice:
    the largest neighbourhood, and the only one whose size does not depend on the graph. Layer k computes only those
    nodes that the layers after it still need, as torch_geometric's `trim_to_layer` does.

Known not to hold
    On a real graph neighbours repeat, so a batch has fewer nodes than here; sampling on the host is not counted.
"""

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from executor.networks.case import Case
from simgd.errors import WorkloadError


class GraphSage(nn.Module):
    """One mean-aggregating SAGEConv a hop."""

    def __init__(self, widths: list[int]) -> None:
        from torch_geometric.nn import SAGEConv  # type: ignore[import-untyped]

        super().__init__()
        self.convs = nn.ModuleList(SAGEConv(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor, edges: list[Tensor], targets: list[int]) -> Tensor:
        """Return the logits of the seeds.

        *x* holds the features of all nodes, hop by hop; ``edges[k]`` the (source, target) pairs of layer k, whose
        targets are the first ``targets[k]`` nodes.
        """
        for convolution, edge, count in zip(self.convs, edges, targets, strict=True):
            if convolution is not self.convs[0]:
                x = functional.relu(x)
            x = convolution((x, x[:count]), edge)
        return x


def graphsage(features: int = 602, hidden: int = 256, classes: int = 41, fan_out: str = "25,10") -> Case:
    """Return GraphSAGE with one layer a hop; *fan_out* lists the neighbours drawn at each hop, from the seeds on.

    Features, classes and fan-outs are those of the Reddit graph in Hamilton et al. 2017.
    """
    try:
        fans = [int(part) for part in str(fan_out).split(",")]
    except ValueError:
        fans = []
    if not fans or min(fans) < 1:
        raise WorkloadError(f"graphsage: fan_out {fan_out!r} must list whole numbers above 0, such as '25,10'")
    hops = list(accumulate([1, *fans], lambda nodes, fan: nodes * fan))  # nodes of each hop for one seed

    def inputs(batch: int, tokens: int) -> tuple[Any, ...]:
        first = [batch * sum(hops[:hop]) for hop in range(len(hops) + 1)]  # number of the first node of each hop
        drawn = []
        for hop, fan in enumerate(fans, start=1):
            nodes = torch.arange(first[hop], first[hop + 1])
            parents = torch.arange(first[hop - 1], first[hop]).repeat_interleave(fan, output_size=len(nodes))
            drawn.append(torch.stack([nodes, parents]))
        layers = range(len(fans), 0, -1)  # the first layer sees all hops, the last one only the first
        edges = [torch.cat(drawn[:hop], dim=1) for hop in layers]
        targets = [first[hop] for hop in layers]
        return torch.randn(first[-1], features), edges, targets, torch.randint(classes, (batch,))

    def loss(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        x, edges, targets, labels = inputs
        return functional.cross_entropy(module(x, edges, targets), labels)

    return Case(
        module=GraphSage([features] + [hidden] * (len(fans) - 1) + [classes]),
        inputs=inputs,
        loss=loss,
        batch=1024,
        sample="node",
        description=f"GraphSAGE, mean aggregation, neighbours drawn {fan_out}",
        libraries=("torch_geometric",),
    )
