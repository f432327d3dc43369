# make demo   train, build an engine and stream a video, all on generated data; DATA=, VIDEO= and TRUTH= take your own,
#             MINUTES= trains longer
# make fuzz   fuzz what reads untrusted input, SECONDS= each (60)
# make sbom   build/medisseg.cdx.json: every installed package, as CycloneDX
# make constraints   pins and hashes anew after a change of pyproject.toml; UPGRADE=--upgrade takes the newest versions
# make test   the whole test suite
# make lint   ruff and mypy
# make triton the real Triton Inference Server for the tests, in an environment of its own (74 MB to fetch)
PYTHON  ?= python3
VENV    ?= .venv
OUT     ?= runs/demo
DATA    ?=
VIDEO   ?=
TRUTH   ?=
MINUTES ?=
TESTS   ?= $(filter-out tests/__pycache__/,$(wildcard tests/*/)) "$(wildcard tests/test_*.py)"
READY   := $(VENV)/ready
BIN     := $(VENV)/bin
PINNED  := constraints.txt requirements.lock tools/build-requirements.lock

.PHONY: demo test lint setup triton fuzz sbom constraints clean
.DEFAULT_GOAL := demo

demo: setup
	@$(BIN)/python deploy/demo.py --out "$(OUT)" $(if $(DATA),--data "$(DATA)") $(if $(VIDEO),--video "$(VIDEO)") \
	  $(if $(TRUTH),--truth "$(TRUTH)") $(if $(MINUTES),--minutes "$(MINUTES)")

test: setup
	@$(BIN)/python tools/run_tests.py $(TESTS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

fuzz: setup
	@$(BIN)/python -c "import atheris" 2>/dev/null || $(HASHED) --requirement tools/fuzz-requirements.lock
	@$(BIN)/python tests/fuzz/run.py --seconds $(or $(SECONDS),60) $(FUZZ)

sbom: setup
	@bash tools/sbom.sh "$(VENV)" build/medisseg.cdx.json

setup: $(READY)

$(READY): $(PINNED) pyproject.toml setup.py CMakeLists.txt tools/setup.sh $(wildcard kernels/csrc/*)
	@bash tools/setup.sh "$(PYTHON)" "$(VENV)"

triton: .triton/ready

.triton/ready: $(READY) tools/triton_server.sh
	@bash tools/triton_server.sh "$(VENV)" .triton

HASHED := $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps
LOCK   := $(BIN)/uv pip compile -q --universal --python-version 3.10 --no-annotate \
  --custom-compile-command "make constraints"

constraints:
	@$(BIN)/pip install -q uv && $(LOCK) $(UPGRADE) pyproject.toml --extra dev tools/build-requirements.txt -o constraints.txt
	@grep -v '^torch==\|^nvidia-\|^cuda-' constraints.txt | $(LOCK) --no-deps --generate-hashes - -o requirements.lock
	@for what in build fuzz sbom; do $(LOCK) --generate-hashes --constraint constraints.txt \
	  tools/$$what-requirements.txt -o tools/$$what-requirements.lock || exit 1; done

clean:
	@rm -rf "$(VENV)" .triton build runs/demo
