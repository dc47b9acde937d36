# make demo, make test: each makes .venv first when it is not there. PYTHON= chooses the interpreter.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# Threads that wait must not spin: on two cores they cost more than they help.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test test-slow lint format setup clean

demo: $(READY)
	$(RUN) tools/demo.py

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
