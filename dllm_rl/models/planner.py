"""A planner: the head that says, position by position, whether it is time to write there."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

_TIME_FEATURES = 256
_LONGEST_PERIOD = 10_000.0


class AdaptiveNorm(nn.Module):
    """Layer normalisation whose scale and shift come from a condition; plain normalisation at first.

    Source: Peebles & Xie (DiT), https://arxiv.org/abs/2212.09748, section 3.2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Float[Tensor, "B N H"], condition: Float[Tensor, "B N H"]) -> Float[Tensor, "B N H"]:
        scale, shift = self.modulation(nn.functional.silu(condition)).chunk(2, dim=-1)
        modulated: Tensor = self.norm(x) * (1 + scale) + shift
        return modulated


class TimeEmbedding(nn.Module):
    """Sinusoids of a number in [0, 1] and two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(_TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Float[Tensor, " B"]) -> Float[Tensor, "B 1 H"]:
        half = _TIME_FEATURES // 2
        exponent = torch.arange(half, device=time.device, dtype=torch.float32) / half
        angle = 1000 * time.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponent)
        first: Any = self.layers[0]
        embedded: Tensor = self.layers(torch.cat([angle.cos(), angle.sin()], dim=1).to(first.weight.dtype))
        return embedded[:, None]


class PlannerHead(nn.Module):
    """A logit per position from the network's last hidden states: AdaLN, one transformer block, AdaLN, a linear layer.

    The condition is how much of the sequence is hidden and which positions are open. A new head gives every position
    the same logit, `initial_logit`, so decoding starts with independent coins of equal chance.

    Args:
        config: the network's configuration; the block has its width, heads and rotary base.
        initial_logit: -2 writes one open position in eight per step at first.

    Source: dUltra, https://arxiv.org/abs/2512.21446, and its ancestor LLaDOU, https://arxiv.org/abs/2505.10446; the
    start at -2 is that of Jazbec et al., https://arxiv.org/abs/2512.09106. Deviation: time counts attended positions
    only, so padding changes nothing.
    """

    def __init__(self, config: Any, initial_logit: float = -2.0) -> None:
        super().__init__()
        width = config.hidden_size
        self.time = TimeEmbedding(width)
        self.open = nn.Embedding(2, width)
        self.before, self.after = AdaptiveNorm(width), AdaptiveNorm(width)
        self.block = _block(config)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, initial_logit)

    def forward(
        self,
        hidden: Float[Tensor, "B N H"],
        open: Bool[Tensor, "B N"],
        time: Float[Tensor, " B"],
        attention_mask: Any,
        position_ids: Int64[Tensor, "B N"],
    ) -> Float[Tensor, "B N"]:
        """Planner logits of every position, float32.

        Args:
            open: positions that may be written now.
            time: share of the attended positions that are not hidden.
        """
        weight = self.out.weight
        with torch.autocast(hidden.device.type, enabled=False):
            condition = self.time(time) + self.open(open.long())
            x = self.before(hidden.to(weight.dtype), condition)
            x = self.block(inputs_embeds=x, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
            logits: Tensor = self.out(self.after(x.last_hidden_state, condition))
        return logits[..., 0].float()


def _block(config: Any) -> LlamaModel:
    """One Llama layer that attends as the network does, without embedding and without a norm of its own at the end."""
    block = LlamaModel(
        LlamaConfig(  # type: ignore[call-arg]  # fields of every configuration
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=1,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_parameters["rope_theta"],
            is_causal=False,
            attn_implementation=config._attn_implementation,
        )
    )
    block.embed_tokens, block.norm = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    return block
