"""Writes a model's config.json so that other releases of transformers read it as the base's.

transformers 5 renames settings when it saves them: it writes `rope_parameters` where transformers 4
looks for `rope_theta` and, not finding it, silently takes 10,000. Therefore the base's own file is
kept, and only the settings that were changed are changed in it. The result must mean to the
installed transformers exactly what the model has; otherwise, and for a model that was read from no
folder, the file is as transformers writes it, with the earlier names of its settings besides.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm._compat.base_name import BASE_NAME
from graftlm.files import write_json
from graftlm.models.base_files import folder_read

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["restore_base_files", "write_config"]

Json = dict[str, Any]
_CONFIG, _GENERATION = "config.json", "generation_config.json"
_OF_THE_WRITER = ("transformers_version", BASE_NAME, "auto_map")
"""Settings that say who wrote a file and not what the model is."""
_EARLIER_ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_EARLIER_NAMES = {"dtype": "torch_dtype"}


def restore_base_files(model: PreTrainedModel, folder: Path) -> None:
    """Put the base's own config.json, and what lies beside it, into a folder transformers wrote.

    Args:
        model: the model that was saved.
        folder: the files that `save_pretrained` wrote.
    """
    source = folder_read(model)
    written = _json_in(folder / _CONFIG)
    edited = None if source is None else _edited(model.config, source)
    for candidate in (edited, written):
        if candidate is not None and _means(with_earlier_names(candidate), model.config):
            write_config(folder, candidate, source)
            break
    if source is not None and _same_generation(model, source):
        shutil.copyfile(source / _GENERATION, folder / _GENERATION)


def write_config(folder: Path, config: Json, source: Path | None) -> None:
    """Write config.json with the earlier names, or copy the file of ``source`` if that is equal."""
    config = with_earlier_names(config)
    if source is not None and config == _json_in(source / _CONFIG):
        shutil.copyfile(source / _CONFIG, folder / _CONFIG)
    else:
        write_json(folder / _CONFIG, config)


def with_earlier_names(config: Json) -> Json:
    """``config`` with `rope_theta` and `rope_scaling` beside the `rope_parameters` they are of."""
    config = {
        name: with_earlier_names(value)
        if isinstance(value, dict) and "model_type" in value
        else value
        for name, value in config.items()
    }
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or "rope_theta" in config:
        return config
    sets = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    if any(one.get("rope_type", "default") not in _EARLIER_ROPES for one in sets):
        return config  # transformers 4 has no such model, and 5 reads the earlier names otherwise
    kinds = {name for name, value in parameters.items() if isinstance(value, dict)}
    local: Json = {}
    if kinds:  # one set of parameters for each kind of layer, as in Gemma 3
        if kinds != {"full_attention", "sliding_attention"}:
            return config
        local = {"rope_local_base_freq": parameters["sliding_attention"].get("rope_theta")}
        parameters = parameters["full_attention"]
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    if scaling.get("rope_type", "default") == "default":
        scaling = {}
    local |= {"rope_theta": parameters.get("rope_theta")}
    return config | local | ({"rope_scaling": scaling} if scaling else {})


def _edited(config: PretrainedConfig, source: Path) -> Json | None:
    """The base's own settings with what ``config`` has otherwise; ``None`` for another model."""
    own = _json_in(source / _CONFIG)
    if own.get("model_type") != config.model_type:
        return None
    read = type(config).from_pretrained(source, local_files_only=True)
    return _changed(own, _plain(read), _plain(config))


def _changed(own: Json, before: Json, now: Json) -> Json:
    """``own`` with the settings in which ``now`` differs from ``before``."""
    result = copy.deepcopy(own)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name) or name in _OF_THE_WRITER:
            continue
        earlier = _EARLIER_NAMES.get(name, name)
        place = earlier if earlier in result else name
        if isinstance(own.get(name), dict) and isinstance(now.get(name), dict):
            result[name] = _changed(own[name], before.get(name) or {}, now[name])
        elif name in now:
            result[place] = now[name]
        else:
            result.pop(place, None)
    return result


def _means(candidate: Json, config: PretrainedConfig) -> bool:
    """Whether the installed transformers reads ``candidate`` as ``config``."""
    with tempfile.TemporaryDirectory() as name:
        write_json(Path(name) / _CONFIG, candidate)
        try:
            read = type(config).from_pretrained(name, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError):
            return False
    return _plain(read) == _plain(config)


def _same_generation(model: PreTrainedModel, source: Path) -> bool:
    from transformers import GenerationConfig

    if model.generation_config is None or not (source / _GENERATION).is_file():
        return False
    known = GenerationConfig.from_pretrained(source)
    return _plain(known) == _plain(model.generation_config)


def _json_in(file: Path) -> Json:
    said: Json = json.loads(file.read_text(encoding="utf-8"))
    return said


def _plain(config: Any) -> Json:
    """Every setting, as JSON has it, without those of the writer."""
    said: Json = json.loads(json.dumps(config.to_dict(), default=str))
    return _without_writer(said)


def _without_writer(said: Json) -> Json:
    return {
        name: _without_writer(value) if isinstance(value, dict) else value
        for name, value in said.items()
        if name not in _OF_THE_WRITER
    }
