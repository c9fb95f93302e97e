"""The work of a network is counted exactly, and belongs to the layer that causes it."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from totals import PUBLISHED_TOTALS

from calibration import counting
from calibration.counting import count, from_spec
from calibration.tables import read_table
from executor.networks import NETWORKS, Case
from simgd import files
from simgd.errors import SimgdError
from simgd.workload import Amount, Layer, Workload

# torch_geometric 2.8 calls torch.jit.script when it is imported, which torch 2.13 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def shipped(name: str) -> Workload:
    return files.read(counting.SHIPPED / f"{name}.toml", Workload)


def layer(workload: Workload, name: str) -> Layer:
    return next(layer for layer in workload.layers if layer.name == name)


def flops(workload: Workload, direction: str, *, tokens: int = 0) -> float:
    return sum(getattr(layer, direction).flops.at(1, tokens) for layer in workload.layers)


def case(make, shape, *, loss=lambda module, x: module(x).sum(), tokens=0) -> Case:
    """A case on the meta device; one sample has *shape*, in which -1 stands for the tokens."""

    def inputs(batch, length):
        return (torch.randn(batch, *(length if size == -1 else size for size in shape)),)

    with torch.device("meta"):
        module = make()
    return Case(module=module, inputs=inputs, loss=lambda module, made: loss(module, *made), tokens=tokens)


# What one layer does


def test_a_linear_layer_with_its_activation_does_what_one_counts_by_hand():
    first, second = count(
        case(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), (3,)), name="two"
    ).layers

    # b samples: b x 3 times 3 x 5, a multiplication and an addition each
    assert first.forward.flops == Amount(per_sample=2 * 3 * 5)
    # reads the bias, the inputs and the matrix, writes b x 5; 4 bytes each
    assert first.forward.matrix_bytes == Amount(fixed=4 * (5 + 15), per_sample=4 * (3 + 5))
    # the activation reads and writes b x 5 more
    assert first.forward.bytes == Amount(fixed=4 * (5 + 15), per_sample=4 * (3 + 5 + 5 + 5))
    assert first.forward.kernels == 2

    # nobody needs the gradient of the inputs: the first layer has that of the matrix only, the second has both
    assert first.backward.flops == Amount(per_sample=2 * 3 * 5)
    assert second.backward.flops == Amount(per_sample=2 * 2 * 5 * 2)
    # activation: reads two b x 5, writes one. Matrix: reads b x 5 and b x 3, writes 15. Bias: reads b x 5, writes 5.
    assert first.backward.bytes == Amount(fixed=4 * (15 + 5), per_sample=4 * (15 + 8 + 5))
    assert first.backward.kernels == 3

    # the inputs for the matrix's gradient, and the output of the activation: the second layer's input is the same
    assert first.kept == Amount(per_sample=4 * (3 + 5))
    assert second.kept == Amount()


def test_the_first_convolution_of_resnet50_does_what_one_counts_by_hand():
    conv1 = layer(shipped("resnet50"), "conv1")
    # 112 x 112 positions, 64 outputs of 7 x 7 x 3 products each
    assert conv1.forward.flops == Amount(per_sample=2 * 112 * 112 * 64 * 3 * 49)
    assert conv1.backward.flops == conv1.forward.flops
    weights, image, output = 64 * 3 * 49, 3 * 224 * 224, 64 * 112 * 112
    assert conv1.forward.bytes == Amount(fixed=4 * weights, per_sample=4 * (image + output))
    # reads the output's gradient, the image and the weights, writes the weights' gradient
    assert conv1.backward.bytes == Amount(fixed=4 * 2 * weights, per_sample=4 * (image + output))
    assert conv1.kept == Amount(per_sample=4 * image)


def test_batch_norm_activation_and_pooling_are_one_layer():
    bn1 = layer(shipped("resnet50"), "bn1")
    # batch norm, its counter of batches, ReLU, maximum pooling
    assert bn1.forward.kernels == 4
    full, pooled = 64 * 112 * 112, 64 * 56 * 56
    # batch norm and ReLU read and write, pooling reads, writes values and positions (8 bytes)
    assert bn1.forward.bytes.per_sample == 4 * (4 * full + full + pooled) + 8 * pooled
    # its input, the activation's output, the positions
    assert bn1.kept.per_sample == 4 * 2 * full + 8 * pooled


def test_the_backward_pass_of_a_convolution_does_twice_the_work_of_the_forward_pass_but_for_the_first():
    first, *others = (layer for layer in shipped("resnet50").layers if "conv" in layer.name)
    assert len(others) == 48
    assert first.backward.flops == first.forward.flops
    for conv in others:
        assert conv.backward.flops.per_sample == 2 * conv.forward.flops.per_sample


def test_dropout_is_one_kernel_that_keeps_a_mask_of_bytes():
    (linear,) = count(case(lambda: nn.Sequential(nn.Linear(3, 5), nn.Dropout()), (3,)), name="dropping").layers
    assert linear.forward.kernels == 3  # product, dropout, sum
    assert linear.kept == Amount(per_sample=4 * 3 + 5)  # the inputs and the mask


def test_an_embedding_reads_only_the_rows_that_it_returns():
    wte = layer(shipped("char-transformer"), "characters")
    # one index of 8 bytes and one row of 128 numbers, read and written
    assert wte.forward.bytes.per_token == 8 + 2 * 4 * 128
    # but its gradient is as large as the table
    assert wte.backward.bytes.fixed >= 4 * 128 * 128


def test_attention_grows_with_the_square_of_the_length_and_keeps_no_square():
    qkv = layer(shipped("char-transformer"), "blocks.0.qkv")
    width = 128
    # scores and mixture: two products of tokens x tokens x width; backward recomputes one and needs four
    assert qkv.forward.flops == Amount(per_token=2 * width * 3 * width, per_token2=2 * 2 * width)
    assert qkv.backward.flops == Amount(per_token=2 * 2 * width * 3 * width, per_token2=5 * 2 * width)
    assert qkv.kept.per_token2 == 0


def test_attention_in_torchs_own_module_counts_like_attention_by_hand():
    def make():
        return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    attention = count(case(make, (-1, 16), tokens=64), name="encoder").layers[0]
    assert [tensor.name for tensor in attention.tensors] == [
        "self_attn.out_proj.bias",
        "self_attn.out_proj.weight",
        "self_attn.in_proj_bias",
        "self_attn.in_proj_weight",
    ]
    # three projections in, one out
    assert attention.forward.flops == Amount(per_token=2 * 4 * 16 * 16, per_token2=4 * 16)


def test_a_mask_that_all_samples_share_grows_with_the_square_of_the_length_alone():
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            tokens = x.shape[1]
            return torch.ones(tokens, tokens) @ super().forward(x)

    (masked,) = count(case(lambda: Masked(2, 2), (-1, 2), tokens=32), name="masked").layers
    # ones writes it, the product reads it
    assert masked.forward.bytes.fixed_per_token2 == 4 * 2


# Layers and their order


def test_tensors_of_a_layer_stand_in_the_order_in_which_their_gradients_arrive():
    workload = shipped("alexnet")
    # autograd sends the gradient of a linear layer's bias before that of the matrix
    assert [tensor.name for tensor in layer(workload, "classifier.6").tensors] == [
        "classifier.6.bias",
        "classifier.6.weight",
    ]


@pytest.mark.parametrize("name", ["googlenet", "char-transformer", "graphsage"])
def test_gradients_arrive_on_a_cpu_in_the_order_that_the_workload_says(name):
    workload = shipped(name)
    small = {"googlenet": {"image_size": 64}, "char-transformer": {}, "graphsage": {}}[name]
    made = NETWORKS[name](**small)
    arrived: list[str] = []
    for tensor, parameter in made.module.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, tensor=tensor: arrived.append(tensor))
    made.loss(made.module, made.example(2, 8 if made.tokens else 0)).backward()
    assert arrived == [tensor.name for _, tensor in workload.arrivals]


def test_a_tied_tensor_belongs_to_the_layer_that_uses_it_first_and_is_complete_last():
    for name, embedding, head in [
        ("gpt2", "transformer.wte", "lm_head"),
        ("bert-large", "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    ]:
        workload = shipped(name)
        tied = f"{embedding}.weight"
        assert workload.layers[0].name == embedding
        assert [tensor.name for tensor in workload.layers[0].tensors] == [tied]
        assert layer(workload, head).shared == (tied,)
        assert workload.arrivals[-1][1].name == tied
    assert [tensor.name for tensor in layer(shipped("bert-large"), "cls.predictions.decoder").tensors] == [
        "cls.predictions.bias"
    ]


def test_the_backward_order_is_said_only_where_it_is_not_the_reverse():
    assert shipped("resnet50").backward_order == ()
    # ViT enters its embeddings first, but the gradient of the convolution inside them comes last
    vit = shipped("vit-b16")
    assert [layer.name for layer in vit.layers[:2]] == ["vit.embeddings", "vit.embeddings.patch_embeddings.projection"]
    assert vit.backward_order[-2:] == ("vit.embeddings", "vit.embeddings.patch_embeddings.projection")


def test_a_module_that_holds_parameters_beside_its_parts_is_a_layer_called_root():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.scale

    workload = count(case(Scaled, (2,)), name="scaled")
    assert [found.name for found in workload.layers] == ["(root)", "linear"]
    assert workload.backward_order == ("(root)", "linear")
    assert layer(workload, "(root)").forward.kernels == 2  # product and loss
    assert layer(workload, "linear").forward.kernels == 1


def test_frozen_parameters_make_no_layer_but_their_work_counts():
    def make():
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        module[0].requires_grad_(False)
        return module

    workload = count(case(make, (2,)), name="tuned")
    assert [found.name for found in workload.layers] == ["1"]
    assert workload.parameters == 2 * 2 + 2
    # the work of the frozen layer is done all the same: two products forward; one backward, for the matrix of layer 1
    assert workload.layers[0].forward.flops == Amount(per_sample=2 * 2 * 2 * 2)
    assert workload.layers[0].backward.flops == Amount(per_sample=2 * 2 * 2)


# The shipped workloads


@pytest.mark.parametrize("name", PUBLISHED_TOTALS)
def test_a_shipped_workload_has_the_published_number_of_parameters(name):
    assert shipped(name).parameters == PUBLISHED_TOTALS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shipped_workload_says_how_to_count_it_again(name):
    source = shipped(name).source
    assert source is not None
    assert source.function == f"executor.networks:{NETWORKS[name].__name__}"
    assert "torch" in source.versions


@pytest.mark.parametrize(
    "name", ["mlp", "digits-cnn", "char-transformer", "graphsage", "alexnet", "googlenet", "resnet50", "gpt2"]
)
def test_counting_a_shipped_workload_again_gives_the_same(name):
    assert without_versions(counting.shipped(name)) == without_versions(shipped(name))


def without_versions(workload: Workload) -> dict[str, object]:
    raw = files.plain(workload)
    raw["source"].pop("versions")
    return raw


def test_resnet50_needs_8_18_gflop_an_image():
    assert flops(shipped("resnet50"), "forward") == pytest.approx(8.18e9, rel=1e-3)


def test_alexnet_needs_the_flops_of_its_matrices():
    positions_and_weights = [
        (55 * 55, 64 * 3 * 11 * 11),
        (27 * 27, 192 * 64 * 5 * 5),
        (13 * 13, 384 * 192 * 3 * 3),
        (13 * 13, 256 * 384 * 3 * 3),
        (13 * 13, 256 * 256 * 3 * 3),
        (1, 9216 * 4096),
        (1, 4096 * 4096),
        (1, 4096 * 1000),
    ]
    expected = [2 * positions * weights for positions, weights in positions_and_weights]
    assert [found.forward.flops for found in shipped("alexnet").layers] == [Amount(per_sample=n) for n in expected]


def test_language_models_need_two_flops_a_weight_and_token_and_the_products_of_attention():
    # GPT-2: 12 blocks of 12 w^2 weights, then the head; attention: two products of s x s x w a block
    width, tokens = 768, 1024
    weights = 12 * 12 * width**2 + width * 50257
    expected = 2 * weights * tokens + 12 * 4 * tokens**2 * width
    assert flops(shipped("gpt2"), "forward", tokens=tokens) == expected
    # BERT-large: 24 blocks; the head has a matrix of its own before the tied one
    width, tokens = 1024, 384
    weights = 24 * 12 * width**2 + width**2 + width * 30522
    expected = 2 * weights * tokens + 24 * 4 * tokens**2 * width
    assert flops(shipped("bert-large"), "forward", tokens=tokens) == expected
    # backward: twice the products, and five instead of two for attention
    expected = 2 * 2 * weights * tokens + 24 * 10 * tokens**2 * width
    assert flops(shipped("bert-large"), "backward", tokens=tokens) == expected


def test_bert_trains_with_its_dropout():
    # product, dropout and the shortcut's addition
    assert layer(shipped("bert-large"), "bert.encoder.layer.0.attention.output.dense").forward.kernels == 3


def test_graphsage_multiplies_the_nodes_that_later_layers_need():
    first, own, *_ = shipped("graphsage").layers
    # 25 neighbours and the seed itself have their second neighbourhood averaged: 26 rows of 602 by 602 x 256
    assert first.forward.flops == Amount(per_sample=26 * 2 * 602 * 256)
    assert own.forward.flops == first.forward.flops


def test_googlenet_with_heads_has_the_tensors_of_caffes_in_caffes_order():
    table, _ = read_table(Path(__file__).parent / "data" / "googlenet_k80_caffe_layers.csv")
    for ours, caffes in zip(shipped("googlenet-heads").layers, table.layers, strict=True):
        by_kind = {tensor.name.rpartition(".")[2]: tensor.elements for tensor in ours.tensors}
        # the log pads each tensor to a multiple of 64
        padded = {kind: -(-elements // 64) * 64 for kind, elements in by_kind.items()}
        assert padded == {tensor.name.rpartition(".")[2]: tensor.elements for tensor in caffes.tensors}


@pytest.mark.parametrize("name", NETWORKS)
def test_work_never_shrinks_with_the_batch(name):
    workload = shipped(name)
    for found in workload.layers:
        for work in (found.forward, found.backward):
            for amount in (work.flops, work.matrix_bytes, work.bytes, found.kept):
                values = [amount.at(batch, workload.tokens) for batch in (1, 2, 64)]
                assert values[0] >= 0
                assert all(a <= b for a, b in pairwise(values))
            assert work.matrix_bytes.at(1, workload.tokens) <= work.bytes.at(1, workload.tokens)


# Networks that are refused


class Recursive(nn.Linear):
    """Runs as often as the batch is large."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(len(x)):
            x = torch.relu(x)
        return super().forward(x)


