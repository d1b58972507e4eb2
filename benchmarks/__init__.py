"""Side-by-side timings, each `python -m benchmarks.NAME`: both sides in one run, the figures in Markdown."""
