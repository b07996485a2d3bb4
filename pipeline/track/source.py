"""Runs as they stand in a store, read fast: SQL where the store is a database, MLflow's client elsewhere.

MLflow's own search builds objects at 3 ms a run (10,000 trials: 31 s). The SQL reads its tables `runs`, `tags`,
`params` and `metrics`, whose columns used here have stood since MLflow 1.0; check.py has made sure that the schema
is the installed MLflow's. `python -m tests.bench.scale` measures it. What runs mean is read.py's business.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipeline.track import names
from pipeline.track.check import connect_sqlite, sql_connection
from pipeline.track.client import store_errors
from pipeline.track.location import Location

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TIMELINE = "timeline/"
"""Metrics below this name are charts, not results; they are never read back."""

PARAMS_DIGEST = "params_digest"
"""Tag: SHA-256 of a run's params, which never change. Runs with the same digest are read once."""
CELL_DIGEST = "cell_digest"
"""Tag of a trial: what its cell was resolved to, so that a later sweep finds what the same cell took and needed."""
_PEAK = "during_generation/tree_rss_peak_mib"
_MOST_EARLIER = 200
_MOST_DIGESTS = 500
"""Beyond these, naming the runs in the query is no gain."""


@dataclass
class Run:
    """One run of the store. `metrics`: the last value; `turns`: metric → step → value."""

    run_id: str
    name: str
    status: str
    started_ms: int
    ended_ms: int | None
    artifact_uri: str
    experiment_id: str = ""
    """MLflow's experiment: the page that the run stands on."""
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    turns: dict[str, dict[int, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Earlier:
    """What a trial took and needed: `digest` says of which cell it was. `peak_mib` is None if it was not measured."""

    digest: str
    seconds: float
    peak_mib: float | None


class Source(Protocol):
    """What reading needs of a store. All methods raise StoreError."""

    def runs(self, tags: Mapping[str, str], status: str | None = None, values: bool = True,
             run_id: str | None = None, metrics: Collection[str] | None = None) -> list[Run]:
        """Runs that carry all these tags, in order of their start; without params and metrics if not `values`.

        `run_id`: at most this one; `metrics`: of these only."""

    def series(self, run_id: str) -> Mapping[str, Sequence[tuple[int, float]]]:
        """The charts of a trial: name without TIMELINE → (milliseconds since the trial began, value)."""

    def verdicts(self) -> Mapping[str, Mapping[str, int]]:
        """Sweep id → verdict → number of trials."""

    def earlier(self, digests: Collection[str], host: str) -> Sequence[Earlier]:
        """The latest trials of these cells (tag CELL_DIGEST) that this host has measured, failed ones left out."""


class Nothing:
    """A store that is not there yet."""

    def runs(self, tags: Mapping[str, str], status: str | None = None, values: bool = True,
             run_id: str | None = None, metrics: Collection[str] | None = None) -> list[Run]:
        """None."""
        return []

    def series(self, run_id: str) -> Mapping[str, Sequence[tuple[int, float]]]:
        """None."""
        return {}

    def verdicts(self) -> Mapping[str, Mapping[str, int]]:
        """None."""
        return {}

    def earlier(self, digests: Collection[str], host: str) -> Sequence[Earlier]:
        """None."""
        return []


Answer = TypeVar("Answer")
Query = Callable[[str, Mapping[str, str]], Iterable[Sequence[Any]]]


class SqlSource:
    """A database, read in one transaction per question."""

    def __init__(self, location: Location) -> None:
        self._location = location

    def runs(self, tags: Mapping[str, str], status: str | None = None, values: bool = True,
             run_id: str | None = None, metrics: Collection[str] | None = None) -> list[Run]:
        """See Source."""
        with store_errors(self._location, "being read"):
            dialect = _POSTGRESQL if self._location.database is None else _SQLITE
            return self._ask(lambda query: _read_runs(query, dialect, tags, status, values, run_id, metrics))

    def series(self, run_id: str) -> Mapping[str, Sequence[tuple[int, float]]]:
        """See Source."""
        sql = (f"SELECT key, step, value FROM metrics WHERE run_uuid = :run AND key LIKE '{TIMELINE}%' "
               "ORDER BY key, step")
        found: dict[str, list[tuple[int, float]]] = defaultdict(list)
        with store_errors(self._location, "being read"):
            for key, step, value in self._ask(lambda query: list(query(sql, {"run": run_id}))):
                found[key.removeprefix(TIMELINE)].append((step, value))
        return dict(found)

    def verdicts(self) -> Mapping[str, Mapping[str, int]]:
        """See Source."""
        sql = ("SELECT s.value, v.value, COUNT(*) FROM tags s "
               "JOIN tags k ON k.run_uuid = s.run_uuid AND k.key = 'kind' AND k.value = 'trial' "
               "JOIN tags v ON v.run_uuid = s.run_uuid AND v.key = 'verdict' "
               "JOIN runs r ON r.run_uuid = s.run_uuid AND r.lifecycle_stage = 'active' "
               "WHERE s.key = 'sweep_id' GROUP BY s.value, v.value")
        found: dict[str, dict[str, int]] = defaultdict(dict)
        with store_errors(self._location, "being read"):
            for sweep_id, verdict, count in self._ask(lambda query: list(query(sql, {}))):
                found[sweep_id][verdict] = count
        return found

    def earlier(self, digests: Collection[str], host: str) -> Sequence[Earlier]:
        """See Source. One narrow read: the runs first, then one metric of each."""
        named = {f"d{i}": digest for i, digest in enumerate(digests)}
        sql = ("SELECT t.digest, t.began, t.ended, MAX(m.value) FROM ("
               "SELECT d.run_uuid AS run, d.value AS digest, r.start_time AS began, r.end_time AS ended FROM tags d "
               "JOIN runs r ON r.run_uuid = d.run_uuid AND r.lifecycle_stage = 'active' AND r.end_time IS NOT NULL "
               "JOIN tags v ON v.run_uuid = d.run_uuid AND v.key = 'verdict' AND v.value IN ('valid', 'suspect') "
               "JOIN tags h ON h.run_uuid = d.run_uuid AND h.key = 'host' AND h.value = :host "
               f"WHERE d.key = '{CELL_DIGEST}' AND d.value IN ({', '.join(f':{name}' for name in named)}) "
               f"ORDER BY r.start_time DESC LIMIT {_MOST_EARLIER}) t "
               f"LEFT JOIN metrics m ON m.run_uuid = t.run AND m.key = '{_PEAK}' "
               "GROUP BY t.run, t.digest, t.began, t.ended")
        with store_errors(self._location, "being read"):
            rows = self._ask(lambda query: list(query(sql, {"host": host, **named}))) if named else []
        return [Earlier(digest, (ended - began) / 1000, peak) for digest, began, ended, peak in rows]

    def _ask(self, question: Callable[[Query], Answer]) -> Answer:
        if self._location.database is not None:
            with connect_sqlite(self._location.database) as database:
                database.execute("BEGIN")
                return question(database.execute)
        import sqlalchemy

        with sql_connection(self._location) as connection:
            return question(lambda sql, values: connection.execute(sqlalchemy.text(sql), dict(values)))


@dataclass(frozen=True)
class Dialect:
    """Where SQLite and PostgreSQL part ways."""

    pairs: str
    """All params of a run as one text."""
    not_timeline: tuple[str, ...]


FIELD, RECORD = "\x1f", "\x1e"
"""ASCII's unit and record separators; no key can hold them, and names.py keeps values with them as JSON."""

_SQLITE = Dialect("group_concat(key || char(31) || value, char(30))",
                  (f"key < '{TIMELINE}'", f"key >= '{TIMELINE[:-1]}0'"))
_POSTGRESQL = Dialect("string_agg(key || chr(31) || value, chr(30) ORDER BY key)", (f"key NOT LIKE '{TIMELINE}%'",))


def _read_runs(query: Query, dialect: Dialect, tags: Mapping[str, str], status: str | None, values: bool,
               run_id: str | None, metrics: Collection[str] | None) -> list[Run]:
    joins, where = [], ["r.lifecycle_stage = 'active'"]
    given: dict[str, str] = {}
    for i, (name, value) in enumerate(tags.items()):
        joins.append(f"JOIN tags t{i} ON t{i}.run_uuid = r.run_uuid AND t{i}.key = :k{i} AND t{i}.value = :v{i}")
        given |= {f"k{i}": name, f"v{i}": value}
    if status is not None:
        where.append("r.status = :status")
        given["status"] = status
    if run_id is not None:
        where.append("r.run_uuid = :run_id")
        given["run_id"] = run_id
    chosen = f"FROM runs r {' '.join(joins)} WHERE {' AND '.join(where)}"
    these = f"SELECT r.run_uuid {chosen}"
    columns = "r.run_uuid, r.name, r.status, r.start_time, r.end_time, r.artifact_uri, r.experiment_id"
    runs = {row[0]: Run(row[0], row[1] or "", row[2], row[3] or 0, row[4], row[5] or "", str(row[6]))
            for row in query(f"SELECT {columns} {chosen} ORDER BY r.start_time, r.run_uuid", given)}
    if not runs:
        return []
    for run_id, key, text in query(f"SELECT run_uuid, key, value FROM tags WHERE run_uuid IN ({these})", given):
        runs[run_id].tags[key] = text
    for run in runs.values():
        run.tags = names.whole(run.tags, names.TAG_LIMIT)
    if not values:
        return list(runs.values())
    # Trials of one cell have the same params: a text per run, taken apart once, is six times faster than its rows.
    known: dict[str, dict[str, str]] = {}
    alike: dict[str, list[Run]] = {}
    for run in runs.values():
        alike.setdefault(run.tags.get(PARAMS_DIGEST, run.run_id), []).append(run)
    which, named = these, given
    if len(alike) <= _MOST_DIGESTS:
        named = {f"p{i}": same[0].run_id for i, same in enumerate(alike.values())}
        which = ", ".join(f":{name}" for name in named)
    for run_id, text in query(f"SELECT run_uuid, {dialect.pairs} FROM params WHERE run_uuid IN ({which}) "
                              "GROUP BY run_uuid", named):
        if text not in known:
            params = dict(pair.split(FIELD, 1) for pair in text.split(RECORD))
            known[text] = names.whole(params, names.PARAM_LIMIT)
        for run in alike[runs[run_id].tags.get(PARAMS_DIGEST, run_id)] if named is not given else [runs[run_id]]:
            run.params = known[text]
    # All turns come from `metrics`: joined with `latest_metrics` it took twice as long. Both sides of the timeline are
    # ranges of the index on (run_uuid, key, step), so that its many points are not even read. A few metrics by name
    # come from the primary key (key, timestamp, step, run_uuid, value, is_nan) alone, in a tenth of the time.
    wanted = dialect.not_timeline
    if metrics is not None:
        wanted = (f"key IN ({', '.join(f':m{i}' for i in range(len(metrics)))})",)
        given |= {f"m{i}": name for i, name in enumerate(metrics)}
    for side in wanted:
        points = f"SELECT run_uuid, key, step, value FROM metrics WHERE run_uuid IN ({these}) AND {side}"
        for run_id, key, step, value in query(points, given):
            runs[run_id].turns.setdefault(key, {})[step] = value
    for run in runs.values():
        run.metrics = {key: turns[max(turns)] if len(turns) > 1 else next(iter(turns.values()))
                       for key, turns in run.turns.items()}
    return list(runs.values())


class ClientSource:
    """A tracking server (or a database without a reader of its own), through MLflow's client."""

    PAGE = 1000
    AT_ONCE = 8
    """Requests for the turns of metrics that run at the same time."""

    def __init__(self, location: Location, client: MlflowClient) -> None:
        self._location = location
        self._client = client

    def runs(self, tags: Mapping[str, str], status: str | None = None, values: bool = True,
             run_id: str | None = None, metrics: Collection[str] | None = None) -> list[Run]:
        """See Source."""
        with store_errors(self._location, "being read"):
            runs = [_from_mlflow(found) for found in self._search(tags, status, run_id)]
            if values:
                several = [(run, key) for run in runs for key, steps in run.turns.items()
                           if max(steps) > 1 and (metrics is None or key in metrics)]
                with ThreadPoolExecutor(self.AT_ONCE) as pool:
                    def history(which: tuple[Run, str]) -> list[Any]:
                        return list(self._client.get_metric_history(which[0].run_id, which[1]))

                    for (run, key), points in zip(several, pool.map(history, several), strict=True):
                        run.turns[key] = {point.step: point.value for point in points}
            return sorted(runs, key=lambda run: (run.started_ms, run.run_id))

    def series(self, run_id: str) -> Mapping[str, Sequence[tuple[int, float]]]:
        """See Source."""
        with store_errors(self._location, "being read"):
            keys = [key for key in self._client.get_run(run_id).data.metrics if key.startswith(TIMELINE)]
            return {key.removeprefix(TIMELINE): sorted(
                (point.step, point.value) for point in self._client.get_metric_history(run_id, key)) for key in keys}

    def verdicts(self) -> Mapping[str, Mapping[str, int]]:
        """See Source."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for run in self.runs({"kind": "trial"}, values=False):
            if "verdict" in run.tags:
                found[run.tags.get("sweep_id", "")][run.tags["verdict"]] += 1
        return found

    def earlier(self, digests: Collection[str], host: str) -> Sequence[Earlier]:
        """See Source; a request per cell, so of a large sweep's cells the first few speak for the others."""
        found = []
        with store_errors(self._location, "being read"):
            everywhere = [each.experiment_id for each in self._client.search_experiments(max_results=self.PAGE)]
            for digest in list(digests)[:self.AT_ONCE]:
                runs = self._client.search_runs(
                    everywhere, f"tags.{CELL_DIGEST} = '{digest}' AND tags.host = '{host}'", max_results=self.AT_ONCE,
                    order_by=["attributes.start_time DESC"])
                found += [Earlier(digest, (run.info.end_time - run.info.start_time) / 1000, run.data.metrics.get(_PEAK))
                          for run in runs if run.info.end_time and run.data.tags.get("verdict") in ("valid", "suspect")]
        return found

    def _search(self, tags: Mapping[str, str], status: str | None, run_id: str | None) -> list[Any]:
        terms = [f"tags.`{name}` = '{value}'" for name, value in tags.items()]
        if status is not None:
            terms.append(f"attributes.status = '{status}'")
        if run_id is not None:
            terms.append(f"attributes.run_id = '{run_id}'")
        everywhere = [experiment.experiment_id for experiment in self._client.search_experiments(max_results=self.PAGE)]
        found: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(everywhere, " AND ".join(terms), max_results=self.PAGE, page_token=token)
            found += page
            token = page.token
            if not token:
                return found


def _from_mlflow(found: Any) -> Run:
    info, data = found.info, found.data
    run = Run(info.run_id, info.run_name or "", info.status, info.start_time or 0, info.end_time, info.artifact_uri,
              info.experiment_id, names.whole(data.tags, names.TAG_LIMIT), names.whole(data.params, names.PARAM_LIMIT))
    for metric in data._metric_objs:
        if not metric.key.startswith(TIMELINE):
            run.metrics[metric.key] = metric.value
            run.turns[metric.key] = {metric.step: metric.value}
    return run
