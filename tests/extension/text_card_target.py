"""An export target of one's own: a text file that says what the adapter is."""

from __future__ import annotations

import json

from graftlm.extend import ExportTarget, Proof, register_target


class TextCard(ExportTarget):
    def check(self, adapter, base):
        return [] if (adapter / "adapter_config.json").is_file() else ["no adapter_config.json"]

    def write(self, adapter, base, out):
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        out.write_text(f"{base}: rank {config['r']}\n", encoding="utf-8")
        return {"rank": config["r"]}

    def verify(self, adapter, base, out):
        text = out.read_text(encoding="utf-8")
        problems = [] if text.startswith(f"{base}: rank ") else [f"{out} does not name {base}"]
        return Proof(problems, {"characters": len(text)})


register_target("text-card", TextCard)
