"""A request's phases as spans of a trace: one track an agent, as its turns follow each other."""

from dualpath.sim.grant import Grant
from dualpath.sim.perfetto import Recorder


def record_request(recorder: Recorder, grant: Grant, ended_ns: int) -> None:
    """The phases of a request that has its last token, as far as it had them."""
    ask, track = grant.ask, f"agent {grant.ask.agent}"
    places = {"prefill": grant.prefill.engine, "decode": grant.decode.engine, "turn": ask.turn}
    readers: dict[str, object] = {f"blocks read by {s.reader}": len(s.blocks) for s in grant.assign.plan.segments}
    phases: tuple[tuple[str, int, int, dict[str, object]], ...] = (
        ("wait", ask.sent_ns, grant.assigned_ns, {"prompt tokens": ask.prompt_tokens}),
        ("read", grant.assigned_ns, grant.loaded_ns, readers),
        ("prefill", grant.loaded_ns, ask.first_ns, {"new tokens": ask.prompt_tokens - grant.cached_tokens}),
        ("hand over", ask.first_ns, grant.entered_ns, {}),
        ("decode", grant.entered_ns, ended_ns, {"tokens": ask.gen_tokens}),
    )
    for name, begin_ns, end_ns, facts in phases:
        if 0 <= begin_ns <= end_ns:
            recorder.span(track, name, begin_ns, end_ns, **places, **facts)
