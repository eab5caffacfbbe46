PYTHON ?= python3
export PYTHON

INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check
DEMO_PROGRAMS := $(if $(AMQP_URL),,rabbitmq)

.PHONY: help demo test test-faults soak test-image lint bench venv lock clean

help:
	@echo 'make demo    shows the dispatcher at work, then ends (KEEP=1: stays up)'
	@echo 'make test    runs every test (ARGS="-k word": some)'
	@echo 'make test-faults  kills, cuts and floods everything, and accounts for every event'
	@echo 'make soak    an hour of load and random faults (ARGS="--minutes 5": less)'
	@echo 'make test-image   builds the image and runs it (as root)'
	@echo 'make lint    style, types, import rules'
	@echo 'make bench   measures throughput and latency'
	@echo 'make venv    sets up .venv'
	@echo 'make lock    renews the lock files from pyproject.toml (UPGRADE=1: newest versions)'
	@echo 'make clean   removes .venv and caches'
	@echo 'AMQP_URL=amqp://... uses that broker for demo and tests, instead of a private one.'

demo: .venv/.installed
	@.ci/system-packages $(DEMO_PROGRAMS)
	@.venv/bin/webhook-dispatcher demo $(if $(filter-out 0,$(KEEP)),--keep)

test: venv
	@.ci/system-packages rabbitmq nginx webhook kubectl promtool faketime
	.venv/bin/pytest --numprocesses 2 --dist worksteal $(ARGS)

# Without debootstrap the run says that RabbitMQ 4.0 cannot be had, and does the rest.
test-faults: venv
	@.ci/system-packages rabbitmq
	-@.ci/system-packages debootstrap
	.venv/bin/python -m tests.faults $(ARGS)

soak: venv
	@.ci/system-packages rabbitmq
	.venv/bin/python -m tests.faults.soak $(ARGS)

test-image: venv
	@.ci/system-packages rabbitmq buildah mmdebstrap
	TEST_IMAGE=1 .venv/bin/pytest tests/test_image.py -s -rs $(ARGS)

lint: venv
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: venv
	@.ci/system-packages rabbitmq nginx
	.venv/bin/python -m tests.bench $(ARGS)

venv: .venv/.installed .venv/.installed-dev

# What the program needs; and what tests and checks need beside it, which the demo does without.
.venv/.installed: pyproject.toml requirements.lock .ci/requirements-build.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3' >&2; exit 1; }
	@.ci/system-packages venv
	@echo 'Setting up .venv'
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(INSTALL) --require-hashes -r requirements.lock -r .ci/requirements-build.lock
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.venv/.installed-dev: .venv/.installed .ci/requirements-dev.lock
	@$(INSTALL) --require-hashes -r .ci/requirements-dev.lock
	@touch $@

lock:
	@.ci/lock

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find service tests -name __pycache__ -type d -prune -exec rm -rf {} +
