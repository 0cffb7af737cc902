"""`graftlm doctor`: reports on this machine, and checks that graftlm works on it."""

from __future__ import annotations

from typing import Any

import typer

from graftlm.cli._shared import JsonOption, say

__all__ = ["doctor"]


def doctor(as_json: JsonOption = False) -> None:
    """Report hardware, versions and kernels; check every operator against its reference.

    The exit code is 1 if an operator is wrong.

    Example: `graftlm doctor`
    """
    import torch

    from graftlm import kernels, system
    from graftlm.system.placement import gpu_name

    report: dict[str, Any] = {
        "versions": system.versions(),
        "threads": torch.get_num_threads(),
        "available_memory_bytes": system.available_memory(),
        "cuda": gpu_name(),
        "kernels": kernels.status(),
        "operators": len(kernels.operators()),
        "checks": kernels.selfcheck(),
    }
    say(report, as_json, _table(report))
    if any(check["result"] != "ok" for check in report["checks"]):
        raise typer.Exit(1)


def _table(report: dict[str, Any]) -> str:
    lines = [f"{name:<14} {version}" for name, version in report["versions"].items()]
    lines += [
        f"{'threads':<14} {report['threads']}",
        f"{'memory':<14} {report['available_memory_bytes'] / 1e9:.1f} GB free",
        f"{'cuda':<14} {report['cuda'] or 'none'}",
    ]
    lines += [
        f"{'kernels':<14} {device}, {name}: {value}"
        for device, facts in report["kernels"].items()
        for name, value in facts.items()
    ]
    checks = report["checks"]
    lines += [f"{'check':<14} {_line(check)}" for check in checks]
    wrong = sorted({check["operator"] for check in checks if check["result"] != "ok"})
    verdict = f"wrong: {', '.join(wrong)}" if wrong else "all right"
    checked = len({check["operator"] for check in checks})
    lines.append(f"{'operators':<14} {checked} of {report['operators']} checked, {verdict}")
    return "\n".join(lines)


def _line(check: dict[str, Any]) -> str:
    case = f" ({check['case']})" if check["case"] else ""
    return (
        f"{check['result']:<6} {check['operator']}{case} on {check['device']} by {check['runs']}: "
        f"error {check['relative_error']:g}, {check['ms']} ms, reference {check['reference_ms']} ms"
    )
