# make demo: the page. make test: everything. Both set up what they need, once.
PYTHON ?= $(shell command -v python3.12 || command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
PORT ?= 7860

.PHONY: demo test browser clean

demo: $(VENV)/.runtime
	$(PY) app.py --port $(PORT) --browser

test: $(VENV)/.tests browser
	$(PY) -m pytest -q

$(VENV)/.runtime: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=/path/to/python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.tests: $(VENV)/.runtime requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# The browser of the tests: one that is installed, else Debian's, else Playwright's own.
browser: $(VENV)/.tests
	@$(PY) -m tests.browser.chromium || (command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
		&& apt-get update -qq && apt-get install -y -qq chromium) || $(PY) -m playwright install chromium

clean:
	rm -rf $(VENV)
