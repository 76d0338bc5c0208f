"""Code that a model brings, for test_models.py: a decoder whose tokens read the mean of all before them.

It knows no cache, no positions and no mask.
"""

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class CumulativeConfig(PretrainedConfig):
    model_type = "cumulative"

    def __init__(
        self, vocab_size=17, hidden_size=16, num_hidden_layers=2, max_position_embeddings=32,
        tie_word_embeddings=False, **others,
    ):  # fmt: skip
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        super().__init__(tie_word_embeddings=tie_word_embeddings, **others)


class CumulativeBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mix = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.mlp = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states):
        count = torch.arange(1, hidden_states.shape[1] + 1, device=hidden_states.device).view(1, -1, 1)
        hidden_states = hidden_states + self.mix(hidden_states).cumsum(1) / count
        return hidden_states + torch.relu(self.mlp(hidden_states))


class CumulativeForCausalLM(PreTrainedModel):
    config_class = CumulativeConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(CumulativeBlock(config) for _ in range(config.num_hidden_layers))
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids=None, attention_mask=None, **others):
        hidden_states = self.embed(input_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return CausalLMOutput(logits=self.head(hidden_states))
