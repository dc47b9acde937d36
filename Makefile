# make demo and make test create .venv if it does not exist. PYTHON= chooses the interpreter.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install --disable-pip-version-check
# Stamps of two installations: of what the programs need, and of what tests and lint need.
BASE := $(VENV)/.base
DEV := $(VENV)/.dev
# Number of test processes. Each needs about 1 GB.
JOBS ?= 2
# Tests that depend on rounding. `make test-other-cpu` runs them as on an old CPU.
NUMERIC := tests/modeling tests/test_traps.py

# Waiting threads must not spin, which slows down machines with few cores.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: bench-smoke demo docs figures test test-other-cpu test-slow lint format build audit setup clean

demo: $(BASE)
	$(VENV)/bin/detr-panoptic demo

# The pictures of README.md (in 256 colors) and docs/architecture.md, from the model of `make demo`.
figures: $(BASE)
	$(VENV)/bin/detr-panoptic explain --weights output/demo/model_final.pth \
		--input docs/images/shapes_1.png --output output/explained
	cp output/explained/*.png docs/images/
	$(RUN) -c 'from PIL import Image; \
		Image.open("output/demo/ground_truth_and_prediction.png").quantize(256).save("docs/images/demo.png")'

docs: $(BASE)
	$(PIP) --quiet -e '.[docs]'
	$(RUN) -m mkdocs build --strict

test: $(DEV)
	$(RUN) -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

# Numeric tests without AVX and with one thread.
test-other-cpu: $(DEV)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 \
		$(RUN) -m pytest -n $(JOBS) --dist worksteal $(NUMERIC)

test-slow: $(DEV)
	$(RUN) -m pytest -m slow $(PYTEST_ARGS)

# Compares ratios of time and memory with those in the repository, in a minute. It never fails.
bench-smoke: $(BASE)
	$(RUN) -W ignore tools/benchmark --config-file detr_panoptic_R50.yaml --device cpu --cpu-time \
		--compare tools/benchmark/smoke.json \
		--then --work inference --size 480x640 --kept 15,100 --repeats 5 \
		--then --work training --size 256x320 --repeats 3

lint: $(DEV)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(RUN) -m mypy

format: $(DEV)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

build: $(DEV)
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*

# Lists known vulnerabilities of the installed packages; needs data of pypi.org (docs/install.md).
audit: $(DEV)
	$(RUN) -m pip freeze --all --exclude-editable --exclude detectron2 > $(VENV)/audited.txt
	$(RUN) -m pip_audit --strict --no-deps --disable-pip -r $(VENV)/audited.txt

setup: $(DEV)

# Stamps are written last, so that an interrupted set-up continues.
$(BASE): pyproject.toml setup.py tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else \
	"detr_panoptic_d2 needs Python 3.10 or newer; $(PYTHON) is %d.%d. Choose one: make PYTHON=python3.11" % v[:2])'
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e .
	$(RUN) tools/install_detectron2.py
	@touch $@

$(DEV): $(BASE)
	$(PIP) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
