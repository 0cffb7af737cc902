"""The settings of the adapters: section `lora`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from graftlm.config.values import Names, Settings, Strength, Text

__all__ = ["LoRAConfig"]

Ids = Annotated[tuple[Annotated[int, pydantic.Field(ge=0)], ...], pydantic.Strict(False)]


class LoRAConfig(Settings):
    """Where the adapters go and how large they are: `y = W x + (alpha / rank) B A x`."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _auto_rank(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("rank") == "auto":
            return {name: value for name, value in values.items() if name != "rank"} | {
                "probe_ranks": True
            }
        return values

    rank: int = pydantic.Field(16, ge=1, le=1_000_000)
    """Inner dimension of the two thin matrices. `auto`: 16, and `probe_ranks`."""
    probe_ranks: bool = False
    """Move rank to the layers that use it, for as many parameters as equal ranks take: three short
    runs of 12 steps choose, and keep equal ranks unless others do better on held-out rows."""
    alpha: Strength = 32.0
    """The update is scaled by `alpha / rank`."""
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input while training."""
    targets: Text | Names = "all-linear"
    """`all-linear`, a list of module names, or a regular expression on full module names."""
    target_parameters: Names = ()
    """Fused experts of a mixture of experts to adapt too, such as `[experts.gate_up_proj,
    experts.down_proj]`, and its router, such as `[gate.weight]`: names of parameters, or their ends
    after a dot. Each expert gets an update of its own, so this trains many parameters. Empty:
    experts and router are frozen."""
    exclude: Names = ()
    """Module names never adapted, even where `targets` or `target_parameters` matches."""
    use_rslora: bool = False
    """Scale by `alpha / sqrt(rank)` instead, which keeps large ranks stable (arXiv 2312.03732)."""
    rank_pattern: dict[Text, Annotated[int, pydantic.Field(ge=1, le=1_000_000)]] = pydantic.Field(
        {}
    )
    """Another rank for modules whose name matches the key."""
    alpha_pattern: dict[Text, Strength] = pydantic.Field({})
    """Another alpha for modules whose name matches the key."""
    variant: Text = "lora"
    """The kind of adapter: `lora`; `dora`, which trains the length of each row of the weight apart
    (arXiv 2402.09353); or another that was registered (`graftlm.extend`)."""
    layers: Ids = ()
    """Adapt only the layers of these indices, such as `[8, 9, 10]`; empty: all."""
    layers_pattern: Names = ()
    """The name of the list of layers, such as `[h]`, for a model with several; empty: any name."""
    modules_to_save: Names = ()
    """Modules to train whole beside the adapters, such as `[lm_head, embed_tokens]` or a norm, by
    their names or ends after a dot. They take 16 bytes a parameter and must not be in 4 or 8 bits.
    """
    ensure_weight_tying: bool = True
    """Where `modules_to_save` names the embedding table or the output head of a model in which the
    two are one weight: they stay one. `false` trains the named one alone and unties them."""
    trainable_token_indices: dict[Text, Ids] | Ids = ()
    """Token ids whose rows of the embedding table and of the output head train, and no others; or
    by module, such as `{embed_tokens: [5, 6]}`. Ids past the end of the table make it longer.
    `data.new_tokens` sets this."""
    bias: Literal["none", "lora_only", "all"] = "none"
    """Train biases too: `lora_only`, those of the adapted layers; `all`, every bias."""
    lora_bias: bool = False
    """Give the update a bias of its own: `y = W x + b + (alpha / rank) (B A x + c)`."""
    plus_ratio: Strength = 1.0
    """LoRA+ (arXiv 2402.12354): the learning rate of B is so many times that of A, such as 16."""
    freeze_a: bool = False
    """LoRA-FA (arXiv 2308.03303): A stays as drawn and only B trains, by gradients that are
    projected so that the change of the weight is the closest to full fine-tuning's."""
    init: Text = "default"
    """The values the adapters begin with: `default` (Kaiming), `gaussian`, `orthogonal`; `pissa`
    (the largest singular values of the weight; `pissa_niter_4` is quicker) and `olora` (its QR);
    `loftq` (the error of the 4-bit weight; `qlora` only); `eva` (the directions of the layers'
    inputs on the training rows, with ranks moved to where they explain most)."""
    eva_rho: float = pydantic.Field(2.0, ge=1, le=1000)
    """With `init: eva`: a layer gets at most so many times its rank. `1` leaves the ranks as they
    are."""
    merge_aware: Text = ""
    """Train through the merge into this weight format, `nf4`: each step uses the merged weights as
    they will be stored, so that `graftlm merge --to nf4` writes exactly the model that was trained.
    Only with `qlora` in the same `model.weight_format`, and without dropout. Empty: train beside
    the base, as usual."""
