"""The networks that simgd ships, as torch modules with synthetic inputs; see `case` for what a network is.

`NETWORKS` names the function of each shipped workload. Every module works on the meta device, so a workload is counted
without memory, and on a CPU or GPU, where the small ones (digits-cnn, char-transformer, mlp) learn within minutes.
"""

from collections.abc import Callable

from executor.networks.case import Case, layer_module, load
from executor.networks.graphs import graphsage
from executor.networks.images import alexnet, resnet50, vgg16, vit_b16
from executor.networks.inception import googlenet, googlenet_heads
from executor.networks.small import char_transformer, digits_cnn, mlp
from executor.networks.text import bert_large, gpt2

NETWORKS: dict[str, Callable[..., Case]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "googlenet": googlenet,
    "googlenet-heads": googlenet_heads,
    "resnet50": resnet50,
    "bert-large": bert_large,
    "gpt2": gpt2,
    "vit-b16": vit_b16,
    "graphsage": graphsage,
    "digits-cnn": digits_cnn,
    "char-transformer": char_transformer,
    "mlp": mlp,
}

__all__ = ["NETWORKS", "Case", "layer_module", "load", *(function.__name__ for function in NETWORKS.values())]
