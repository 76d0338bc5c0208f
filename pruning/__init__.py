"""Methods that remove weights from a pretrained model: one file per method, all on plain tensors."""
