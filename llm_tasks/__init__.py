"""How compression harms language models without training: settings 2 to 6, perplexity."""
