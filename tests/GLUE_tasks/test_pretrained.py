"""Pretrained models with a new head."""

from pathlib import Path

import torch

from GLUE_tasks.pretrained import load_pretrained


def test_a_copy_is_bit_equal_but_for_the_head_which_comes_from_the_seed(tiny_encoder: Path):
    pretrained = load_pretrained(str(tiny_encoder), num_labels=3)
    assert pretrained.new_parameters == {"classifier.weight", "classifier.bias"}
    torch.manual_seed(123)  # the state of the generator does not matter
    one, same, other = pretrained.copy(1), pretrained.copy(1), pretrained.copy(2)
    for name, parameter in pretrained.model.named_parameters():
        copies = one.get_parameter(name), same.get_parameter(name), other.get_parameter(name)
        assert torch.equal(copies[0], copies[1])
        if name == "classifier.weight":
            assert not torch.equal(copies[0], copies[2])
            assert 0.5 < copies[0].std() / pretrained.model.config.initializer_range < 1.5
        elif name != "classifier.bias":
            assert all(torch.equal(parameter, copy) for copy in copies)
    assert (one.classifier.bias == 0).all()
