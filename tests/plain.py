"""Published architectures re-derived plainly from their description, on tensors under their published names.

They share no code with dalle_core: what they compute is what a converted model must compute.
"""

import torch
import torch.nn.functional as F


def noise(*shape, generator) -> torch.Tensor:
    """Of a size at which every tensor matters."""
    fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 25
    return torch.randn(shape, generator=generator) * fan_in**-0.5


# ---------------------------------------------------------------- VQGAN in taming's names


def vqgan_state(ch=32, mult=(1, 1, 2, 2, 4), resnets=2, latent=32, code_size=16, codes=64, encoder=True, seed=0) -> dict:
    """Random tensors under every name that a VQGAN of this size has, attention at the lowest resolution."""
    generator, state = torch.Generator().manual_seed(seed), {}

    def conv(name, outputs, inputs, size=3):
        state[f"{name}.weight"] = noise(outputs, inputs, size, size, generator=generator)
        state[f"{name}.bias"] = noise(outputs, generator=generator)

    def norm(name, size):
        state[f"{name}.weight"] = 1 + noise(size, generator=generator)
        state[f"{name}.bias"] = noise(size, generator=generator)

    def resnet(name, inputs, outputs):
        norm(f"{name}.norm1", inputs), conv(f"{name}.conv1", outputs, inputs)
        norm(f"{name}.norm2", outputs), conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", outputs, inputs, 1)

    def attention(name, size):
        norm(f"{name}.norm", size)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", size, size, 1)

    def middle(name, size):
        resnet(f"{name}.block_1", size, size), attention(f"{name}.attn_1", size), resnet(f"{name}.block_2", size, size)

    sizes, top = [ch * m for m in mult], len(mult) - 1
    if encoder:
        conv("encoder.conv_in", ch, 3)
        inputs = ch
        for i, size in enumerate(sizes):
            for j in range(resnets):
                resnet(f"encoder.down.{i}.block.{j}", inputs, size)
                inputs = size
                if i == top:
                    attention(f"encoder.down.{i}.attn.{j}", size)
            if i < top:
                conv(f"encoder.down.{i}.downsample.conv", size, size)
        middle("encoder.mid", sizes[-1])
        norm("encoder.norm_out", sizes[-1]), conv("encoder.conv_out", latent, sizes[-1])
        conv("quant_conv", code_size, latent, 1)
    state["quantize.embedding.weight"] = noise(codes, code_size, generator=generator)
    conv("post_quant_conv", latent, code_size, 1)
    conv("decoder.conv_in", sizes[-1], latent)
    middle("decoder.mid", sizes[-1])
    inputs = sizes[-1]
    for i in reversed(range(len(sizes))):
        for j in range(resnets + 1):
            resnet(f"decoder.up.{i}.block.{j}", inputs, sizes[i])
            inputs = sizes[i]
            if i == top:
                attention(f"decoder.up.{i}.attn.{j}", sizes[i])
        if i > 0:
            conv(f"decoder.up.{i}.upsample.conv", sizes[i], sizes[i])
    norm("decoder.norm_out", ch), conv("decoder.conv_out", 3, ch)
    return state


