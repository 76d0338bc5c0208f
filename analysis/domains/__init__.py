"""Runs over several domains or pairs of languages: tables, figures, what being the minority costs."""
