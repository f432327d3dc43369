# make demo   train, build an engine and stream a video, all on generated data; DATA=, VIDEO= and TRUTH= take your own,
#             MINUTES= trains longer
# make test   the whole test suite
# make lint   ruff and mypy
PYTHON  ?= python3
VENV    ?= .venv
OUT     ?= runs/demo
DATA    ?=
VIDEO   ?=
TRUTH   ?=
MINUTES ?=
TESTS   ?= tests
READY   := $(VENV)/ready
BIN     := $(VENV)/bin

.PHONY: demo test lint setup constraints clean
.DEFAULT_GOAL := demo

demo: setup
	@$(BIN)/python deploy/demo.py --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(VIDEO),--video "$(VIDEO)") \
	  $(if $(TRUTH),--truth "$(TRUTH)") $(if $(MINUTES),--minutes "$(MINUTES)")

test: setup
	@$(BIN)/python -m pytest $(TESTS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

setup: $(READY)

$(READY): constraints.txt pyproject.toml setup.py CMakeLists.txt tools/setup.sh $(wildcard kernels/csrc/*)
	@bash tools/setup.sh "$(PYTHON)" "$(VENV)"

constraints:
	@$(BIN)/pip install -q uv && $(BIN)/uv pip compile -q --universal --python-version 3.10 --upgrade \
	  pyproject.toml --extra dev tools/build-requirements.txt --no-annotate \
	  --custom-compile-command "make constraints" -o constraints.txt

clean:
	@rm -rf "$(VENV)" build runs/demo
