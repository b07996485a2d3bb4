"""What a trial was given to work on, as MLflow's dataset: the prompts, by name and digest.

Weights are no dataset, and no model of MLflow's either (it has not logged them and does not hold them): they are the
tags `model` and `model_digest`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

CONTEXT = "prompts"
"""What MLflow shows behind the dataset's name."""


def prompts_of(params: Mapping[str, Any], tags: Mapping[str, str]) -> tuple[str, str, int] | None:
    """Name, digest (sha256, 12 digits) and number of the texts that a config's prompts come from, template included.

    Of a file, and of words cut to a length, the digest is of the prompts as they were sent; they stand whole in
    response.txt, as do those that a person typed, which are no dataset (None)."""
    language, typed = params.get("prompt.language"), params.get("mode.source") == "stdin"
    given, sent = params.get("prompt.text"), tags.get("prompt_digest", "")[:12]
    if sent and not typed and not given:
        turns = int(params.get("mode.turns") or 1) if params.get("prompt.distinct") else 1
        if params.get("prompt.file"):
            return f"{Path(str(params['prompt.file'])).name} ({language})", sent, 1
        if params.get("prompt.tokens"):
            return f"{params['prompt.tokens']} tokens ({language})", sent, turns
        if params.get("prompt.fill"):
            share = f"{100 * float(params['prompt.fill']):g} % of {params.get('num_ctx')}"
            return f"{share} tokens ({language})", sent, turns
    texts = [given] if given else params.get(f"prompt.texts.{language}")
    if typed or not texts:
        return None
    name = "one text" if given else str(params.get("prompt.name"))
    whole = json.dumps([texts, params.get(f"prompt.templates.{language}")], ensure_ascii=False)
    return f"{name} ({language})", hashlib.sha256(whole.encode()).hexdigest()[:12], len(texts)


def dataset(params: Mapping[str, Any], tags: Mapping[str, str]) -> DatasetInput | None:
    """The prompts in MLflow's words; None where there is nothing to say."""
    found = prompts_of(params, tags)
    if found is None:
        return None
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name, digest, count = found
    source = {"config": "conf/prompt", "name": params.get("prompt.name"), "language": params.get("prompt.language"),
              **{key: params[f"prompt.{key}"] for key in ("file", "tokens", "fill") if params.get(f"prompt.{key}")}}
    return DatasetInput(Dataset(name, digest, "slackwater", json.dumps(source), None, json.dumps({"num_rows": count})),
                        [InputTag("mlflow.data.context", CONTEXT)])
