"""BERT-large and GPT-2 of the transformers library, with random weights: nothing is downloaded.

Both have their language-model head, whose matrix is the input embedding's (tied).
"""

from typing import Any

import torch
from torch import Tensor, nn

from executor.networks.case import Case


def bert_large(vocabulary: int = 30522) -> Case:
    """Return BERT-large with its masked-language-model head, 335,174,458 parameters."""
    from transformers import BertConfig, BertForMaskedLM

    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "attn_implementation": "sdpa",
    }
    return _case(
        BertForMaskedLM(BertConfig(**settings)),
        vocabulary,
        batch=4,
        tokens=384,
        max_tokens=512,
        description="BERT-large, masked LM",
    )


def gpt2(vocabulary: int = 50257) -> Case:
    """Return the smallest GPT-2, 124,439,808 parameters."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings: dict[str, Any] = {"vocab_size": vocabulary, "attn_implementation": "sdpa", "use_cache": False}
    return _case(
        GPT2LMHeadModel(GPT2Config(**settings)),
        vocabulary,
        batch=4,
        tokens=1024,
        max_tokens=1024,
        description="GPT-2 (small), causal LM",
    )


def _case(module: nn.Module, vocabulary: int, *, batch: int, tokens: int, max_tokens: int, description: str) -> Case:
    def inputs(batch: int, tokens: int) -> tuple[Tensor, ...]:
        return torch.randint(vocabulary, (batch, tokens)), torch.randint(vocabulary, (batch, tokens))

    def loss(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        text, target = inputs
        logits = module(input_ids=text).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())

    return Case(
        module=module,
        inputs=inputs,
        loss=loss,
        batch=batch,
        sample="sequence",
        tokens=tokens,
        max_tokens=max_tokens,
        description=description,
        libraries=("transformers",),
    )
