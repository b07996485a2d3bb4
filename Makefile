# The two commands are `make run` and `make test`; `make` alone lists the rest.
# Every target sets up first what it needs, and the second call finds it there. Only relative names are used, so
# that a checkout may stand at a path with spaces and `make -C CHECKOUT run` works.

.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -euc
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
UV_VERSION := 0.13.9
LOCK_OPTIONS ?=

# A user's pip settings (mirror, certificate, proxy) hold here too, except for what would break a virtual environment.
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

# An environment knows its own path: one that was moved, or has lost its Python, is made again.
ifneq ($(shell $(PY) -c pass 2>/dev/null && cat $(READY) 2>/dev/null),$(CURDIR))
.PHONY: $(READY)
endif

.PHONY: help setup run test check bench ui docs picture lock clean

help: ## this list
	@printf 'slackwater: honest memory experiments for local LLM servers\n\n'
	sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' Makefile | expand -t 16

setup: $(READY) ## make .venv from requirements.lock (the other targets do it by themselves)

run: $(READY) ## compare the modes and infer_os off/on on a real model: experiments/mode_gap.yaml
	@$(PY) -m pipeline run experiment=mode_gap

test: $(READY) ## the tests (the long ones too where CI or SLACKWATER_TEST_ALL is set)
	@$(PY) -m pytest

check: $(READY) ## ruff, mypy --strict, import-linter, whether the lock satisfies pyproject.toml; untranslated texts
	@$(PY) -m ruff check
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m pip check
	$(PY) -m tests.untranslated

bench: $(READY) ## the numbers the project promises (overhead, settling, start-up); wants a quiet machine
	@$(PY) -m tests.bench $(BENCH)

ui: $(READY) ## the MLflow UI on the local store, on this machine only
	@$(PY) -m pipeline ui

docs: $(VENV)/.docs ## the documentation as a site: build/docs/index.html
	@$(PY) -m sphinx -q -W --keep-going -E -b html -d build/doctrees docs build/docs
	printf 'make: build/docs/index.html\n'

$(VENV)/.docs: docs/requirements.lock $(READY)
	@printf 'Sphinx, MyST and Furo, as locked in docs/requirements.lock\n'
	$(PY) -m pip install -q --require-hashes --no-deps --no-build-isolation --no-compile -r $<
	touch $@

SWEEP ?= last
picture: $(READY) ## remake README's picture: the first screen of the report on SWEEP=last, by chromium
	@mkdir -p build
	$(PY) -m pipeline report $(SWEEP) -o build/picture.html
	chromium --headless --disable-gpu --hide-scrollbars --window-size=1120,905 --force-device-scale-factor=1.5 \
	    $(if $(filter 0,$(shell id -u)),--no-sandbox) --screenshot=build/picture.png "file://$$PWD/build/picture.html" 2>/dev/null
	$(PY) -c 'from PIL import Image; Image.open("build/picture.png").convert("RGB").quantize(256, method=1, kmeans=2, dither=0).save("docs/static/report.png", optimize=True)'

