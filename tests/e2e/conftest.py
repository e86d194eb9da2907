"""The models of the end-to-end tests, and the tokens that transformers' own generate gives."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dualpath.core.keys import pack_tokens
from dualpath.engine.checkpoints import default_cache_dir, resolve_model
from e2e.live_cluster import Ask


@pytest.fixture(scope="session")
def tiny() -> Path:
    """Folder of the tiny model."""
    return resolve_model("tiny", cache_dir=default_cache_dir())


@pytest.fixture(scope="session")
def reference() -> Callable[[Path, Sequence[Ask]], list[list[int]]]:
    """Greedy tokens of transformers' generate on the full prompts."""
    models: dict[Path, Any] = {}
    known: dict[tuple[Path, bytes, int], list[int]] = {}  # policies are compared on the same prompts

    def generate(folder: Path, asks: Sequence[Ask]) -> list[list[int]]:
        if folder not in models:
            model = models[folder] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            model.generation_config.eos_token_id = None  # as ignore_eos does; suppressing the token would change others
        return [tokens(folder, ask) for ask in asks]

    def tokens(folder: Path, ask: Ask) -> list[int]:
        key = (folder, pack_tokens(ask.prompt), ask.tokens)
        if key not in known:
            with torch.inference_mode():
                given = models[folder].generate(
                    torch.tensor([ask.prompt]), max_new_tokens=ask.tokens, do_sample=False, pad_token_id=0
                )
            known[key] = given[0, len(ask.prompt) :].tolist()
        return known[key]

    return generate
