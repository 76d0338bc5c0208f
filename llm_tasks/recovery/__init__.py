"""From a command line to recovered models: pruned, trained on in one of the transfers, measured on the way."""
