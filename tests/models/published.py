"""LLaDA written out from its description under the published parameter names: an oracle without our code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


class Block(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        size, heads, kv_heads = config["d_model"], config["n_heads"], config["n_kv_heads"]
        self.head_size, self.theta = size // heads, config["rope_theta"]
        self.attn_norm, self.ff_norm = (Norm(size, config["rms_norm_eps"]) for _ in range(2))
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(size, kv_heads * self.head_size, bias=False) for _ in range(2))
        self.attn_out = nn.Linear(size, size, bias=False)
        self.ff_proj, self.up_proj = (nn.Linear(size, config["mlp_hidden_size"], bias=False) for _ in range(2))
        self.ff_out = nn.Linear(config["mlp_hidden_size"], size, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        frequencies = self.theta ** -(torch.arange(0, self.head_size, 2, dtype=x.dtype) / self.head_size)
        angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * torch.cat([frequencies, frequencies])
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.attn_norm(x)
        q, k, v = (self.split_heads(project(h)) for project in (self.q_proj, self.k_proj, self.v_proj))
        attended = scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, enable_gqa=True)
        x = x + self.attn_out(attended.transpose(1, 2).flatten(2))
        h = self.ff_norm(x)
        return x + self.ff_out(silu(self.ff_proj(h)) * self.up_proj(h))


class PublishedLLaDA(nn.Module):
    """`PublishedLLaDA(config.json as a dict)`; the forward takes ids and gives logits."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        rows = config["embedding_size"]
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(rows, config["d_model"]),
                "blocks": nn.ModuleList([Block(config) for _ in range(config["n_layers"])]),
                "ln_f": Norm(config["d_model"], config["rms_norm_eps"]),
                "ff_out": nn.Linear(config["d_model"], rows, bias=False),
            }
        )

    def forward(self, ids: Tensor) -> Tensor:
        parts = self.model.transformer
        x = parts["wte"](ids)
        for block in parts["blocks"]:
            x = block(x)
        return parts["ff_out"](parts["ln_f"](x))
