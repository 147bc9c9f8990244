"""Parts of `tools/bench_generate.py`: models, forcing, traces, ways to generate, measuring, report."""
