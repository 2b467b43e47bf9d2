"""The codebook: how its codes follow the encoder, and what rare codes cost."""

import math

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import nn

from dalle_core.training import processes
from dalle_core.training.vq_model import encode, with_code_size


class Codebook(nn.Module):
    """Quantizes, and moves the codes: each follows the mean of the vectors that chose it, unused ones are drawn anew.

    The codebook term of L_VQ is minimal where each code is the mean of its vectors. So it is not left to gradients,
    under which 4,096 rarely chosen codes move slowly, but done by moving averages (van den Oord et al., appendix A.1):

        N_k <- d N_k + (1 - d) n_k,    m_k <- d m_k + (1 - d) sum of its z_e,    e_k = m_k / N_k

    A codebook initialised at random collapses: a few codes take everything, the others are never chosen. So it is
    drawn from the encoder's own outputs after a while of plain autoencoding (k-means), and dead codes are drawn again.

    All processes of a run hold the same codes: counts and sums go over the whole batch. `warmup=None`: the codes are those
    of a trained model, and none are drawn at the start.
    """

    def __init__(
        self,
        quantizer,
        warmup: int | None,
        commitment: float = 0.25,
        restart_every: int = 50,
        settled: float = math.inf,
        seed: int = 0,
    ):
        super().__init__()
        trained, self.seed = warmup is None, seed
        self.warmup = -1 if trained else warmup
        self.quantizer, self.commitment, self.restart_every = quantizer, commitment, restart_every
        self.settled = settled  # the step from which codes are not drawn anew: the model's average should end near them
        self.register_buffer("used", torch.zeros(quantizer.n_e))  # N_k; 1: as often as if all codes were used alike
        self.register_buffer("sums", torch.zeros(quantizer.n_e, quantizer.vq_embed_dim))  # m_k
        self.register_buffer("recent", torch.zeros(0, quantizer.vq_embed_dim), persistent=False)
        if trained:
            self.used.fill_(1.0)
            self.sums.copy_(quantizer.embedding.weight.data)

    def state_dict(self, *args, **kwargs):  # the quantizer belongs to the model's own state
        return {"used": self.used, "sums": self.sums, "recent": self.recent}

    def load_state_dict(self, state):
        for name, value in state.items():
            setattr(self, name, value.to(self.used.device))

    def __call__(self, z: torch.Tensor, step: int):
        """z [B, C, h, w] -> (quantized z, commitment loss). Before `warmup`, z goes through as it is."""
        vectors = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # [B*h*w, C]
        self.recent = torch.cat([processes.gather(vectors), self.recent])[: 8 * len(self.used)]
        if step < self.warmup:
            return z, z.new_zeros(())
        weight = self.quantizer.embedding.weight.data
        self._renew(weight, step)
        tokens = torch.cdist(vectors, weight).argmin(1)
        codes = weight[tokens].view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        loss = self.commitment * F.mse_loss(z, codes)
        self._follow(weight, *self._counted(vectors, tokens))
        return z + (codes - z).detach(), loss

    def _counted(self, vectors, tokens):
        """n_k and the sums of z_e above, over the vectors of all processes, and how many vectors these are."""
        counts = processes.sum_(torch.bincount(tokens, minlength=len(self.used)))
        sums = processes.sum_(torch.zeros_like(self.sums).index_add_(0, tokens, vectors))
        return counts, sums, len(tokens) * processes.count()

    def _follow(self, weight, counts, sums, total: int, share: float = 0.01) -> None:
        """One step of the moving averages; `share` is 1 - d above."""
        fair = len(weight) / total
        self.used.lerp_(counts * fair, share)
        self.sums.lerp_(sums * fair, share)
        alive = (self.used > 1e-3)[:, None]
        weight.copy_(torch.where(alive, self.sums / self.used[:, None], weight))

    def _renew(self, weight, step: int) -> None:
        """Draws the first codebook, and later codes for dead ones."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        if step == self.warmup:
            first = self.recent[:1].to(weight)
            weight.copy_(torch.cat([first, self._draw(first, len(weight) - 1, generator)]))
            self.used.fill_(1.0)
            for _ in range(10):  # Lloyd's k-means, with half a step; of all processes' vectors, in each of them
                self.sums.copy_(weight * self.used[:, None])
                tokens = torch.cat([torch.cdist(part, weight).argmin(1) for part in self.recent.split(2**13)])
                counts = torch.bincount(tokens, minlength=len(weight))
                sums = torch.zeros_like(weight).index_add_(0, tokens, self.recent)
                self._follow(weight, counts, sums, len(tokens), 0.5)
            self.used.clamp_(min=0.1)
        elif (step - self.warmup) % self.restart_every == 0 and step < self.settled:
            dead = self.used < 0.03
            weight[dead] = self._draw(weight[~dead], int(dead.sum()), generator)
            self.used[dead] = 1.0
        else:
            return
        self.sums.copy_(weight * self.used[:, None])
        processes.from_first_(weight, self.used, self.sums)

    def perplexity(self) -> float:
        """exp of the entropy of the codes' frequencies: how many codes, used alike, would hold as much."""
        return torch.special.entr(self.used / self.used.sum().clamp(min=1e-9)).sum().exp().item()

    def _draw(self, codes: torch.Tensor, count: int, generator) -> torch.Tensor:
        """`count` of the recent outputs, each likelier the farther it is from `codes` (k-means++, Arthur and
        Vassilvitskii 2007). By their density alone, most codes would fall on what is most common, the empty background,
        and tell shades of it apart that nobody sees and every prior would have to learn."""
        recent = self.recent.to("cpu", torch.float32)
        nearest = torch.cdist(recent, codes.to(recent)).amin(1).square()
        chosen = []
        for _ in range(count):
            chosen.append(recent[torch.multinomial(nearest + 1e-9, 1, generator=generator)])
            nearest = torch.minimum(nearest, (recent - chosen[-1]).square().sum(1))
        return torch.cat(chosen).to(codes) if chosen else codes[:0]


