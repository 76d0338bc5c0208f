"""Lines between two fine-tuned models (appendix C): barriers, tables, figures."""
