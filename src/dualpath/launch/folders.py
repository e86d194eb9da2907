"""The model and the store of a cluster, settled once before its roles start."""

from pathlib import Path

import msgspec

from dualpath.core.config import Config
from dualpath.core.model import weights_fingerprint


def settle_folders(config: Config) -> Config:
    """Fill in the model's folder and version and the store, where empty. Makes the model if it is not there.

    Without a version every role would hash all weights at its start.
    """
    model, storage = config.model, config.storage
    if not (model.path and storage.path):
        from dualpath.engine.checkpoints import default_cache_dir, resolve_model  # imports torch: seconds

        cache_dir = default_cache_dir()
        path = model.path or str(resolve_model(model.name, cache_dir=cache_dir, progress=True))
        model = msgspec.structs.replace(model, path=path)
        storage = msgspec.structs.replace(storage, path=storage.path or str(cache_dir / "store"))
    version = model.version or weights_fingerprint(Path(model.path))
    model = msgspec.structs.replace(model, version=version)
    return msgspec.structs.replace(config, model=model, storage=storage)