@torch.no_grad()
def charge_for_rate(model: VQModel, pixels: torch.Tensor, rate: float) -> VQModel:
    """The same model with entropy-constrained quantization (Chou, Lookabaugh and Gray 1989): rare codes cost more.

        k = argmin_k |z_e - e_k|^2 - lambda log p(k),        lambda = rate * mean |z_e - e|^2

    Of codes that decode to nearly the same, the common one is taken, so that things look alike in tokens too, and a
    prior has less to learn. `pixels` [N, 3, H, W] show how often codes are used.

    The price is one more dimension of the codebook, in which the encoder's vectors are 0 and code k is
    sqrt(-lambda log p(k)), so that the nearest code in the plain sense is the cheapest: any VQModel code reads it.
    """
    weight, size = model.quantize.embedding.weight, model.config.num_vq_embeddings
    vectors = torch.cat([encode(model, part.to(weight.device)).float() for part in pixels.split(16)])
    vectors = vectors.permute(0, 2, 3, 1).flatten(0, 2).split(2**13)  # of [N*h*w, C], for distances [2**13, K]
    square = sum(torch.cdist(part, weight.float()).amin(1).square().sum() for part in vectors)
    strength = rate * square / sum(map(len, vectors))
    price = torch.zeros(size, device=weight.device)
    for _ in range(8):  # which codes are taken depends on their price, and the price on how often they are taken
        taken = torch.cat([(torch.cdist(part, weight.float()).square() + price).argmin(1) for part in vectors])
        counts = torch.bincount(taken, minlength=size)
        price = -strength * ((counts + 1) / (counts.sum() + size)).log()

    priced = with_code_size(model, weight.shape[1] + 1).to(weight.device, weight.dtype)
    state = model.state_dict()
    state["quantize.embedding.weight"] = torch.cat([weight, price.to(weight.dtype).sqrt()[:, None]], dim=1)
    for name, dim in (("quant_conv.weight", 0), ("quant_conv.bias", 0), ("post_quant_conv.weight", 1)):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name].narrow(dim, 0, 1))], dim=dim)
    priced.load_state_dict(state)
    return priced.eval()
