# The course's commands; `make` alone lists them. Works with GNU make 3.81 (macOS) and later.
#
#   PYTHON       the Python that makes .venv                     make test PYTHON=python3.12
#   TORCH_INDEX  take torch from this index (the CPU build)      make lab TORCH_INDEX=<url>
#   LAB_FLAGS    more flags for JupyterLab                       make lab LAB_FLAGS=--no-browser
#   WORKERS      how many notebooks are tested at once           make test WORKERS=1
#   TESTS        what is tested                                  make test TESTS=nbs/toolkit
PYTHON      ?=
TORCH_INDEX ?=
LAB_FLAGS   ?=
LAB_PAGE    ?= nbs/index.ipynb
WORKERS     ?= 2
TESTS       ?= nbs tests
PORT        ?= 8000
BIN         := .venv/bin
# Relative, so that a checkout whose path holds spaces works; exported, so that `!python` in a notebook is this one.
WITH_VENV   := PATH="$$PWD/$(BIN):$$PATH" PYDEVD_DISABLE_FILE_VALIDATION=1

.DEFAULT_GOAL := help
.PHONY: help setup lab test site preview bench run export clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile
	@echo "More in the comment at the head of Makefile and in CONTRIBUTING.md."

setup: ## create .venv with the pinned versions (the other commands do this themselves)
	@PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" sh tools/setup.sh

lab: setup ## open JupyterLab on the course's first page
	@$(WITH_VENV) $(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 --ServerApp.root_dir="$$PWD" \
	  --LabApp.default_url=/lab/tree/$(LAB_PAGE) $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB_FLAGS)

test: setup ## run every notebook and every test
	@$(WITH_VENV) $(BIN)/python -m pytest --nbval --nbval-current-env -q -n $(WORKERS) --dist loadfile $(TESTS)

site: setup ## build the documentation site into _docs and check its links
	@$(WITH_VENV) $(BIN)/python tools/build_site.py
	@$(BIN)/python tools/check_links.py _docs

preview: ## serve _docs on 127.0.0.1:8000 (PORT=... for another)
	@test -f _docs/index.html || { echo "There is no site yet: make site"; exit 1; }
	@echo "http://127.0.0.1:$(PORT)/ (Ctrl-C stops)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _docs

bench: setup ## run the benchmarks that need no download
	@$(WITH_VENV) $(BIN)/python benchmarks/run.py

run: setup ## run one notebook, save its outputs, clean and export it: make run NB=nbs/...
	@test -f "$(NB)" || { echo "Which notebook? make run NB=nbs/stage1_attention/01_scores.ipynb"; exit 1; }
	@$(WITH_VENV) $(BIN)/python tools/run_notebook.py "$(NB)"

export: setup ## write every notebook's module into stage_modules and clean the notebooks
	@$(WITH_VENV) $(BIN)/nbdev_export
	@$(WITH_VENV) $(BIN)/nbdev_clean

clean: ## remove what the commands built, but not .venv
	rm -rf _docs _proc build dist .pytest_cache .hypothesis .ruff_cache runs .work
