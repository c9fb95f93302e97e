"""The shipped networks are those of the literature, and the small ones learn."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from totals import PUBLISHED_TOTALS

from executor.networks import NETWORKS, Case, layer_module, load
from simgd.errors import SimgdError

# torch_geometric 2.8 calls torch.jit.script when it is imported, which torch 2.13 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

#: Number of parameters: published ones, and our own small networks' from their layers.
TOTALS = PUBLISHED_TOTALS | {
    # 602 features to 256 and 256 to 41 classes: a matrix each for the neighbours and the node, one bias
    "graphsage": (2 * 602 + 1) * 256 + (2 * 256 + 1) * 41,
    "digits-cnn": (9 + 1) * 32 + (9 * 32 + 1) * 64 + (64 * 16 + 1) * 128 + (128 + 1) * 10,
    # embeddings, 4 blocks (two norms, 12 w^2 weights, 9 w biases), last norm, head
    "char-transformer": (128 + 256) * 128 + 4 * (4 * 128 + 12 * 128**2 + 9 * 128) + 2 * 128 + (128 + 1) * 128,
    "mlp": (64 + 1) * 256 + 2 * (256 + 1) * 256 + (256 + 1) * 10,
}


def on_meta(name: str, **arguments: str | int) -> Case:
    return load(f"executor.networks:{NETWORKS[name].__name__}", arguments, device="meta")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_published_number_of_parameters(name):
    assert sum(parameter.numel() for parameter in on_meta(name).module.parameters()) == TOTALS[name]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_on_the_meta_device_holds_no_memory(name):
    module = on_meta(name).module
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"meta"}


def test_resnet50_has_the_tensors_and_names_of_torchvision():
    names = [name for name, _ in on_meta("resnet50").module.named_parameters()]
    assert len(names) == 161
    assert names[:4] == ["conv1.weight", "bn1.weight", "bn1.bias", "layer1.0.conv1.weight"]
    assert "layer4.2.bn3.bias" in names
    assert "layer2.0.downsample.1.weight" in names
    assert names[-2:] == ["fc.weight", "fc.bias"]


def test_gpt2_and_bert_tie_their_head_to_the_embedding():
    gpt2 = on_meta("gpt2").module
    assert gpt2.get_parameter("lm_head.weight") is gpt2.get_parameter("transformer.wte.weight")
    bert = on_meta("bert-large").module
    assert bert.get_parameter("cls.predictions.decoder.weight") is bert.get_parameter(
        "bert.embeddings.word_embeddings.weight"
    )


def test_the_image_size_is_an_argument():
    case = load("executor.networks:resnet50", {"image_size": 64, "classes": 7})
    images, labels = case.example(2)
    assert images.shape == (2, 3, 64, 64)
    assert int(labels.max()) < 7
    assert case.module(images).shape == (2, 7)


def test_inputs_are_made_anew_from_torchs_generator():
    case = load("executor.networks:mlp")
    torch.manual_seed(5)
    first = case.example(4)
    second = case.example(4)
    torch.manual_seed(5)
    again = case.example(4)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ("name", "arguments", "batch"),
    [
        ("mlp", {}, 32),
        ("digits-cnn", {}, 32),
        ("char-transformer", {"width": 32, "depth": 2, "max_tokens": 16}, 4),
        ("graphsage", {"features": 16, "hidden": 16, "classes": 3, "fan_out": "3,2"}, 16),
    ],
)
def test_a_small_network_learns_one_batch_by_heart(name, arguments, batch):
    torch.manual_seed(1)
    case = load(f"executor.networks:{NETWORKS[name].__name__}", arguments)
    inputs = case.example(batch)
    optimizer = torch.optim.Adam(case.module.parameters(), lr=0.01)
    first = case.loss(case.module, inputs).item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = case.loss(case.module, inputs)
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 4


def test_the_digits_cnn_takes_scikit_learns_digits():
    torch.manual_seed(1)
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(classes)
    case = load("executor.networks:digits_cnn")
    optimizer = torch.optim.Adam(case.module.parameters(), lr=0.003)
    for start in 5 * list(range(0, 1500, 50)):
        optimizer.zero_grad()
        case.loss(case.module, (images[start : start + 50], labels[start : start + 50])).backward()
        optimizer.step()
    with torch.no_grad():
        right = (case.module(images[1500:]).argmax(1) == labels[1500:]).float().mean()
    # guessing gets 0.1; the last 297 digits are by writers that the first 1,500 do not show
    assert right > 0.85


def test_the_character_transformer_does_not_look_ahead():
    case = load("executor.networks:char_transformer")
    text, _ = case.example(1, tokens=8)
    other = text.clone()
    other[0, 5] = (text[0, 5] + 1) % 128
    with torch.no_grad():
        before, after = case.module(text), case.module(other)
    assert torch.allclose(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_graphsage_averages_the_neighbours_of_each_seed():
    case = load("executor.networks:graphsage", {"features": 2, "classes": 2, "fan_out": "3"})
    x, (edges,), (seeds,), _ = case.example(2)
    # Two seeds, nodes 0 and 1; the neighbours of 0 are nodes 2-4, those of 1 are nodes 5-7.
    assert x.shape == (8, 2)
    assert seeds == 2
    assert edges.tolist() == [[2, 3, 4, 5, 6, 7], [0, 0, 0, 1, 1, 1]]
    layer = case.module.get_submodule("convs.0")
    expected = layer.lin_l(torch.stack([x[2:5].mean(0), x[5:8].mean(0)])) + layer.lin_r(x[:2])
    assert torch.allclose(case.module(x, [edges], [seeds]), expected, atol=1e-6)


def test_a_fan_out_that_is_no_list_of_numbers_is_refused():
    with pytest.raises(SimgdError, match=r"fan_out '25,x' must list whole numbers above 0"):
        load("executor.networks:graphsage", {"fan_out": "25,x"})


def test_a_layer_names_a_part_of_its_module():
    module = nn.Sequential(nn.Linear(2, 2))
    assert layer_module(module, "0") is module[0]
    assert layer_module(module, "(root)") is module


MINE = """
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