class VQGAN:
    def __init__(self, state: dict):
        self.w = {key: value.double() for key, value in state.items()}

    def conv(self, name, x, **how):
        return F.conv2d(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"], **how)

    def norm(self, name, x):
        return F.group_norm(x, 32, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps=1e-6)

    def resnet(self, name, x):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.w else x)

    def attention(self, name, x):
        q, k, v = (self.conv(f"{name}.{part}", self.norm(f"{name}.norm", x)).flatten(2) for part in "qkv")
        weights = (q.mT @ k * q.shape[1] ** -0.5).softmax(-1)  # [B, from, to]
        return x + self.conv(f"{name}.proj_out", (v @ weights.mT).view_as(x))

    def blocks(self, name, x):
        j = 0
        while f"{name}.block.{j}.norm1.weight" in self.w:
            x = self.resnet(f"{name}.block.{j}", x)
            if f"{name}.attn.{j}.norm.weight" in self.w:
                x = self.attention(f"{name}.attn.{j}", x)
            j += 1
        return x

    def middle(self, name, x):
        return self.resnet(f"{name}.block_2", self.attention(f"{name}.attn_1", self.resnet(f"{name}.block_1", x)))

    def levels(self):
        return sum(f"decoder.up.{i}.block.0.norm1.weight" in self.w for i in range(9))

    def vectors(self, x):
        """Pixels -> what is quantized [B, C, h, w]."""
        x = self.conv("encoder.conv_in", x.double(), padding=1)
        for i in range(self.levels()):
            x = self.blocks(f"encoder.down.{i}", x)
            if i < self.levels() - 1:
                x = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder.mid", x)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x, padding=1))

    def tokens(self, x):
        z = self.vectors(x).permute(0, 2, 3, 1)[..., None, :]
        return (z - self.w["quantize.embedding.weight"]).square().sum(-1).argmin(-1)

    def pixels(self, tokens):
        x = self.conv("post_quant_conv", self.w["quantize.embedding.weight"][tokens].permute(0, 3, 1, 2))
        x = self.middle("decoder.mid", self.conv("decoder.conv_in", x, padding=1))
        for i in reversed(range(self.levels())):
            x = self.blocks(f"decoder.up.{i}", x)
            if i > 0:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(f"decoder.up.{i}.upsample.conv", x, padding=1)
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), padding=1)


# ---------------------------------------------------------------- minDALL·E's stage 2


def mindalle_state(width=128, layers=2, texts=60, images=64, text_length=64, image_length=256, seed=0) -> dict:
    generator, state = torch.Generator().manual_seed(seed), {}

    def add(name, *shape, one=0.0):
        state[name] = one + noise(*shape, generator=generator)

    for part, count, length in (("img", images, image_length), ("txt", texts, text_length)):
        add(f"tok_emb_{part}.weight", count, width), add(f"pos_emb_{part}.weight", length, width)
        add(f"head_{part}.weight", count, width)
    for name in [f"blocks.{i}.{norm}" for i in range(layers) for norm in ("ln1", "ln2")] + ["ln_f"]:
        add(f"{name}.weight", width, one=1.0), add(f"{name}.bias", width)
    for i in range(layers):
        for part in ("key", "query", "value", "proj"):
            add(f"blocks.{i}.attn.{part}.weight", width, width), add(f"blocks.{i}.attn.{part}.bias", width)
        add(f"blocks.{i}.mlp.0.weight", 4 * width, width), add(f"blocks.{i}.mlp.0.bias", 4 * width)
        add(f"blocks.{i}.mlp.2.weight", width, 4 * width), add(f"blocks.{i}.mlp.2.bias", width)
    return state


