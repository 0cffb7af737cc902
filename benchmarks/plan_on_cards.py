"""QLoRA of Llama-3.1-8B and Qwen3-30B-A3B on cards of 24 and 80 GB, by plan: memory by component.

    python benchmarks/plan_on_cards.py            Markdown, as in docs/gpu.md

Traced with fake tensors on ``cuda`` from configs alone; rank 16 on all linear layers (experts are
frozen), rows of 2048 tokens. No card has run it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import LlamaConfig, PretrainedConfig, Qwen3MoeConfig

from graftlm.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from graftlm.planning import make_plan
from graftlm.planning.option import ROOM

LENGTH = 2048
CARDS = (24e9, 80e9)
MODELS: dict[str, PretrainedConfig] = {
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ),
    "Qwen3-30B-A3B": Qwen3MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        max_position_embeddings=40960,
        tie_word_embeddings=False,
        dtype="bfloat16",
    ),
}


class Asked(NamedTuple):
    """One row of the table."""

    rows: int
    recompute: bool
    offload: str


ROWS = (
    Asked(1, False, "none"),
    Asked(1, True, "none"),
    Asked(4, False, "none"),
    Asked(4, True, "none"),
    Asked(1, True, "layers"),
    Asked(4, True, "layers"),
)
COLUMNS: dict[str, tuple[str, ...]] = {
    "weights and scales": ("weights", "quantization_state"),
    "adapters, gradients, moments": ("adapters", "gradients", "optimizer"),
    "activations": ("activations",),
    "temporary, loss": ("temporary", "loss"),
}


def planned(architecture: PretrainedConfig, asked: Asked) -> Any:
    """The option of a plan."""
    config = RunConfig(
        method="qlora",
        device="cuda",
        model=ModelConfig(name="m", offload=asked.offload),  # type: ignore[arg-type]
        data=DataConfig(max_length=LENGTH),
        train=TrainConfig(
            batch_size=asked.rows,
            micro_batch_tokens=0,
            gradient_checkpointing=asked.recompute,
        ),
    )
    plan = make_plan(
        config,
        architecture=architecture,
        device="cuda",
        memory="1000GB",
        methods=["qlora"],
    )
    return next(
        option
        for option in plan.options
        if (option.gradient_checkpointing, option.offload) == (asked.recompute, asked.offload)
    )


def main() -> None:
    names = [*COLUMNS, "peak", "fits 24 / 80 GB"]
    for model, architecture in MODELS.items():
        print(f"\n{model}, GB of tensors:\n")
        print(f"| rows | recompute | layers in host memory | {' | '.join(names)} |")
        print(f"|---|---|---|{'---|' * len(names)}")
        for asked in ROWS:
            option = planned(architecture, asked)
            peak, known = option.predicted_peak_bytes, dict(option.components)
            cells = [
                f"{sum(known.pop(part, 0) for part in parts) / 1e9:.1f}"
                for parts in COLUMNS.values()
            ]
            left = {name: value for name, value in known.items() if value}
            assert not left, f"no column for {left}"
            fits = " / ".join("yes" if peak <= card * (1 - ROOM) else "no" for card in CARDS)
            said = ("yes" if asked.recompute else "no", "yes" if asked.offload != "none" else "no")
            print(
                f"| {asked.rows} | {' | '.join([*said, *cells])} | {peak / 1e9:.1f} | {fits} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
