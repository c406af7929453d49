from dataclasses import replace

import torch
from torch import nn

from pipeline.config import ModelConfig
from pipeline.model.convolutional import ResidualBlock
from pipeline.model.vae import VAE


def test_a_convolutional_decoder_returns_images_of_every_size() -> None:
    for shape in ((1, 1), (2, 3), (9, 6), (28, 28), (5, 16, 3)):
        settings = ModelConfig(model="conv", hidden_dims=(4, 4, 4), latent_dim=2)
        model = VAE(shape, replace(settings, likelihood="discretized_logistic"))
        x = torch.zeros((2, *shape), dtype=torch.uint8)
        assert model.decode(model.encode(x).loc).shape == x.shape


def test_residual_blocks_start_as_the_identity() -> None:
    settings = ModelConfig(model="resnet", likelihood="bernoulli", hidden_dims=(4,), latent_dim=2)
    model = VAE((9, 6), settings)
    blocks = [part for part in model.modules() if isinstance(part, ResidualBlock)]
    assert len(blocks) == 4
    x = torch.randn(2, 4, 5, 3)
    assert all(torch.equal(block(x), x) for block in blocks)


def test_pixels_of_colour_images_keep_their_places() -> None:
    """Convolutions have the channels first, the data has them last."""
    settings = ModelConfig(model="conv", hidden_dims=(4,), latent_dim=2, output_bias=True)
    colour = (7, 5, 3)
    model = VAE(colour, replace(settings, likelihood="bernoulli"))
    nn.init.zeros_(model.decoder.hidden[-1].weight)
    nn.init.zeros_(model.decoder.hidden[-1].bias)
    logits = torch.linspace(-3, 3, model.decoder.output_bias.numel())
    model.decoder.output_bias.data.copy_(logits)
    expected = logits.sigmoid().reshape(colour)
    torch.testing.assert_close(model.decode(torch.zeros(1, 2))[0], expected)
    seen = []
    model.encoder.hidden[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(2, *colour)
    model.encode(x)
    torch.testing.assert_close(seen[0], x.permute(0, 3, 1, 2))
