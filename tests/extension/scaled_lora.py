"""An adapter variant of one's own: LoRA with a trained scale for each row of the update.

y = W x + s · diag(m) B A x        m [out] starts at one
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from graftlm.extend import LoRALinear, register_adapter


@register_adapter
class ScaledLoRA(LoRALinear):
    variant = "scaled_lora"
    peft_keys: ClassVar = {**LoRALinear.peft_keys, "row_scale": "lora_row_scale"}
    peft_config: ClassVar = {"peft_type": "SCALED_LORA"}

    @classmethod
    def shapes(cls, base, rank):
        shapes = super().shapes(base, rank)
        return {**shapes, "row_scale": shapes["lora_B"][:1]}

    def reset(self):
        super().reset()
        nn.init.ones_(self.row_scale)

    def factors(self):
        return self.lora_A, self.row_scale[:, None] * self.lora_B
