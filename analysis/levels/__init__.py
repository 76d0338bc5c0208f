"""Runs without training, all levels of difficulty in one (settings 2 to 6, section 4, users' own tasks)."""
