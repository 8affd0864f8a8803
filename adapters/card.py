"""The model card of a saved adapter, in the form that the Hub reads."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from arr_coc.adapters.base import Base
from arr_coc.adapters.structure import Inspection
from arr_coc.learner import Learner

CARD, PICTURE = "README.md", "relevance.png"
_TASKS = {"dual": "zero-shot-image-classification", "generative": "image-text-to-text"}
_TEMPLATE = """---
{{ card_data }}
---

# An arr-coc adapter for {{ base.architecture }}

It was attached to a frozen model{% if base.name %} ({{ base.name }}){% endif %} and learned online, in one \
pass, without a step of backpropagation through the model.

```python
from arr_coc import ArrCocModel

attached = ArrCocModel.from_pretrained(model, "{{ where }}", processor)
```

| adapter | samples learned | classes or answer tokens | rule |
|---|---:|---:|---|
{% for name, one in adapters.items() -%}
| {{ name }} | {{ one.samples }} | {{ one.classes }} | {{ one.config.rule }} |
{% endfor %}
{%- if picture %}
![Relevance]({{ picture }})
{% endif %}
{%- if metrics %}
## Metrics

| metric | value |
|---|---:|
{% for name, value in metrics.items() -%}
| {{ name }} | {{ value }} |
{% endfor %}{% endif %}
## What is read from the model

```
{{ inspection }}
```
{% for name, one in adapters.items() %}
## {{ name }}

What the rule `{{ one.config.rule }}` needs to know that a synapse does not have at hand: {{ one.needs }}.

```json
{{ one.json }}
```
{% endfor %}"""


@dataclass(frozen=True)
class Told:
    """What a card tells besides what the adapters know themselves.

    Args:
        base: what they were made on.
        inspection: what is read from it.
        where: the repo or folder that they are loaded from.
        metrics: values by name, or the Hub's own records, which also go into the card's metadata.
        picture: of relevance: a path to a PNG, or a PIL image.
    """

    base: Base
    inspection: Inspection
    where: str
    metrics: Mapping[str, float] | Sequence[EvalResult] | None = None
    picture: Any = None

    def __post_init__(self) -> None:
        if self.picture is not None and not hasattr(self.picture, "save"):
            path = Path(self.picture)
            if not path.is_file() or path.suffix.lower() != ".png":
                raise FileNotFoundError(f"the picture {path} is no PNG file")
        results = self.metrics if not isinstance(self.metrics, Mapping) else []
        for one in results or []:
            if not isinstance(one, EvalResult):
                raise TypeError(f"a metric is {one!r}; values by name or EvalResult records are needed")


def write(folder: Path, adapters: Mapping[str, Learner], told: Told) -> None:
    """Write README.md, and the picture beside it where there is one."""
    results = None if told.metrics is None or isinstance(told.metrics, Mapping) else list(told.metrics)
    data = ModelCardData(
        base_model=_repo(told.base.name),
        library_name="arr-coc",
        pipeline_tag=_TASKS[told.inspection.kind],
        tags=["arr-coc", "continual-learning", "online-learning", "vision-language", "adapter"],
        model_name=told.where if results else None,
        eval_results=results,
    )
    if told.picture is not None:
        _put(told.picture, folder / PICTURE)
    made = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        base=told.base,
        where=told.where,
        inspection=str(told.inspection),
        picture=PICTURE if told.picture is not None else "",
        metrics=_values(told.metrics),
        adapters={name: _about(learner) for name, learner in adapters.items()},
    )
    (folder / CARD).write_text(made.content, encoding="utf-8")


def _about(learner: Learner) -> dict[str, Any]:
    ledger = asdict(learner.rule.ledger)
    needs = [name.replace("_", " ") for name, needed in ledger.items() if needed]
    return {
        "samples": int(learner.step),
        "classes": len(learner.classes),
        "config": learner.config,
        "json": json.dumps(json.loads(learner.config.to_json()), indent=2),
        "needs": ", ".join(needs) or "nothing",
    }


def _values(metrics: Mapping[str, float] | Sequence[EvalResult] | None) -> dict[str, Any]:
    if metrics is None or isinstance(metrics, Mapping):
        return dict(metrics or {})
    return {f"{one.metric_name or one.metric_type} ({one.dataset_name})": one.metric_value for one in metrics}


def _repo(name: str) -> str | None:
    """The name if it may be a repo of the Hub, with its owner; a card with another one is refused there."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if "/" in name else None


def _put(picture: Any, target: Path) -> None:
    if hasattr(picture, "save"):
        picture.save(target, format="PNG")
    else:
        shutil.copyfile(picture, target)
