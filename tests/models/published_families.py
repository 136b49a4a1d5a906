"""Dream, LLaDA-MoE, LLaDA2 and SDAR written out from their descriptions under the published parameter names.

Oracles without our code or transformers': plain loops over tokens and experts. Every forward takes ids [B, N] and who
sees whom, Bool[B, N, N], and gives the logits as the published networks do, Dream's unshifted.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import silu, softmax

from .published import Norm

COMMON = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.2",
    "use_cache": False,
    "vocab_size": 40,
    "eos_token_id": 37,
    "pad_token_id": 37,
    "mask_token_id": 39,
}
DREAM = COMMON | {
    "architectures": ["DreamModel"],
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "bos_token_id": 37,
    "max_window_layers": 28,
    "model_type": "Dream",
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "use_mrope": False,
    "use_sliding_window": False,
}
LLADA_MOE = {name: value for name, value in COMMON.items() if name != "intermediate_size"} | {
    "architectures": ["LLaDAMoEModelLM"],
    "attention_bias": False,
    "clip_qkv": None,
    "dense_intermediate_size": 48,
    "expert_intermediate_size": 24,
    "model_type": "llada",
    "moe_layer_freq": [1, 1],
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "norm_topk_prob": None,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "partial_rotary_factor": 1,
    "qk_layernorm": True,
    "rms_norm_eps": 1e-05,
    "rope_theta": 50000,
    "routed_scaling_factor": 1,
    "router_aux_loss_coef": 0.01,
    "router_num_group": None,
    "router_topk_group": None,
    "shared_expert_intermediate_size": None,
}
LLADA2 = COMMON | {
    "architectures": ["LLaDA2MoeModelLM"],
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 16,
    "max_window_layers": 20,
    "model_type": "llada2_moe",
    "moe_intermediate_size": 24,
    "moe_router_enable_expert_bias": True,
    "n_group": 4,
    "norm_head": False,
    "norm_softmax": False,
    "norm_topk_prob": True,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "partial_rotary_factor": 0.5,
    "rope_theta": 600000,
    "rotary_dim": 8,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "sliding_window": 4096,
    "topk_group": 2,
    "use_bias": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "use_sliding_window": False,
}
SDAR = COMMON | {
    "architectures": ["SDARForCausalLM"],
    "attention_bias": False,
    "block_size": 4,
    "bos_token_id": 36,
    "fuse_cross_entropy": True,
    "head_dim": 16,
    "max_window_layers": 28,
    "model_type": "sdar",
    "rope_theta": 1000000,
    "sliding_window": None,
    "use_sliding_window": False,
}
SDAR_MOE = SDAR | {
    "architectures": ["SDARMoeForCausalLM"],
    "block_size": 8,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "sdar_moe",
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
CONFIGS = {"dream": DREAM, "llada_moe": LLADA_MOE, "llada2": LLADA2, "sdar": SDAR, "sdar_moe": SDAR_MOE}


def rotate(x: Tensor, size: int, theta: float) -> Tensor:
    """Rotates the first `size` features of each head; x is [B, heads, N, features]."""
    frequencies = theta ** -(torch.arange(0, size, 2, dtype=x.dtype) / size)
    angles = torch.arange(x.shape[2], dtype=x.dtype)[:, None] * torch.cat([frequencies, frequencies])
    first, second = x[..., : size // 2], x[..., size // 2 : size]
    turned = x[..., :size] * angles.cos() + torch.cat([-second, first], -1) * angles.sin()
    return torch.cat([turned, x[..., size:]], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Softmax attention of [B, heads, N, features]; each head of keys serves a group of consecutive heads."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(2, 3)) / q.shape[-1] ** 0.5
    return (softmax(scores.masked_fill(~seen[:, None], -torch.inf), -1) @ v).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, config: dict, bias: bool, norm: bool) -> None:
        super().__init__()
        heads, groups, width = config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]
        self.size, self.theta = config.get("head_dim", width // heads), config["rope_theta"]
        self.q_proj = nn.Linear(width, heads * self.size, bias=bias)
        self.k_proj, self.v_proj = (nn.Linear(width, groups * self.size, bias=bias) for _ in range(2))
        self.o_proj = nn.Linear(heads * self.size, width, bias=False)
        if norm:
            self.q_norm, self.k_norm = (Norm(self.size, config["rms_norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (-1, self.size)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        return self.o_proj(attend(rotate(q, self.size, self.theta), rotate(k, self.size, self.theta), v, seen))


class FusedAttention(nn.Module):
    """LLaDA2's: one projection, heads of queries, of keys, of values in a row; half of each head is rotated."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.size, self.theta = config["head_dim"], config["rope_theta"]
        self.turned = int(self.size * config["partial_rotary_factor"])
        rows = (self.heads + 2 * self.groups) * self.size
        self.query_key_value = nn.Linear(config["hidden_size"], rows, bias=False)
        self.dense = nn.Linear(self.heads * self.size, config["hidden_size"], bias=False)
        self.query_layernorm, self.key_layernorm = (Norm(self.size, config["rms_norm_eps"]) for _ in range(2))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        heads = self.query_key_value(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        q, k = heads[:, : self.heads], heads[:, self.heads : self.heads + self.groups]
        q = rotate(self.query_layernorm(q), self.turned, self.theta)
        k = rotate(self.key_layernorm(k), self.turned, self.theta)
        return self.dense(attend(q, k, heads[:, self.heads + self.groups :], seen))


class Gated(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    """Affinities to the experts; with `biased`, also LLaDA2's bias, which chooses experts but does not weigh them."""

    def __init__(self, experts: int, width: int, biased: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))
        if biased:
            self.register_buffer("expert_bias", torch.empty(experts))


class Experts(nn.Module):
    """Experts one by one, a token at a time."""

    def __init__(self, config: dict, biased: bool = False) -> None:
        super().__init__()
        self.config, width = config, config["hidden_size"]
        inner = config.get("moe_intermediate_size") or config["expert_intermediate_size"]
        self.gate = Gate(config["num_experts"], width, biased)
        self.experts = nn.ModuleList(Gated(width, inner) for _ in range(config["num_experts"]))
        if biased:
            self.shared_experts = Gated(width, inner * config["num_shared_experts"])

    def forward(self, x: Tensor) -> Tensor:
        route = self.sigmoid_in_groups if hasattr(self.gate, "expert_bias") else self.softmax_of_all
        rows = []
        for token in x.flatten(0, 1):
            rows.append(sum(weight * self.experts[expert](token) for expert, weight in route(self.gate.weight @ token)))
            if hasattr(self, "shared_experts"):
                rows[-1] = rows[-1] + self.shared_experts(token)
        return torch.stack(rows).reshape(x.shape)

    def softmax_of_all(self, affinities: Tensor) -> list[tuple[int, Tensor]]:
        shares = softmax(affinities, -1)
        chosen = sorted(range(len(shares)), key=lambda e: -shares[e].item())[: self.config["num_experts_per_tok"]]
        total = shares[chosen].sum() if self.config["norm_topk_prob"] else 1.0
        return [(expert, shares[expert] / total) for expert in chosen]

    def sigmoid_in_groups(self, affinities: Tensor) -> list[tuple[int, Tensor]]:
        scores = 1 / (1 + torch.exp(-affinities))
        preference = (scores + self.gate.expert_bias).tolist()
        size = len(preference) // self.config["n_group"]
        groups = [range(start, start + size) for start in range(0, len(preference), size)]
        groups.sort(key=lambda group: -sum(sorted((preference[e] for e in group), reverse=True)[:2]))
        allowed = [expert for group in groups[: self.config["topk_group"]] for expert in group]
        chosen = sorted(allowed, key=lambda e: -preference[e])[: self.config["num_experts_per_tok"]]
        total = scores[chosen].sum()
        return [(expert, scores[expert] / total * self.config["routed_scaling_factor"]) for expert in chosen]


class Layer(nn.Module):
    def __init__(self, family: str, config: dict, index: int) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm, self.post_attention_layernorm = Norm(width, eps), Norm(width, eps)
        if family == "llada2":
            self.attention = FusedAttention(config)
            dense = index < config["first_k_dense_replace"]
        else:
            self.self_attn = Attention(config, bias=family == "dream", norm=family != "dream")
            dense = "num_experts" not in config
        self.mlp = Gated(width, config["intermediate_size"]) if dense else Experts(config, family == "llada2")

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        attention = self.attention if hasattr(self, "attention") else self.self_attn
        x = x + attention(self.input_layernorm(x), seen)
        return x + self.mlp(self.post_attention_layernorm(x))


class Published(nn.Module):
    """`Published(family)` with random weights that are far from symmetric, so that a confusion shows."""

    def __init__(self, family: str, seed: int = 0) -> None:
        super().__init__()
        config = CONFIGS[family]
        width, rows = config["hidden_size"], config["vocab_size"]
        self.embedding = "word_embeddings" if family == "llada2" else "embed_tokens"
        self.model = nn.Module()
        self.model.add_module(self.embedding, nn.Embedding(rows, width))
        self.model.layers = nn.ModuleList(Layer(family, config, n) for n in range(config["num_hidden_layers"]))
        self.model.norm = Norm(width, config["rms_norm_eps"])
        self.lm_head = nn.Linear(width, rows, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in sorted(self.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() == 1:
                tensor.copy_(0.3 * noise if "bias" in name else 1 + 0.3 * noise)
            else:
                tensor.copy_(noise * (1.0 if self.embedding in name else tensor.shape[-1] ** -0.5))

    def forward(self, input_ids: Tensor, seen: Tensor) -> Tensor:
        x = self.model.get_submodule(self.embedding)(input_ids)
        for layer in self.model.layers:
            x = layer(x, seen)
        return self.lm_head(self.model.norm(x))


def write_published(folder: Path, family: str, seed: int = 0, **fields: object) -> Path:
    """A folder in the family's published format, without a tokenizer; `fields` replace those of config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[family] | fields))
    tensors = {name: tensor.contiguous() for name, tensor in Published(family, seed).state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
