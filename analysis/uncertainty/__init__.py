"""How sure the numbers are: resampled curves, trends with intervals and verdicts, how far one may go."""
