"""`graftlm.check`: what a model would learn from rows, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

from graftlm.api.rows import Rows
from graftlm.config import DataConfig, RunConfig
from graftlm.data import Encoder, load_examples
from graftlm.data.audit.audit import Audit, audit
from graftlm.data.audit.fits import limits_of
from graftlm.data.examples import split
from graftlm.data.new_tokens import add_tokens
from graftlm.models import load_tokenizer, resolve
from graftlm.training.data_checks import marker_findings, model_config_in
from graftlm.training.new_tokens import longer_config, with_rows_of

__all__ = ["check"]


def check(
    data: Rows,
    model: str | Path,
    *,
    eval_data: Rows | None = None,
    config: DataConfig | None = None,
    samples: int = 3,
) -> Audit:
    """Examine rows as `graftlm check` does. Nothing is trained and no weight is read.

    Args:
        data: the rows to train on.
        model: the model that will be trained.
        eval_data: the rows to measure on, to find those that are in both.
        config: how rows become tokens.
        samples: rows to show in the result.

    Returns:
        The audit: ``ok``, ``findings`` (the worst first), counts, lengths and samples.

    Raises:
        DataError: the rows cannot be read at all.
        ModelError: the model cannot be found.
    """
    config = config or DataConfig()
    folder, tokenizer = resolve(str(model)).path, load_tokenizer(str(model))
    lora = with_rows_of(RunConfig(), add_tokens(tokenizer, config.new_tokens)).lora
    encoder = Encoder(tokenizer, config)
    examples = load_examples(data, tokenizer, config, strict=False)
    held = None
    if eval_data is not None:
        held = load_examples(eval_data, tokenizer, config, strict=False, purpose="eval")
    elif config.eval_fraction:
        examples, held = split(examples, config.eval_fraction)
    return audit(
        examples,
        encoder,
        config,
        eval_examples=held,
        limits=limits_of(longer_config(model_config_in(folder), lora)),
        more=marker_findings(folder, encoder.format) if examples.report.kinds["chat"] else (),
        samples=samples,
    )
