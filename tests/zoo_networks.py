"""The whole zoo: after perceptrons and convolutional networks, those of sequences, sets, graphs and
words, and those with noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import IMAGE, SEQUENCE, TOKENS, VECTOR, WAYS, Exhibit, exhibit
from zoo_images import ZOO

__all__ = ["NOISY", "ZOO"]


# recurrent


class Recurrent(nn.Module):
    """The last state, or every one for a tagger."""

    def __init__(self, rnn: nn.Module, width: int, every: bool) -> None:
        super().__init__()
        self.rnn, self.every, self.decoder = rnn, every, nn.Linear(width, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.decoder(out if self.every else out[:, -1])


@exhibit(SEQUENCE)
def lstm() -> nn.Module:
    return Recurrent(nn.LSTM(4, 5, batch_first=True), 5, False)


@exhibit(SEQUENCE, targets=(5,))
def lstm_tagger() -> nn.Module:
    rnn = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, proj_size=3)
    return Recurrent(rnn, 6, True)


@exhibit(SEQUENCE, targets=(5,))
def gru_tagger() -> nn.Module:
    return Recurrent(nn.GRU(4, 3, batch_first=True, bidirectional=True), 6, True)


@exhibit(SEQUENCE)
def elman() -> nn.Module:
    rnn = nn.RNN(4, 5, 2, nonlinearity="tanh", batch_first=True, bias=False)
    return Recurrent(rnn, 5, False)


@exhibit(SEQUENCE)
class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.GRUCell(4, 5), nn.LSTMCell(5, 4), nn.RNNCell(4, 3)
        self.head = nn.Linear(3, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        h, c, r = None, None, None
        for part in x.unbind(1):
            h = self.first(part, h)
            c = self.second(h, c)
            r = self.third(c[0], r)
        return self.head(r)


class MyGRU(nn.GRU):
    """A subclass that adds the input to the output."""

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        out, h = super().forward(x, hx)
        return out + x, h


@exhibit(SEQUENCE)
def subclassed_gru() -> nn.Module:
    return Recurrent(MyGRU(4, 4, batch_first=True), 4, False)


# attention


@exhibit(IMAGE)
class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 8, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.place = nn.Parameter(0.02 * torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(len(z), -1, -1), z], 1) + self.place
        return self.head(self.norm(self.encoder(z))[:, 0])


@exhibit(TOKENS, tokens=9)
class Encoder(nn.Module):
    """A Transformer over words; zero is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8, padding_idx=0)
        self.register_buffer("place", torch.arange(6), persistent=False)
        self.places = nn.Embedding(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.classifier = nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        padding = (x == 0) & (self.place > 0)
        z = self.encoder(self.words(x) + self.places(self.place), src_key_padding_mask=padding)
        return self.classifier(z.mean(1))


@exhibit(SEQUENCE)
class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Parameter(torch.randn(3, 4))
        self.decoder = nn.TransformerDecoderLayer(4, 2, 6, 0.0, batch_first=True)
        self.head = nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)
        z = self.decoder(x, self.memory.expand(len(x), -1, -1), tgt_mask=mask, tgt_is_causal=True)
        return self.head(z[:, -1])


@exhibit(SEQUENCE)
class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, kdim=2, vdim=2)
        self.head = nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z, weights = self.attention(x, x[..., :2], x[..., 2:])
        return self.head((z + weights @ x).mean(1))


@exhibit(SEQUENCE)
class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.across, self.along = nn.LayerNorm(4), nn.Linear(5, 5), nn.Linear(4, 4)
        self.head = nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.gelu(self.across(self.norm(x).transpose(1, 2))).transpose(1, 2)
        return self.head((x + F.gelu(self.along(x))).mean(1))


# sets, graphs, words


@exhibit(SEQUENCE)
class Graph(nn.Module):
    """Graph convolution, then graph attention, on a ring."""

    def __init__(self) -> None:
        super().__init__()
        ring = torch.eye(5) + torch.eye(5).roll(1, 0) + torch.eye(5).roll(-1, 0)
        self.register_buffer("adjacency", ring / 3)
        self.register_buffer("apart", ring == 0)
        self.conv, self.key, self.query = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 1)
        self.readout = nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.conv(self.adjacency @ x))
        score = F.leaky_relu(self.query(z) + self.key(z).transpose(1, 2), 0.2)
        share = score.masked_fill(self.apart, -1e9).softmax(-1)
        return self.readout((share @ z).sum(1))


@exhibit(SEQUENCE)
def deep_sets() -> nn.Module:
    class DeepSets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.all, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, WAYS)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.all(self.each(x).relu().sum(1)).relu())

    return DeepSets()


@exhibit(TOKENS, tokens=9)
def bag_of_words() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 5), nn.Tanh(), nn.Linear(5, WAYS))


@exhibit(TOKENS, tokens=9)
class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.rnn = nn.Embedding(9, 4, padding_idx=0), nn.GRU(4, 5)
        self.head = nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(self.words(x).transpose(0, 1))
        return self.head(h[-1])


# with noise of every kind


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.mix, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        z = F.dropout(self.body(x), 0.3, self.training).unsqueeze(1)
        rate = 0.2 if self.training else 0.0
        z = F.scaled_dot_product_attention(self.mix(z), z, z, dropout_p=rate).squeeze(1)
        return self.head(z + 0.1 * torch.randn_like(z) if self.training else z).mean(1)


def noisy_transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.3, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(20, WAYS))


def noisy_lstm() -> nn.Module:
    return Recurrent(nn.LSTM(4, 5, 2, dropout=0.4, batch_first=True), 5, False)


def dropout() -> nn.Module:
    layers = (nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.3))
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(216, WAYS))


class Droppy(nn.Module):
    """Noise of torch's factories and in-place draws, as stochastic depth and DropBlock use them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.head(x + self.body(x))
        z = self.body(x) * x.new_empty((len(x), 1)).bernoulli_(0.8).div_(0.8)
        z = z * torch.bernoulli(torch.full_like(z, 0.9)) + 0.1 * torch.randn(8, dtype=x.dtype)
        mask = torch.empty(len(x), 1, dtype=x.dtype)
        mask.uniform_(0.5, 1.5)
        z = z + 0.1 * torch.empty_like(z).normal_(1.0, 2.0)
        return self.head(x + z * mask * torch.rand(z.shape, dtype=x.dtype))


def noise_at_the_end() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, WAYS), nn.Dropout(0.5))


NOISY = {
    "dropout": Exhibit("dropout", dropout, IMAGE, "query_batch"),
    "functional": Exhibit("functional", Functional, SEQUENCE),
    "noisy_transformer": Exhibit("noisy_transformer", noisy_transformer, SEQUENCE),
    "noisy_lstm": Exhibit("noisy_lstm", noisy_lstm, SEQUENCE),
    "droppy": Exhibit("droppy", Droppy, VECTOR),
    "noise_at_the_end": Exhibit("noise_at_the_end", noise_at_the_end, VECTOR, readout="module"),
}
