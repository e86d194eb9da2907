"""What calibration measured on a live cluster: enough to simulate it under other settings."""

from pathlib import Path

import msgspec

from dualpath.core.errors import ConfigError
from dualpath.sim.engine_time import MeasuredTime


class Profile(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A live cluster of the reference engine. `times` stand for all engines; rates are as configured, inf without."""

    times: MeasuredTime
    kv_bytes_per_token: float
    block_tokens: int
    engines: int  # of a node
    snic_bytes_per_s: float
    snic_efficiency: float  # blocks' bytes that come through / rate
    cnic_bytes_per_s: float
    buffer_bytes: float
    write_share: float
    read_concurrency: int
    submit_ns: int  # from an answer to the next request's arrival at the scheduler
    load_ns: int  # from the last read until the prefill begins
    handoff_ns: int  # from the prefill's end until the request decodes


def read_profile(file: Path) -> Profile:
    """ConfigError, in words, when the file is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Profile)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{file} is no profile of a live cluster ({error}); make one with dualpath calibrate"
        ) from None
