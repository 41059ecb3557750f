PYTHON ?= python3
BIN = .venv/bin
CPU = $(BIN)/accelerate launch --config_file launch/cpu.yaml -m trainer

demo: .venv/installed
	$(BIN)/clip-unlearn fictitious runs/world
	$(CPU) train configs/demo.yaml

test: .venv/installed
	$(BIN)/pytest

lint: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: .venv/installed
	$(BIN)/python tests/benchmarks/seeds.py

# The tiny CLIP that knows the fictitious people, made again from nothing.
fictitious-clip: .venv/installed
	$(BIN)/clip-unlearn fictitious runs/pretraining-world --pretrain 40
	$(CPU) train configs/fictitious_clip.yaml

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

.PHONY: demo test lint bench fictitious-clip
