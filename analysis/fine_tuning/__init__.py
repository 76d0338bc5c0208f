"""Fine-tuning runs (settings 1 and 5, section 5): tables, trends, the four transfers, the human gap."""
