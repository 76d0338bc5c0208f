"""Fine-tuning experiments: prune an encoder once, train it on a task, evaluate."""
