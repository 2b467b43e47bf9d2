# make demo: the page. make test: everything. Both set up what they need, once.
# The first Python that runs and is 3.11 to 3.14; running it is the test, for a version manager's shim may only be a name.
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do $$p -c '$(SUITABLE)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
PY := $(VENV)/bin/python
PORT ?= 7860
# Installs a requirements file. uv takes the PyTorch that this machine can use: the CPU's where there is no GPU, which is a
# tenth of CUDA's. Where there is no uv, or it cannot reach its index, pip takes the usual one.
INSTALL = { $(UV) pip install --quiet --python $(PY) --torch-backend auto -r $(1) 2>/dev/null \
	|| $(PY) -m pip install --quiet --disable-pip-version-check -r $(1); }
UV = $$(command -v uv || echo $(VENV)/bin/uv)

.PHONY: demo test test-older-cpu browser clean

demo: $(VENV)/.runtime
	$(PY) app.py --port $(PORT) --browser

test: $(VENV)/.tests browser
	$(PY) -m pytest -q

# What computes, as CPUs without AVX-512, bfloat16 and VNNI do it.
test-older-cpu: $(VENV)/.tests
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PY) -m pytest -q \
		$(addprefix tests/test_,int8.py packed.py sampling.py decoder.py engine.py embedded.py gpt_prior.py pipeline.py)

$(VENV)/.runtime: requirements.txt
	@$(or $(PYTHON),false) -c '$(SUITABLE)' || { echo 'Python 3.11 to 3.14 is needed: install one, or name it with make PYTHON=/path/to/python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@command -v uv >/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check uv || true
	$(call INSTALL,requirements.txt)
	@touch $@

$(VENV)/.tests: $(VENV)/.runtime requirements-dev.txt requirements-train.txt requirements-ray.txt
	$(call INSTALL,requirements-dev.txt)
	@touch $@

# The browser of the tests: one that is installed, else Debian's, else Playwright's own.
browser: $(VENV)/.tests
	@$(PY) -m tests.browser.chromium || (command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
		&& apt-get update -qq && apt-get install -y -qq chromium) || $(PY) -m playwright install chromium

clean:
	rm -rf $(VENV)
