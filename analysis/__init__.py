"""What a tree of runs says: run folders, tables, statistics, figures, reports; all without torch."""
