"""The training step in PyTorch, as one writes it today with diffusers and peft: a peer to time.

The same arithmetic as ours (MSE + LPIPS + VSD, then the regularizer's update), organised as
OSEDiff's trainer is: three U-Nets, mixed precision by autocast, AdamW of torch.optim.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import references
from osdhuman_jax.config import Config


def tokens_of(config: Config) -> dict[str, Any]:
    """Arguments of HFIE."""
    model = config.model
    return {
        "num_queries": model.hfie.num_queries,
        "dim": model.unet.cross_attention_dim,
        "kv_dim": model.swin.image_proj_dim,
        "num_heads": model.hfie.num_heads,
    }


class PeerStep:
    """One step on a batch (lq, hq), NCHW float32 in [-1, 1]; weights are random."""

    def __init__(
        self, config: Config, device: torch.device, narrow: int = 1, checkpointing: bool = False
    ):
        model, self.config, self.device = config.model, config, device
        rank, alpha = config.lora.rank, int(config.lora.alpha)
        plain = references.unet(vars(model.unet)).requires_grad_(False)
        self.fixed = copy.deepcopy(plain).to(device, self._dtype())
        self.unet = references.adapt(copy.deepcopy(plain), rank, alpha).to(device)
        self.reg = references.adapt(plain, rank, alpha).to(device)
        self.vae = references.adapt(references.vae(vars(model.vae)), rank, alpha).to(device)
        self.ram = references.RAM(vars(model.swin)).requires_grad_(False).to(device)
        self.hfie = references.HFIE(**tokens_of(config)).to(device)
        nn.init.normal_(self.hfie.query)
        self.lpips = references.LPIPS(narrow).requires_grad_(False).to(device)
        if checkpointing:
            for net in (self.vae, self.unet, self.reg):
                net.enable_gradient_checkpointing()
                net.train()
        own = [p for net in (self.vae, self.unet, self.hfie) for p in net.parameters()]
        self.own = [p for p in own if p.requires_grad]
        self.theirs = [p for p in self.reg.parameters() if p.requires_grad]
        rate = {"lr": config.optim.learning_rate, "weight_decay": config.optim.weight_decay}
        self.optimizers = [torch.optim.AdamW(p, **rate) for p in (self.own, self.theirs)]
        self.alphas = references.SCHEDULER.alphas_cumprod.to(device)

    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.config.run.precision == "bf16" else torch.float32

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas[t][:, None, None, None]
        return alpha.sqrt(), (1 - alpha).sqrt()

    def _noised(self, z: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.randint(*bounds, (len(z),), device=self.device)
        noise = torch.randn_like(z)
        signal, sigma = self._coefficients(t)
        return signal * z + sigma * noise, noise, t

    def _generate(self, lq: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = self.vae.config.scaling_factor
        with torch.no_grad():
            embeddings = self.ram(lq)
        prompt = self.hfie(embeddings)
        z = scale * self.vae.encode(lq).latent_dist.sample()
        t = torch.full((len(lq),), self.config.model.timestep, device=self.device)
        eps = self.unet(z, t, prompt).sample.float()
        signal, sigma = self._coefficients(t)
        latent = (z.float() - sigma * eps) / signal
        return latent, prompt, self.vae.decode(latent / scale).sample.clamp(-1, 1)

    def _vsd(self, latent: Tensor, prompt: Tensor) -> Tensor:
        with torch.no_grad():
            noisy, _, t = self._noised(latent, self.config.loss.vsd_timesteps)
            fixed = self.fixed(noisy.to(self._dtype()), t, prompt.to(self._dtype())).sample
            signal, sigma = self._coefficients(t)
            x0 = (noisy - sigma * fixed.float()) / signal
            x0_reg = (noisy - sigma * self.reg(noisy, t, prompt).sample.float()) / signal
            weight = (latent - x0).abs().mean((1, 2, 3), keepdim=True)
            target = latent - (x0_reg - x0) / weight
        return F.mse_loss(latent, target)

    def __call__(self, lq: Tensor, hq: Tensor) -> tuple[float, float]:
        """Both losses, after both updates."""
        weights = self.config.loss
        half = self.config.run.precision == "bf16"
        with torch.device(self.device), torch.autocast(self.device.type, torch.bfloat16, half):
            latent, prompt, image = self._generate(lq)
            loss = weights.mse * F.mse_loss(image.float(), hq)
            loss = loss + weights.lpips * self.lpips(image.float(), hq).mean()
            loss = loss + weights.vsd * self._vsd(latent, prompt)
        self._update(0, self.own, loss)
        latent, prompt = latent.detach(), prompt.detach()
        with torch.device(self.device), torch.autocast(self.device.type, torch.bfloat16, half):
            noisy, noise, t = self._noised(latent, weights.reg_timesteps)
            reg_loss = F.mse_loss(self.reg(noisy, t, prompt).sample.float(), noise)
        self._update(1, self.theirs, reg_loss)
        return loss.item(), reg_loss.item()

    def _update(self, which: int, params: list[nn.Parameter], loss: Tensor) -> None:
        optimizer = self.optimizers[which]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, self.config.optim.clip_norm)
        optimizer.step()
