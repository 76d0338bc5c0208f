"""Data sets as prompts: one file for each kind of task; none imports a setting or a model."""
