"""`graftlm doctor`: reports on this machine, and checks that graftlm works on it."""

from __future__ import annotations

from typing import Any

import typer

from graftlm.cli._shared import DeviceOption, JsonOption, say

__all__ = ["doctor"]


def doctor(device: DeviceOption = "auto", as_json: JsonOption = False) -> None:
    """Report hardware, versions and kernels; check every operator against its reference.

    Kernels are checked on the CPU and on the device; a device that torch cannot use is an error.

    The exit code is 1 if an operator is wrong.

    Example: `graftlm doctor`
    """
    import torch

    from graftlm import kernels, system
    from graftlm.system.devices import unusable_gpu
    from graftlm.system.placement import candidates, placement_for

    chosen = placement_for(device)
    report: dict[str, Any] = {
        "versions": system.versions(),
        "threads": torch.get_num_threads(),
        "available_memory_bytes": system.available_memory(),
        "device": chosen.name,
        "accelerators": {one.name: one.free_memory() for one in candidates()},
        "unusable": unusable_gpu(),
        "kernels": kernels.status(),
        "operators": len(kernels.operators()),
        "checks": kernels.selfcheck(chosen.device),
    }
    say(report, as_json, _table(report))
    if any(check["result"] != "ok" for check in report["checks"]):
        raise typer.Exit(1)


def _table(report: dict[str, Any]) -> str:
    lines = [f"{name:<14} {version}" for name, version in report["versions"].items()]
    lines += [
        f"{'threads':<14} {report['threads']}",
        f"{'memory':<14} {report['available_memory_bytes'] / 1e9:.1f} GB free",
        f"{'device':<14} {report['device']}",
    ]
    lines += [
        f"{'accelerator':<14} {name}, {free / 1e9:.1f} GB free"
        for name, free in report["accelerators"].items()
    ]
    if report["unusable"]:
        lines.append(f"{'idle':<14} {report['unusable']}")
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
