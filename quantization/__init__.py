"""Methods that round the weights of a pretrained model to few bits, on plain tensors."""
