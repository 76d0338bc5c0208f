"""What GLUE_tasks and llm_tasks share: options, cells, run folders, data, models, training. Imports no other folder."""