class Cubic(nn.Linear):
    """Lets every sample meet every sample."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x @ x.T @ x)


class Asking(nn.Linear):
    """Asks for a value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * x.sum().item())


class Choosing(nn.Linear):
    """Works on some samples only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[x[:, 0] > 0])


def shared():
    linear = nn.Linear(2, 2)
    return nn.Sequential(linear, nn.ReLU(), linear)


def unused():
    module = nn.Linear(2, 2)
    module.extra = nn.Linear(3, 3)
    return module


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (shared, r"workload 'bad': module '0' runs 2 times in one forward pass"),
        (unused, r"workload 'bad': parameter 'extra.weight' gets no gradient; leave it out, or freeze it"),
        (lambda: Recursive(2, 2), r"layer '\(root\)' launches .* kernels forward, by the size of the inputs"),
        (lambda: Cubic(2, 2), r"FLOPs forward of '\(root\)' are .* at batch 5, where a polynomial through"),
        (lambda: Asking(2, 2), r"workload 'bad': the module asks for a value of its data"),
        (lambda: Choosing(2, 2), r"workload 'bad': the module asks for a value of its data"),
        (lambda: nn.Linear(3, 2), r"a step on the meta device failed \(batch 2\): RuntimeError"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), r"the loss must be a scalar tensor that depends on the par"),
    ],
)
def test_a_network_that_no_workload_can_describe_is_refused_in_one_line(make, message):
    with pytest.raises(SimgdError, match=message) as caught:
        count(case(make, (2,)), name="bad")
    assert "\n" not in str(caught.value)


def test_a_module_with_memory_is_refused():
    with pytest.raises(SimgdError, match="parameter 'weight' must lie on the meta device"):
        count(replace(case(lambda: nn.Linear(2, 2), (2,)), module=nn.Linear(2, 2)), name="bad")


def test_a_question_that_regular_inputs_answer_is_answered():
    class Checking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if torch.isnan(x).any() or not (x == x).all():
                raise ValueError("not a number")
            return super().forward(x)

    assert count(case(lambda: Checking(2, 2), (2,)), name="checking").parameters == 6


# The doorways


def test_a_users_own_network_is_counted_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "mine_to_count.py").write_text(
        "import torch\n"
        "def small_net(hidden=4):\n"
        "    module = torch.nn.Sequential(torch.nn.Linear(8, hidden), torch.nn.Linear(hidden, 3))\n"
        "    return module, lambda batch: (torch.randn(batch, 8), torch.randint(3, (batch,)))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    workload = from_spec("mine_to_count:small_net", {"hidden": 16})
    assert workload.name == "small-net"
    assert workload.parameters == 9 * 16 + 17 * 3
    assert workload.source is not None
    assert workload.source.arguments == {"hidden": 16}
    files.write("W.toml", workload)
    assert files.read("W.toml", Workload) == workload


def test_the_command_writes_a_workload_again(tmp_path):
    assert counting.main(["mlp", "--out", str(tmp_path)]) == 0
    written = files.read(tmp_path / "mlp.toml", Workload)
    assert without_versions(written) == without_versions(shipped("mlp"))


def test_the_command_refuses_an_unknown_name(capsys):
    assert counting.main(["resnet5"]) == 2
    assert "network 'resnet5' is unknown; did you mean 'resnet50'?" in capsys.readouterr().err


def test_functional_dropout_that_is_off_costs_nothing():
    class Calm(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return functional.dropout(super().forward(x), 0.5, training=False)

    (calm,) = count(case(lambda: Calm(2, 2), (2,)), name="calm").layers
    assert calm.forward.kernels == 2  # product and sum