def network(classes=3):
    return nn.Linear(8, classes), lambda batch: (torch.randn(batch, 8), torch.randint(classes, (batch,)))

def regression():
    return nn.Linear(8, 2), lambda batch: (torch.randn(batch, 8), torch.randn(batch, 2))

def sequences():
    def inputs(batch, tokens=16):
        return torch.randn(batch, tokens, 8), torch.randn(batch, tokens, 2)
    return nn.Linear(8, 2), inputs

class OwnLoss(nn.Linear):
    def forward(self, x):
        return super().forward(x).square().mean()

def own_loss():
    return OwnLoss(8, 2), lambda batch: torch.randn(batch, 8)

class Named(nn.Linear):
    def forward(self, x, scale):
        return super().forward(x * scale).square().mean()

def named():
    return Named(8, 2), lambda batch: {"x": torch.randn(batch, 8), "scale": torch.ones(())}

def no_loss():
    return nn.Linear(8, 2), lambda batch: torch.randn(batch, 8)

def number():
    return 3

def no_inputs():
    return nn.Linear(8, 2), lambda: None

def broken():
    raise RuntimeError("two\\nlines")

constant = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module `mine_of_tests` with networks of a user, in the current directory."""
    (tmp_path / "mine_of_tests.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "mine_of_tests"


@pytest.mark.parametrize("function", ["network", "regression", "sequences", "own_loss", "named"])
def test_a_network_in_the_simple_form_has_a_loss_to_train(mine, function):
    case = load(f"{mine}:{function}")
    case.loss(case.module, case.example(4)).backward()
    assert all(parameter.grad is not None for parameter in case.module.parameters())


def test_the_simple_form_compares_the_output_with_the_last_input(mine):
    case = load(f"{mine}:network", {"classes": 5})
    x, target = case.example(4)
    assert torch.equal(case.loss(case.module, (x, target)), nn.functional.cross_entropy(case.module(x), target))
    case = load(f"{mine}:regression")
    x, target = case.example(4)
    assert torch.equal(case.loss(case.module, (x, target)), nn.functional.mse_loss(case.module(x), target))


def test_the_default_of_tokens_is_the_usual_length(mine):
    case = load(f"{mine}:sequences")
    assert case.tokens == 16
    assert case.example(2)[0].shape == (2, 16, 8)
    assert case.example(2, tokens=4)[0].shape == (2, 4, 8)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine_of_tests", r"'mine_of_tests' is not a network; write package\.module:function"),
        ("no_such_module:f", r"no_such_module:f: module 'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("mine_of_tests:f", r"mine_of_tests:f: module 'mine_of_tests' has no function 'f'"),
        ("mine_of_tests:constant", r"module 'mine_of_tests' has an int, not a function, 'constant'"),
        ("mine_of_tests:number", r"mine_of_tests:number: returned an int; it must return an executor\.networks\.Case"),
        ("mine_of_tests:no_inputs", r"second value must be a function inputs\(batch\) or inputs\(batch, tokens\)"),
        ("mine_of_tests:broken", r"mine_of_tests:broken: cannot be made: RuntimeError: two lines"),
    ],
)
def test_a_network_that_cannot_be_had_is_refused_in_one_line(mine, spec, message):
    with pytest.raises(SimgdError, match=message) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_arguments_that_a_network_does_not_take_are_refused(mine):
    with pytest.raises(SimgdError, match=r"mine_of_tests:network: cannot be made: TypeError: .*'width'"):
        load(f"{mine}:network", {"width": 3})


def test_a_network_without_a_loss_says_how_to_give_one(mine):
    case = load(f"{mine}:no_loss")
    with pytest.raises(SimgdError, match="cannot tell the loss; let the module return a scalar tensor"):
        case.loss(case.module, case.example(2))
