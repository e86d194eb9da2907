"""The model that a configuration names, as every role sees it."""

from pathlib import Path

from dualpath.core.config import Config
from dualpath.core.errors import ConfigError
from dualpath.core.model import ModelSpec, load_spec


def served_spec(config: Config) -> ModelSpec:
    """Spec of the model at `model.path` (set by `dualpath up`), or of `model.name` where that is a folder itself."""
    folder = Path(config.model.path or config.model.name).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"no folder {folder}; a role started by hand needs --model-path with the prepared model's folder "
            "(`dualpath up` prepares smollm2 and tiny, and passes it on)"
        )
    return load_spec(
        folder,
        name=config.served_name,
        block_tokens=config.model.block_tokens,
        max_context_tokens=config.model.max_context,
        version=config.model.version or None,
    )
