"""Sweeps: the cells that arguments name, who works on a run, what is done and what is missing."""
