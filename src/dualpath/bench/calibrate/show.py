"""Predictions beside measurements, for people."""

from collections.abc import Sequence

from rich.table import Table

from dualpath.bench.calibrate.check import Comparison

JCT_WITHIN = 0.10
GAIN_WITHIN = 0.05
MOST_CPU = 0.70  # above it the cores bind, which the profile does not model


def table(comparisons: Sequence[Comparison]) -> Table:
    """A row a policy and setting."""
    shown = Table(title="predicted against measured")
    for name in ("topology", "SNIC", "agents", "policy"):
        shown.add_column(name)
    for name in ("JCT measured", "predicted", "off", "gain measured", "predicted", "off", "CPU"):
        shown.add_column(name, justify="right")
    for c in comparisons:
        shown.add_row(
            c.setting.topology, c.setting.snic, str(c.setting.agents), c.policy, f"{c.measured_s:.2f} s",
            f"{c.predicted_s:.2f} s", f"{c.error:+.1%}", f"{c.measured_gain:.2f} x", f"{c.predicted_gain:.2f} x",
            f"{c.gain_error:+.1%}", f"{c.cpu_share:.0%}",
        )  # fmt: skip
    return shown


def verdict(comparisons: Sequence[Comparison]) -> list[str]:
    """The worst of what counts, and what does not count."""
    counted = [c for c in comparisons if c.cpu_share <= MOST_CPU]
    if not counted:
        return ["nothing to compare: no settings, or the cores were busy in all of them"]
    jct, gain = max(abs(c.error) for c in counted), max(abs(c.gain_error) for c in counted)
    lines = [f"worst JCT {jct:.1%} off (aim {JCT_WITHIN:.0%}), worst gain {gain:.1%} off (aim {GAIN_WITHIN:.0%})"]
    if len(counted) < len(comparisons):
        lines.append(f"{len(comparisons) - len(counted)} runs do not count: more than {MOST_CPU:.0%} of the cores busy")
    return lines
