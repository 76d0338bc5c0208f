"""How any experiment of this project runs: what both task folders share. Imports nothing of ours."""
