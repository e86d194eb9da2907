"""The control page and bells between an agent and a prefill engine: how layers are counted through the window.

Layers have sequence numbers over all batches: layer l of a batch with `first_layer` f is s = f + l and lives in half
s % 2 of the window. Two counters, each written by one side only, say how many layers are

    filled   (agent)   cached KV of layers < filled lies in the window
    computed (engine)  layers < computed are attended, their new KV lies behind the cached KV in the window

Half s % 2 may be filled for s once layer s - 2 is computed and its new KV has arrived at the decode node, which only
the agent knows. An engine of several processes has a page for each. A bell (eventfd) wakes the other side after a
change; the counters are the truth, so a lost or doubled ring does no harm.
"""

import os
from collections.abc import Callable

import numpy as np

CONTROL_BYTES = 4096
_FILLED, _COMPUTED, _FAILED = 0, 8, 16  # a cache line each


class ControlPage:
    """The counters in shared memory, `own_bell` that the other side rings and `peer_bell` that we ring.

    It owns both bells (their descriptors), not the memory.
    """

    def __init__(self, view: memoryview, own_bell: int, peer_bell: int) -> None:
        self._counters = np.frombuffer(view, dtype=np.int64)
        self.own_bell = own_bell
        self._peer_bell = peer_bell

    @property
    def filled(self) -> int:
        """Layers that the agent has filled."""
        return int(self._counters[_FILLED])

    @property
    def computed(self) -> int:
        """Layers that the engine has computed."""
        return int(self._counters[_COMPUTED])

    @property
    def failed(self) -> int:
        """1 + first layer of the last batch that failed; 0 for none."""
        return int(self._counters[_FAILED])

    def set_filled(self, layers: int) -> None:
        """Agent: so many layers are filled."""
        self._set(_FILLED, layers)

    def set_computed(self, layers: int) -> None:
        """Engine: so many layers are computed."""
        self._set(_COMPUTED, layers)

    def set_failed(self, first_layer: int) -> None:
        """Agent: the batch that begins with this layer is over."""
        self._set(_FAILED, first_layer + 1)

    def _set(self, index: int, value: int) -> None:
        self._counters[index] = value
        os.eventfd_write(self._peer_bell, 1)

    def quiet(self) -> None:
        """Take back the rings that woke us."""
        try:
            os.eventfd_read(self.own_bell)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Let go of the page and close the bells."""
        del self._counters
        os.close(self.own_bell)
        os.close(self._peer_bell)


Condition = Callable[[], bool]


def new_bell() -> int:
    """A fresh eventfd, non-blocking."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
