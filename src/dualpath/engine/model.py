"""Any decoder-only Hugging Face model as one packed forward whose attention belongs to the engine.

The model's own code computes everything but attention. There, layer by layer, the engine's callable gets the
new tokens' q, k and v: the place where a layer's cached KV arrives and its new KV leaves (paper section 2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from dualpath.core.errors import ConfigError
from dualpath.core.model import ModelSpec
from dualpath.engine.hook import ATTENTION, LayerAttention, attending
from dualpath.engine.probe import RECORD, LayerCall, PlainKv, check_packing, record_layers, refuse_config

_UNLOADABLE = (
    ImportError, KeyError, OSError, TypeError, ValueError, RuntimeError, AttributeError, SafetensorError,
)  # fmt: skip


class PackedModel:
    """A loaded and probed model. Make it with `load`, run it with `forward`."""

    def __init__(self, model: Any, spec: ModelSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.layers: tuple[LayerCall, ...] = ()  # how each layer attends, as probed at load
        self._model = model

    @classmethod
    def load(cls, spec: ModelSpec, device: str = "cpu", threads: int | None = None) -> "PackedModel":
        """Load the weights and probe them; ConfigError names what this engine cannot serve exactly."""
        if threads is not None:
            torch.set_num_threads(threads)
        model = cls(_load_weights(spec).to(_device(device)).eval(), spec, torch.device(device))
        try:
            model._probe()
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ConfigError(f"{spec.path}: the model's code does not run packed: {error}; serve another") from error
        return model

    def forward(
        self, tokens: Sequence[int] | torch.Tensor, positions: Sequence[int] | torch.Tensor,
        attend: LayerAttention, logits_at: Sequence[int],
    ) -> torch.Tensor:  # fmt: skip
        """One pass over packed tokens of several requests: logits `[len(logits_at), vocab]` of those rows.

        `positions` are each token's place in its own request. One forward at a time a process, else
        RuntimeError.
        """
        with torch.inference_mode(), attending(attend):
            output = self._model(
                input_ids=self._row(tokens)[None],
                position_ids=self._row(positions)[None],
                use_cache=False,
                logits_to_keep=self._row(logits_at),
            )
        return output.logits[0]

    def _row(self, numbers: Sequence[int] | torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(numbers, dtype=torch.long, device=self.device)

    def _probe(self) -> None:
        """Note how each layer attends, then prove that packing and chunks change nothing."""
        self._model.set_attn_implementation(RECORD)
        self.layers = record_layers(lambda: self.forward([0, 1], [0, 1], PlainKv().attend([("", 2)]), [1]), self.spec)
        self._model.set_attn_implementation(ATTENTION)
        check_packing(self.forward, self.spec)


def _device(name: str) -> torch.device:
    """The device of this name; ConfigError when torch does not know it or this machine has none."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"no device {name!r} here: {_first_line(error)}; take cpu or cuda") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _load_weights(spec: ModelSpec) -> Any:
    """The model's own class with every weight from the folder; ConfigError rather than a random one."""
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(spec.path, local_files_only=True)
        refuse_config(config, spec)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            spec.path, config=config, dtype=getattr(torch, spec.layout.dtype), attn_implementation=ATTENTION,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except _UNLOADABLE as error:
        raise ConfigError(f"transformers cannot load the model in {spec.path}: {_first_line(error)}") from error
    model, report = loaded
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if wrong:
        raise ConfigError(f"{spec.path} lacks weights {', '.join(wrong[:4])}; download the folder again")
    return model
