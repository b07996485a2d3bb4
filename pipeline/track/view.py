"""The ready view of a sweep on MLflow's page of runs: its trials grouped by cell, the columns that matter, sections.

MLflow keeps a saved view in a tag of the experiment and shows it under Views. Its format is not documented: it was
read from what the page of MLflow 3.17.2 writes, and `understood` looks whether the installed page still speaks of it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pipeline.config import GROUPS
from pipeline.metrics import PHASES
from pipeline.track.client import store_errors
from pipeline.track.location import Location

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TAG = "mlflow.sharedViewState."
OURS = "slackwater-"
"""Views whose id begins with this are ours to replace and to remove."""
KEPT = 10
"""Sweeps that have a view; the oldest views go, the sweeps stay. One view is 1 to 2 KB."""

_WORDS = (TAG, "deflate;", "viewStateShareKey", "selectedColumns", "compareRunSections", "groupByKeys")
"""What the page's code must contain for a view to be read."""

_TAGS = {"mode": 100, "infer_os": 110, "repetition": 90, "verdict": 75}
"""Tag → width in pixels."""
_METRICS = ("stabilized/tree_rss_mib", "during_generation/tree_rss_peak_mib", "released/tree_rss_mib",
            "decode/tokens_per_s", "stabilized/system_used_pct")
_HEADLINE = (
    ("stabilized/tree_rss_mib", "settled, MiB"),
    ("during_generation/tree_rss_peak_mib", "peak, MiB"),
    ("released/tree_rss_mib", "released, MiB"),
    ("as_found/tree_rss_mib", "old comparison, MiB"),
    ("decode/tokens_per_s", "tokens/s"),
)
_TIMELINES = ("tree_rss_mib", "tree_anon_mib", "tree_file_mib", "tree_shmem_mib", "tree_swap_mib", "system_used_mib",
              "system_available_mib", "system_cached_mib")
_CLOSED = ("as_found", *PHASES, "engine", "plan", "clear", "trial", "sampler")
"""Closed sections, in the order of a trial's life: together they hold 250 charts."""


def view_id(sweep_id: str) -> str:
    """The view's name in its address; the same for the same sweep."""
    return OURS + "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in sweep_id)


def address(root: str, experiment_id: str, sweep_id: str | None) -> str:
    """The page of runs on the server at `root`, in the sweep's view if one is named.

    The plain address of a server opens MLflow's assistant, and without `workflowType` the page for LLM traces."""
    share = f"&viewStateShareKey={quote(view_id(sweep_id))}" if sweep_id else ""
    return f"{root}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{share}"


def understood() -> bool:
    """Does the page of the installed MLflow speak of saved views as they are written here? Reads 5 MB, 10 ms."""
    spec = find_spec("mlflow")
    if spec is None or spec.origin is None:
        return False
    text = "".join(file.read_text(encoding="utf-8", errors="replace") for file in
                   (Path(spec.origin).parent / "server/js/build/static/js").glob("main.*.js"))
    return all(word in text for word in _WORDS)


def envelope(sweep_id: str, plan: Mapping[str, Any], verdicts: Mapping[str, int], at_ms: int) -> str:
    """The tag's value. `plan`: plan.json; `verdicts`: verdict → number of trials; `at_ms`: when the sweep began."""
    packed = base64.b64encode(zlib.compress(json.dumps(state(sweep_id, plan, verdicts)).encode(), 9)).decode()
    return json.dumps({"name": sweep_id, "createdAt": at_ms, "updatedAt": at_ms, "state": f"deflate;{packed}"})


