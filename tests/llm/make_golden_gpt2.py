#!/usr/bin/env python3
"""Writes tests/llm/data/gpt2_golden: a tiny random GPT-2, and what `transformers` computes with it.

Run by hand when the golden data must change: python3 make_golden_gpt2.py (torch, transformers).
  model.safetensors, config.json, generation_config.json   as save_pretrained writes them
  expected.safetensors
    tokens, targets  [2, 24]      i64
    logits           [2, 24, 67]  f32
    loss             [1]          f32, mean cross-entropy over all positions
    grad.wte         [67, 32]     f32, gradient of the loss with respect to the token embedding
    grad.c_attn      [32, 96]     f32, of the first block's attn.c_attn.weight
    prompt           [5]          i64
    greedy           [20]         i64, the greedy continuation of the prompt
"""
import pathlib

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

out = pathlib.Path(__file__).parent / "data" / "gpt2_golden"
torch.manual_seed(20240607)
config = GPT2Config(vocab_size=67, n_positions=48, n_embd=32, n_layer=2, n_head=4,
                    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                    bos_token_id=0, eos_token_id=0)
model = GPT2LMHeadModel(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        # Large enough that biases, layer norms and attention all matter.
        scale = 0.3 if parameter.dim() == 2 else 0.2
        shift = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        parameter.copy_(shift + scale * torch.randn_like(parameter))
model.save_pretrained(out, safe_serialization=True)

tokens = torch.randint(0, 67, (2, 25))
inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
logits = model(inputs).logits
loss = torch.nn.functional.cross_entropy(logits.view(-1, 67), targets.view(-1))
loss.backward()
prompt = torch.randint(0, 67, (5,))
sequence = prompt.clone()
gaps = []
with torch.no_grad():
    for _ in range(20):
        last = model(sequence[None]).logits[0, -1]
        top = last.topk(2).values
        gaps.append((top[0] - top[1]).item())
        sequence = torch.cat([sequence, last.argmax()[None]])
assert min(gaps) > 1e-2, "two candidates are too close for a golden test; change the seed"
save_file({
    "tokens": inputs, "targets": targets, "logits": logits.detach(), "loss": loss.detach()[None],
    "grad.wte": model.transformer.wte.weight.grad,
    "grad.c_attn": model.transformer.h[0].attn.c_attn.weight.grad,
    "prompt": prompt, "greedy": sequence[5:].clone(),
}, out / "expected.safetensors")
print("loss", loss.item(), "smallest gap", min(gaps), "greedy", sequence[5:].tolist())
