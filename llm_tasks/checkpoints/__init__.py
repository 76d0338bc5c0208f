"""Models that were compressed elsewhere: what their files are, and how they stand in the place of the dense one."""
