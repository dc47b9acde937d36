# make demo, make test: each makes .venv first when it is not there. PYTHON= chooses the interpreter.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# Threads that wait must not spin: on two cores they cost more than they help.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo docs figures test test-slow lint format audit setup clean

demo: $(READY)
	$(RUN) tools/demo.py

# The figures of docs/architecture.md, from the model that `make demo` trained.
figures: $(READY)
	$(RUN) tools/explain.py --config-file shapes/detr_panoptic_shapes.yaml \
		--input docs/images/shapes_1.png docs/images/shapes_2.png --points 52,62 34,20 \
		--output output/explained MODEL.WEIGHTS output/demo/model_final.pth
	find output/explained -name '*.png' ! -name '*_2.png' -exec cp {} docs/images/ \;

docs: $(READY)
	$(RUN) -m pip install --disable-pip-version-check --quiet -e '.[docs]'
	$(RUN) -m mkdocs build --strict

test: $(READY)
	$(RUN) -m pytest $(PYTEST_ARGS)

test-slow: $(READY)
	$(RUN) -m pytest -m slow $(PYTEST_ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(READY)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# Known vulnerabilities of what is installed here; needs PyPI's own data (docs/install.md).
audit: $(READY)
	$(RUN) -m pip freeze --all --exclude-editable --exclude detectron2 > $(VENV)/audited.txt
	$(RUN) -m pip_audit --strict --no-deps --disable-pip -r $(VENV)/audited.txt

setup: $(READY)

# The stamp is written last, so a set-up that was broken off starts again where pip left it.
$(READY): setup.py tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else \
	"detr_panoptic_d2 needs Python 3.10 or newer; $(PYTHON) is %d.%d. Choose one: make PYTHON=python3.11" % v[:2])'
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -e '.[dev]'
	$(RUN) tools/install_detectron2.py
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