def mindalle_logits(state: dict, heads: int, texts: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """texts [B, N], images [B, n] -> logits [B, n + 1, V] of the image tokens 0 ... n."""
    w = {key: value.double() for key, value in state.items()}

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    text = w["tok_emb_txt.weight"][texts] + w["pos_emb_txt.weight"][: texts.shape[1]]
    image = w["tok_emb_img.weight"][images] + w["pos_emb_img.weight"][: images.shape[1]]
    x = torch.cat([text, image], dim=1)
    hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    i = 0
    while f"blocks.{i}.ln1.weight" in w:
        h = norm(f"blocks.{i}.ln1", x)
        q, k, v = (
            linear(f"blocks.{i}.attn.{part}", h).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
        x = x + linear(f"blocks.{i}.attn.proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = linear(f"blocks.{i}.mlp.0", norm(f"blocks.{i}.ln2", x))
        x = x + linear(f"blocks.{i}.mlp.2", h * 0.5 * (1 + torch.erf(h / 2**0.5)))
        i += 1
    return norm("ln_f", x)[:, texts.shape[1] - 1 :] @ w["head_img.weight"].T


# ---------------------------------------------------------------- LlamaGen's text-to-image GPT


def llamagen_state(width=128, layers=2, ffn=96, images=64, caption=24, encoder_size=32, seed=0) -> dict:
    generator, state = torch.Generator().manual_seed(seed), {}

    def add(name, *shape, one=0.0):
        state[name] = one + noise(*shape, generator=generator)

    add("cls_embedding.uncond_embedding", caption, encoder_size)
    add("cls_embedding.cap_proj.fc1.weight", width, encoder_size), add("cls_embedding.cap_proj.fc2.weight", width, width)
    add("tok_embeddings.weight", images, width), add("output.weight", images, width), add("norm.weight", width, one=1.0)
    for i in range(layers):
        add(f"layers.{i}.attention.wqkv.weight", 3 * width, width), add(f"layers.{i}.attention.wo.weight", width, width)
        for part in ("w1", "w3"):
            add(f"layers.{i}.feed_forward.{part}.weight", ffn, width)
        add(f"layers.{i}.feed_forward.w2.weight", width, ffn)
        add(f"layers.{i}.attention_norm.weight", width, one=1.0), add(f"layers.{i}.ffn_norm.weight", width, one=1.0)
    state["tok_embeddings.weight"] *= 8  # as large as the caption
    state["output.weight"] *= 4  # far from uniform
    return state


def llamagen_logits(state: dict, grid: int, features: torch.Tensor, given: int, images: torch.Tensor) -> torch.Tensor:
    """features [N, E]: of a caption whose last `given` positions are seen; images [n] -> logits [n + 1, V].

    Positions are complex numbers, which neighbouring pairs of queries and keys are multiplied with: those of the grid turn
    them, those of the caption are zero (https://github.com/FoundationVision/LlamaGen, autoregressive/models/gpt.py).
    """
    w = {key: value.double() for key, value in state.items()}
    n, size = len(features), 64

    def norm(name, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    caption = features.double() @ w["cls_embedding.cap_proj.fc1.weight"].T
    caption = 0.5 * caption * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (caption + 0.044715 * caption**3)))
    x = torch.cat([caption @ w["cls_embedding.cap_proj.fc2.weight"].T, w["tok_embeddings.weight"][images]])
    turns = torch.zeros(len(x), size // 2, dtype=torch.complex128)
    slower = 10_000 ** (-torch.arange(size // 4, dtype=torch.float64) / (size // 4))
    for place in range(len(images)):
        angles = torch.cat([place // grid * slower, place % grid * slower])
        turns[n + place] = torch.polar(torch.ones_like(angles), angles)
    seen = torch.ones(len(x), len(x)).tril().bool()
    seen[:, : n - given] = False
    seen |= torch.eye(len(x)).bool()

    def turned(part):
        pairs = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous())  # [T, H, D / 2]
        return torch.view_as_real(pairs * turns[:, None]).flatten(2)

    i = 0
    while f"layers.{i}.ffn_norm.weight" in w:
        h = norm(f"layers.{i}.attention_norm", x) @ w[f"layers.{i}.attention.wqkv.weight"].T
        q, k, v = (part.unflatten(-1, (-1, size)) for part in h.chunk(3, dim=-1))
        q, k, v = (part.transpose(0, 1) for part in (turned(q), turned(k), v))  # [H, T, D]
        scores = (q @ k.mT / size**0.5).masked_fill(~seen, -torch.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ w[f"layers.{i}.attention.wo.weight"].T
        h = norm(f"layers.{i}.ffn_norm", x)
        gate, value = (h @ w[f"layers.{i}.feed_forward.{part}.weight"].T for part in ("w1", "w3"))
        x = x + (gate * torch.sigmoid(gate) * value) @ w[f"layers.{i}.feed_forward.w2.weight"].T
        i += 1
    return norm("norm", x)[n - 1 :] @ w["output.weight"].T