def state(sweep_id: str, plan: Mapping[str, Any], verdicts: Mapping[str, int]) -> dict[str, Any]:
    """What the page is to show, in its own words."""
    selected = {f"tags.`{name}`": width for name, width in _TAGS.items()}
    selected |= {f"params.`{name}`": 8 * len(name) + 25 for name in varied(plan)}
    selected |= {f"metrics.`{name}`": 7 * len(name) + 25 for name in _METRICS}
    longest = max((len(cell["cell"]) for cell in plan.get("cells", ())), default=12)
    widths = {"attributes.`Run Name`": min(150 + 7 * longest, 450), "runDateAndNestInfo": 150, **selected}
    # a mean over valid trials and others would say nothing: where there are others, they are groups of their own
    keys = ["cell", *(["verdict"] if set(verdicts) - {"valid"} else [])]
    charts, sections = _charts()
    return {
        "searchFilter": f"tags.sweep_id = '{sweep_id}' AND tags.kind != 'superseded'",
        "orderByKey": "tags.`mlflow.runName`", "orderByAsc": True,
        "startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
        "selectedColumns": list(selected), "columnOrder": list(widths), "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL" if sum(verdicts.values()) <= 40 else "FIRST_20_RUNS",
        "viewMaximized": False, "runListHidden": False, "isAccordionReordered": True,
        "useGroupedValuesInCharts": False, "hideEmptyCharts": True,
        "groupBy": {"aggregateFunction": "average",
                    "groupByKeys": [{"mode": "tag", "groupByData": key} for key in keys]},
        # runs without a cell: the sweep's own run, where its report is
        "groupsExpanded": {",".join(f"tag.{key}" for key in keys): True},
        "compareRunCharts": charts, "compareRunSections": sections,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def varied(plan: Mapping[str, Any]) -> list[str]:
    """The params that tell the sweep's cells apart, beside mode and flags, which have columns of their own."""
    cells = [dict(override.lstrip("+").split("=", 1) for override in cell.get("overrides", ()) if "=" in override)
             for cell in plan.get("cells", ())]
    keys = [key for key in dict.fromkeys(key for cell in cells for key in cell)
            if len({cell.get(key) for cell in cells}) > 1 and key != "mode" and key.split(".")[0] != "infer_os"]
    return [f"{key}.name" if key in GROUPS else key for key in keys]


def _charts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Charts that we place, and the sections in the order of a trial's life. The page adds all other metrics itself,
    each in the section of its phase."""
    bars = [{"type": "BAR", "uuid": f"headline-{metric}", "metricSectionId": "headline", "metricKey": metric,
             "displayName": name, "runsCountToCompare": 40, "deleted": False, "isGenerated": False}
            for metric, name in _HEADLINE]
    lines = [{"type": "LINE", "uuid": f"timeline-{name}", "metricSectionId": "timeline",
              "metricKey": f"timeline/{name}", "selectedMetricKeys": [f"timeline/{name}"], "displayName": name,
              "runsCountToCompare": 40, "deleted": False, "isGenerated": True, "lineSmoothness": 0,
              "scaleType": "linear", "xAxisScaleType": "linear", "xAxisKey": "time-relative",
              "useGlobalXaxisKey": False, "yAxisKey": "metric", "yAxisExpressions": [], "range": {},
              "ignoreOutliers": False, "useGlobalLineSmoothing": True}
             for name in _TIMELINES]
    shown = {"headline": True, "timeline": True, **dict.fromkeys(_CLOSED, False)}
    sections = [{"uuid": name, "name": name, "display": display, "isReordered": True, "deleted": False,
                 "isGenerated": True} for name, display in shown.items()]
    return [*bars, *lines], sections


def install(location: Location, client: MlflowClient, experiment_id: str, sweep_id: str, plan: Mapping[str, Any],
            verdicts: Mapping[str, int], started_ms: int) -> None:
    """Write the sweep's view; views of ours beyond the KEPT latest go. Raises StoreError."""
    key, value = TAG + view_id(sweep_id), envelope(sweep_id, plan, verdicts, started_ms)
    with store_errors(location, "writing the view for MLflow's page"):
        tags = client.get_experiment(experiment_id).tags
        if tags.get(key) != value:
            client.set_experiment_tag(experiment_id, key, value)
        for name in surplus(tags, key):
            client.delete_experiment_tag(experiment_id, name)


def surplus(tags: Mapping[str, str], newest: str) -> Sequence[str]:
    """The tags of our oldest views, beyond the KEPT latest; `newest` counts as one of these."""
    ours = {key: value for key, value in tags.items() if key.startswith(TAG + OURS) and key != newest}

    def began(key: str) -> float:
        try:
            return float(json.loads(ours[key])["createdAt"])
        except (ValueError, TypeError, KeyError):
            return 0.0

    return sorted(ours, key=began, reverse=True)[KEPT - 1:]
