"""The paper's tables, ours beside theirs: what `reproduce.py` trains, measures and writes."""
