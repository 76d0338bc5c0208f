"""The data sets as prompts: a file per kind of task, none of which knows a setting or a model."""
