"""When agents start, for online experiments (paper section 6)."""

import numpy as np

from dualpath.core.errors import ConfigError


def poisson_starts(n: int, aps: float, seed: int) -> list[float]:
    """Start times in seconds of `n` agents that arrive as a Poisson process of `aps` agents a second."""
    if aps <= 0:
        raise ConfigError(f"an arrival rate of {aps} agents a second is not possible; give a positive one")
    uniform = np.random.Philox(key=seed).random_raw(n) / 2.0**64
    return np.cumsum(-np.log1p(-uniform.clip(max=1 - 2.0**-53)) / aps).tolist()
