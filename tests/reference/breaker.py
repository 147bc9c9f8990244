"""The breaker as one would explain it: from the whole history of events, each time from the start."""

from __future__ import annotations


def state_after(events: list[tuple[float, str]], strikes: int, pauses: tuple[float, float], calm_s: float):
    """Returns "closed", "open" or "probing", and when a probe may go out, after `(time, event)` pairs."""
    first, longest = pauses
    state, in_a_row, pause, retry_at, closed_at = "closed", 0, 0.0, 0.0, -calm_s
    for now, event in events:
        if event == "probed":
            state = "probing" if state == "open" else state
        elif event == "succeeded":
            in_a_row = 0
            closed_at = closed_at if state == "closed" else now
            state = "closed"
        else:
            in_a_row += 1
            enough = event == "failed" or in_a_row >= strikes or state == "probing"
            if not enough or state == "open":
                continue
            if state == "closed" and now - closed_at >= calm_s:
                pause = 0.0
            pause = min(max(2 * pause, first), longest)
            state, in_a_row, retry_at = "open", 0, now + pause
    return state, retry_at
