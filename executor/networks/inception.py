"""GoogLeNet twice: torchvision's (batch norm, no auxiliary heads) and Caffe's (both heads, no batch norm).

They differ in more than the heads: torchvision's has 3x3 convolutions where the paper and Caffe have 5x5 ones, and no
biases before its batch norms. Papers that trained with Caffe or early frameworks mean the second.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from executor.networks.case import Case
from executor.networks.images import image_case

#: Of each inception block: input channels, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
BLOCKS = {
    "inception3a": (192, 64, 96, 128, 16, 32, 32),
    "inception3b": (256, 128, 128, 192, 32, 96, 64),
    "inception4a": (480, 192, 96, 208, 16, 48, 64),
    "inception4b": (512, 160, 112, 224, 24, 64, 64),
    "inception4c": (512, 128, 128, 256, 24, 64, 64),
    "inception4d": (512, 112, 144, 288, 32, 64, 64),
    "inception4e": (528, 256, 160, 320, 32, 128, 128),
    "inception5a": (832, 256, 160, 320, 32, 128, 128),
    "inception5b": (832, 384, 192, 384, 48, 128, 128),
}


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised, rectified convolution."""
        return functional.relu(self.bn(self.conv(x)), inplace=True)


class BiasedConv2d(nn.Module):
    """Convolution with bias, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return the rectified convolution."""
        return functional.relu(self.conv(x), inplace=True)


class Inception(nn.Module):
    """Four branches over the same input, their outputs side by side; *wide* is the kernel of the third branch."""

    def __init__(self, block: str, convolution: type[BasicConv2d] | type[BiasedConv2d], wide: int) -> None:
        super().__init__()
        channels, one, reduce3, three, reduce5, five, pool = BLOCKS[block]
        self.branch1 = convolution(channels, one, 1)
        self.branch2 = nn.Sequential(convolution(channels, reduce3, 1), convolution(reduce3, three, 3, padding=1))
        self.branch3 = nn.Sequential(
            convolution(channels, reduce5, 1), convolution(reduce5, five, wide, padding=wide // 2)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the concatenated branches."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Torchvision's variant, without auxiliary heads."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = BasicConv2d(3, 64, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception("inception3a", BasicConv2d, 3)
        self.inception3b = Inception("inception3b", BasicConv2d, 3)
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception("inception4a", BasicConv2d, 3)
        self.inception4b = Inception("inception4b", BasicConv2d, 3)
        self.inception4c = Inception("inception4c", BasicConv2d, 3)
        self.inception4d = Inception("inception4d", BasicConv2d, 3)
        self.inception4e = Inception("inception4e", BasicConv2d, 3)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = Inception("inception5a", BasicConv2d, 3)
        self.inception5b = Inception("inception5b", BasicConv2d, 3)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each image."""
        x = self.maxpool2(self.conv3(self.conv2(self.maxpool1(self.conv1(x)))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4d(self.inception4c(self.inception4b(self.inception4a(x))))
        x = self.maxpool4(self.inception4e(x))
        x = self.inception5b(self.inception5a(x))
        return self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))  # type: ignore[no-any-return]


def googlenet(image_size: int = 224, classes: int = 1000) -> Case:
    """Return torchvision's GoogLeNet without auxiliary heads, 6,624,904 parameters."""
    return image_case(
        GoogLeNet(classes),
        image_size=image_size,
        classes=classes,
        batch=64,
        description="GoogLeNet as in torchvision: batch norm, 3x3 in place of 5x5, no auxiliary heads",
    )


class Head(nn.Module):
    """An auxiliary classifier; it takes feature maps of 14 x 14 (images of 224 x 224)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(5, stride=3, ceil_mode=True)
        self.conv = BiasedConv2d(channels, 128, 1)
        self.fc = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.classifier = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each image."""
        x = functional.relu(self.fc(torch.flatten(self.conv(self.pool(x)), 1)), inplace=True)
        return self.classifier(self.dropout(x))  # type: ignore[no-any-return]


class GoogLeNetHeads(nn.Module):
    """Caffe's BVLC GoogLeNet: local response normalisation, biases, two auxiliary heads on the way."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = BiasedConv2d(3, 64, 7, stride=2, padding=3)
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5)
        self.conv2 = BiasedConv2d(64, 64, 1)
        self.conv3 = BiasedConv2d(64, 192, 3, padding=1)
        self.norm2 = nn.LocalResponseNorm(5)
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = Inception("inception3a", BiasedConv2d, 5)
        self.inception3b = Inception("inception3b", BiasedConv2d, 5)
        self.pool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception("inception4a", BiasedConv2d, 5)
        self.head1 = Head(512, classes)
        self.inception4b = Inception("inception4b", BiasedConv2d, 5)
        self.inception4c = Inception("inception4c", BiasedConv2d, 5)
        self.inception4d = Inception("inception4d", BiasedConv2d, 5)
        self.head2 = Head(528, classes)
        self.inception4e = Inception("inception4e", BiasedConv2d, 5)
        self.pool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception5a = Inception("inception5a", BiasedConv2d, 5)
        self.inception5b = Inception("inception5b", BiasedConv2d, 5)
        self.pool5 = nn.AvgPool2d(7)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of each image: of the network, of the first head and of the second."""
        x = self.norm1(self.pool1(self.conv1(x)))
        x = self.pool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.inception4a(self.pool3(self.inception3b(self.inception3a(x))))
        first = self.head1(x)
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        second = self.head2(x)
        x = self.inception5b(self.inception5a(self.pool4(self.inception4e(x))))
        return self.fc(self.dropout(torch.flatten(self.pool5(x), 1))), first, second


def googlenet_heads(classes: int = 1000) -> Case:
    """Return Caffe's GoogLeNet with both auxiliary heads, 13,378,280 parameters; images are 224 x 224."""

    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 3, 224, 224), torch.randint(classes, (batch,))

    def loss(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        images, labels = inputs
        last, first, second = (functional.cross_entropy(logits, labels) for logits in module(images))
        return last + 0.3 * (first + second)

    return Case(
        module=GoogLeNetHeads(classes),
        inputs=inputs,
        loss=loss,
        batch=32,
        sample="image",
        description="GoogLeNet as in Caffe (BVLC): both auxiliary heads, 5x5 convolutions, biases, no batch norm",
    )
