"""The commands there are, one entry each: help, completion and parsing read it. What a verb does is its `act`."""

from __future__ import annotations

from pipeline.cli.arguments import Flag, Verb
from pipeline.language import N_

JSON = Flag("--json", N_("one JSON document, the same in every language"))
STORE = Flag("--store", N_("another store than the local one"), "URI",
             N_("a URI, such as sqlite:////path/mlflow.db or http://127.0.0.1:5000"))
QUIET = Flag("-q", N_("nothing while it runs"))
VERBOSE = Flag("-v", N_("more before the first trial: store, seed, cell settings"))
DRY_RUN = Flag("--dry-run", N_("what would run, and stop there"))
FRESH = Flag("--fresh", N_("start anew, also if the last sweep like it is unfinished"))
ACCEPT = Flag("--accept-change", N_("go on although a version or the machine changed"))

SWEEP = N_("SWEEP is an id, a prefix that only one sweep has, or last (also without it).")

VERBS = {verb.name: verb for verb in (
    Verb("run", "[OVERRIDES…]", N_("measure: a cell, a sweep, an experiment"), "run_commands:run",
         (DRY_RUN, FRESH, ACCEPT, JSON, QUIET, VERBOSE, Flag("-m", N_("has no effect: every run may sweep")),
          Flag("--multirun", N_("as -m"))),
         more=N_("OVERRIDES are key=value; key=a,b sweeps. What there is to choose from:"), completes="settings",
         passes_on=True),
    Verb("runs", "", N_("what was measured, one line per sweep"), "result_commands:runs", (JSON, STORE)),
    Verb("show", "[SWEEP]", N_("the tables of a sweep"), "result_commands:show", (JSON, STORE), most=1, more=SWEEP,
         completes="sweep"),
    Verb("report", "[SWEEP]", N_("the full report of a sweep as one HTML file"), "result_commands:report",
         (Flag("-o", N_("where to write it; without it SWEEP.html in this folder"), "FILE", N_("a file")), JSON, STORE),
         most=1, more=SWEEP, completes="sweep"),
    Verb("resume", "[SWEEP]", N_("go on with an unfinished sweep"), "run_commands:resume",
         (ACCEPT, JSON, STORE, QUIET, VERBOSE), most=1, more=SWEEP, completes="sweep"),
    Verb("rerun", "[SWEEP|RUN|FILE]", N_("measure it again, as it was logged"), "run_commands:rerun",
         (DRY_RUN, JSON, STORE, QUIET, VERBOSE), most=1, completes="sweep",
         more=N_("A SWEEP (last without it), one cell of it (SWEEP:CELL), one trial (RUN, its\n"
                 "MLflow id), or an exported FILE.")),
    Verb("compare", "A B", N_("what differs between two, and how much"), "result_commands:compare",
         (Flag("--fail-if", N_("exit with 1 if it holds, 3 if undecided; repeatable"), "LIMIT",
               N_('a limit, such as "stabilized/tree_rss_mib > +2%"')),
          Flag("--undecided", N_("whether an undecided limit fails: exit with 3 or 0"), "fail|pass",
               N_("fail or pass")),
          Flag("--allow-different-work", N_("also if they did different work")),
          JSON, STORE), least=2, most=2, completes="sweep",
         more=N_("A and B are each a SWEEP, SWEEP:CELL, a run's MLflow id or an exported FILE.\n"
                 "B is set against A.")),
    Verb("export", "SWEEP FILE", N_("everything of a sweep in one file"), "result_commands:export", (JSON, STORE),
         least=2, most=2, completes="sweep"),
    Verb("import", "FILE", N_("what `export` wrote, into a store"), "result_commands:import_",
         (JSON, STORE), least=1, most=1, completes="file"),
    Verb("sync", "", N_("send results that a store did not take"), "result_commands:sync",
         (Flag("--store", N_("only to this store; needed where its address holds a password"), "URI",
               N_("a URI, such as sqlite:////path/mlflow.db or http://127.0.0.1:5000")),)),
    Verb("doctor", "", N_("this machine: what it can measure, what spoils it"), "machine_commands:doctor", (JSON,)),
    Verb("watch", "PID|NAME|URL", N_("any process by the same meters"), "machine_commands:watch",
         (Flag("--seconds", N_("for how long; without it until Ctrl-C"), "S", N_("a number of seconds above 0")), JSON),
         least=1, most=1),
    Verb("metrics", "[NAME]", N_("what the logged names mean"), "result_commands:metrics", (JSON,), most=1,
         more=N_("NAME is a metric, such as stabilized/tree_rss_mib, or a part of one.")),
    Verb("ui", "[SWEEP]", N_("the MLflow UI, at the view of a sweep"), "result_commands:ui",
         (Flag("--port", N_("another port than 5000"), "N", N_("a port number")),
          Flag("--no-browser", N_("open no browser")), STORE), most=1, more=SWEEP, completes="sweep"),
    Verb("completion", "bash|zsh|fish", N_("the script with which a shell completes all this"),
         "completion:completion", least=1, most=2, completes="bash zsh fish",
         more=N_("bash: source <(slackwater completion bash)   in ~/.bashrc\n"
                 "zsh:  slackwater completion zsh > \"${fpath[1]}/_slackwater\"\n"
                 "fish: slackwater completion fish > ~/.config/fish/completions/slackwater.fish")),
)}
