"""Scores continuations and generates answers with a language model, by fast paths that are first proven on it."""
