"""Numbers of parameters as published with torchvision, Caffe (BVLC) and transformers."""

PUBLISHED_TOTALS = {
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "googlenet": 6_624_904,
    "googlenet-heads": 13_378_280,
    "resnet50": 25_557_032,
    "bert-large": 335_174_458,
    "gpt2": 124_439_808,
    "vit-b16": 86_567_656,
}
