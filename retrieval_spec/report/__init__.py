"""Reports of replays for people: a page for the browser, a short version for the terminal, plots as PNG.

A recorder listens to a replay (`replay.Observer`) and keeps a part of it that fits on a page; tallies have
the totals. What is shown is put together once, as plain values, and drawn three times.
"""
