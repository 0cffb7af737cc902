"""Fine-tune by QLoRA, look, and merge: `python examples/train.py MODEL ROWS OUT`."""

import sys

import torch

import graftlm
from graftlm.data import render_prompt
from graftlm.models import generate_text


def main(name: str, rows: str, out: str, steps: int = 100) -> None:
    torch.manual_seed(0)  # before the adapters are drawn
    model, tokenizer = graftlm.load_model(name, quantize="nf4")
    print(graftlm.add_lora(model, graftlm.LoRAConfig(rank=16, alpha=32)))

    settings = graftlm.TrainConfig(steps=steps, batch_size=8, learning_rate=1e-3)
    result = graftlm.train(model, tokenizer, rows, settings, out=f"{out}/run")
    print(f"loss {result.train_loss:.4f}, adapter in {result.adapter}")

    prompt = render_prompt("Two pizzas for Lan, please", tokenizer)
    with graftlm.disable_adapters(model):
        print("before:", generate_text(model, tokenizer, [prompt], max_new_tokens=30)[0].text)
    print("after: ", generate_text(model, tokenizer, [prompt], max_new_tokens=30)[0].text)

    graftlm.save_model(graftlm.merge_in_place(model), tokenizer, f"{out}/merged")


if __name__ == "__main__":
    main(*sys.argv[1:4])