# pip says all it has to say into the log; the user sees a line per step, and a counter on a terminal.
$(READY): requirements.lock pyproject.toml
	@log=$(VENV)/setup.log
	stop() { printf 'make: %s\n' "$$*" >&2; exit 1; }
	failed() { tail -n 15 $$log >&2; stop "set-up stopped at: $$1. All that was said is in $$log; \`make setup\` tries again."; }
	[ "$$(uname -s)" = Linux ] || stop "slackwater runs on Linux only for now, and this is $$(uname -s)."
	modern='import sys; sys.exit(sys.version_info < (3, 11))'
	python=
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.11 python3.12 python3.13 python3.14); do
	    if "$$candidate" -c "$$modern" 2>/dev/null; then python=$$candidate; break; fi
	done
	[ "$$python" ] || stop "Python 3.11 or newer is needed, and $(or $(PYTHON),python3) is not (found: $$($(or $(PYTHON),python3) --version 2>&1 || true)). Name one: make PYTHON=/path/to/python3.12 $(or $(firstword $(MAKECMDGOALS)),run)"
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || stop "$$python has no venv module (Debian and Ubuntu: apt install python3-venv)."
	fits='import platform, sys; libc, version = platform.libc_ver(); version = version.partition(".")[2]; \
	    sys.exit(libc != "glibc" or int(version or 0) < 28 or platform.machine() not in ("x86_64", "aarch64"))'
	"$$python" -c "$$fits" || stop "the locked packages come for glibc 2.28 or newer on x86-64 and ARM64, and $$python is for $$("$$python" -c 'import platform; print(*platform.libc_ver(), platform.machine())'). Take the Python of such a system, or a container of one."
	state=$$($(PY) -c pass 2>/dev/null && cat $(READY) 2>/dev/null) || state=
	rm -f $(READY)
	if [ "$$state" = "$$(pwd -P)" ]; then
	    printf '[1/6] .venv: bringing it up to requirements.lock\n'
	else
	    printf '[1/6] .venv: a new environment with %s\n' "$$("$$python" --version)"
	    "$$python" -m venv --clear $(VENV) || stop "$$python could not make $(VENV) (its words are above)."
	fi
	: > $$log
	pip="$(PY) -m pip install --require-hashes --no-deps --no-compile --progress-bar off"
	printf '[2/6] pip and setuptools, as locked\n'
	awk '/^[a-z]/ { keep = /^(pip|setuptools)==/ } keep' requirements.lock > $(VENV)/tools.txt
	$$pip -r $(VENV)/tools.txt >> $$log 2>&1 || failed 'pip and setuptools'
	total=$$(grep -c '^[a-z]' requirements.lock)
	printf '[3/6] %s locked packages: 250 MB to fetch, 0.9 GB on disk, half a minute or more\n' "$$total"
	{ $$pip --no-build-isolation -r requirements.lock 2>&1 && echo done; } | {
	    n=0; last=
	    while IFS= read -r line; do
	        last=$$line
	        printf '%s\n' "$$line" >> $$log
	        case $$line in
	        'Collecting '* | 'Requirement already satisfied'*) n=$$((n + 1))
	            if [ -t 1 ]; then printf '\r      found %s of %s ' $$n "$$total"
	            elif [ $$((n % 25)) = 0 ]; then printf '      found %s of %s\n' $$n "$$total"; fi ;;
	        'Installing collected'*)
	            if [ -t 1 ]; then printf '\r'; fi; printf '      unpacking them          \n' ;;
	        esac
	    done
	    [ "$$last" = done ]
	} || failed 'the locked packages'
	printf '[4/6] slackwater itself, from this folder\n'
	$(PY) -m pip install --no-deps --no-index --no-build-isolation --no-compile -e . >> $$log 2>&1 || failed 'slackwater itself'
	printf '[5/6] compiling it all, so that commands start fast\n'
	# on all cores, which pip does not; without it, and where PYTHONDONTWRITEBYTECODE is set, MLflow takes 7 s to import
	for jobs in 0 1; do  # where /dev/shm is missing there are no processes beside this one
	    $(PY) -m compileall -q -j $$jobs -x '/(tests?|sklearn|databricks|setuptools|fontTools|mypyc)/' \
	        $(VENV)/lib pipeline >> $$log 2>&1 && break || printf "some files do not compile\n" >> $$log
	done
	printf '[6/6] starting the engine once, without a model\n'
	$(PY) -m pipeline.engine.llamacpp_available || stop 'set-up stopped at: the engine (what it lacks is above). \`make setup\` tries again.'
	pwd -P > $(READY)

lock: ## write requirements.lock again from pyproject.toml (LOCK_OPTIONS=--upgrade for newer versions)
	@tmp=$$(mktemp -d)
	trap 'rm -rf "$$tmp"' EXIT
	$(or $(PYTHON),python3) -m venv "$$tmp"
	"$$tmp/bin/python" -m pip install -q "uv==$(UV_VERSION)"
	lock() {
	    "$$tmp/bin/python" -m uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	        --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' -q $(LOCK_OPTIONS) "$$@"
	}
	lock --extra dev -o requirements.lock
	# what only `make docs` and marked tests need, at versions that go with the rest
	lock --extra dev --extra docs -c requirements.lock -o docs/requirements.lock
	lock --extra dev --extra services -c requirements.lock -o tests/requirements.lock
	! grep -n '://' requirements.lock docs/requirements.lock tests/requirements.lock || \
	    { echo 'make: a lock names a host; see above' >&2; exit 1; }

clean: ## remove .venv, caches and build outputs; results in mlruns/ stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find conf experiments pipeline tests -name __pycache__ -type d -prune -exec rm -rf {} +
