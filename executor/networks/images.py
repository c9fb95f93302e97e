"""AlexNet, VGG-16, ResNet-50 (layers and names as in torchvision) and ViT-B/16, for images of 1,000 classes.

ResNet-50 has its stride in the 3x3 convolution ("v1.5"), as torchvision and most benchmarks have.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from executor.networks.case import Case, cross_entropy


def image_case(module: nn.Module, *, image_size: int, classes: int, batch: int, description: str) -> Case:
    """Return the case of a classifier of square images with three colours."""

    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 3, image_size, image_size), torch.randint(classes, (batch,))

    return Case(module=module, inputs=inputs, loss=cross_entropy, batch=batch, sample="image", description=description)


class AlexNet(nn.Module):
    """Krizhevsky's "One weird trick" network: one column, no local response normalisation."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each image."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


def alexnet(image_size: int = 224, classes: int = 1000) -> Case:
    """Return AlexNet, 61,100,840 parameters."""
    return image_case(
        AlexNet(classes),
        image_size=image_size,
        classes=classes,
        batch=128,
        description="AlexNet as in torchvision (one column, Krizhevsky 2014)",
    )


class Vgg16(nn.Module):
    """Simonyan and Zisserman's configuration D, without batch norm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, repeat in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(repeat):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each image."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))  # type: ignore[no-any-return]


def vgg16(image_size: int = 224, classes: int = 1000) -> Case:
    """Return VGG-16, 138,357,544 parameters."""
    return image_case(
        Vgg16(classes),
        image_size=image_size,
        classes=classes,
        batch=32,
        description="VGG-16 without batch norm, as in torchvision (Simonyan and Zisserman 2014)",
    )


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)  # type: ignore[no-any-return]


class ResNet50(nn.Module):
    """He et al.'s network of 16 bottlenecks."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, 3, 1)
        self.layer2 = _stage(256, 128, 4, 2)
        self.layer3 = _stage(512, 256, 6, 2)
        self.layer4 = _stage(1024, 512, 3, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each image."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))  # type: ignore[no-any-return]


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    widths = [channels] + [4 * width] * blocks
    strides = [stride] + [1] * (blocks - 1)
    return nn.Sequential(
        *(Bottleneck(found, width, step) for (found, _), step in zip(pairwise(widths), strides, strict=True))
    )


def resnet50(image_size: int = 224, classes: int = 1000) -> Case:
    """Return ResNet-50, 25,557,032 parameters in 161 tensors."""
    return image_case(
        ResNet50(classes),
        image_size=image_size,
        classes=classes,
        batch=64,
        description="ResNet-50 v1.5 as in torchvision (He et al. 2015)",
    )


def vit_b16(image_size: int = 224, classes: int = 1000) -> Case:
    """Return ViT-B/16 of the transformers library, 86,567,656 parameters, with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    settings: dict[str, Any] = {"image_size": image_size, "num_labels": classes, "attn_implementation": "sdpa"}
    module = ViTForImageClassification(ViTConfig(**settings))

    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randn(batch, 3, image_size, image_size), torch.randint(classes, (batch,))

    def loss(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        images, labels = inputs
        return nn.functional.cross_entropy(module(images).logits, labels)

    return Case(
        module=module,
        inputs=inputs,
        loss=loss,
        batch=64,
        sample="image",
        description="ViT-B/16 (Dosovitskiy et al. 2020)",
        libraries=("transformers",),
    )
