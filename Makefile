PYTHON ?= python3
BIN = .venv/bin
SLOW = slow
FILES_AT_ONCE = 0
# In their order, which begins with the longest: by their number of tests, as xdist would have it,
# these come last, and alone.
IN_FILES = --dist loadfile --no-loadscope-reorder
# The command `accelerate launch`, without the imports of all of its others: seven seconds.
CPU = $(BIN)/accelerate-launch --config_file launch/cpu.yaml -m trainer
CPUS = ACCELERATE_USE_CPU=true $(BIN)/accelerate-launch --config_file launch/cpus.yaml -m trainer

demo: .venv/installed
	$(BIN)/clip-unlearn fictitious runs/world
	$(CPUS) train configs/demo.yaml

# Two files at a time: half of the processor would wait for one.
test: .venv/installed
	$(BIN)/pytest -n 2 $(IN_FILES) -m 'not slow'

# The demo and its single towers, held to their bounds; streams at full size; many kills; Slurm and
# two hosts, where they are installed and allowed. As .ci/run does, without what takes both cores for
# many minutes: make test-slow SLOW='slow and not long' FILES_AT_ONCE=2.
test-slow: .venv/installed
	$(BIN)/pytest -n $(FILES_AT_ONCE) $(IN_FILES) -m '$(SLOW)'

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy trainer

# Ratios taken in one run, then six fresh worlds, each learnt and partly forgotten: hours on two
# cores. Some alone: make bench ONLY='captions pictures resume', a few minutes.
bench: .venv/installed
	$(BIN)/python -m tests.benchmarks $(ONLY)

# The tiny CLIP that knows the fictitious people, made again from nothing: about 40 minutes.
fictitious-clip: .venv/installed
	$(BIN)/clip-unlearn fictitious runs/pretraining-world --pretrain 40
	$(CPU) train configs/fictitious_clip.yaml
	cp runs/fictitious_clip/model/open_clip_model.safetensors plugins/fictitious/clip/

# A world of 2,048 people, 1,024 to forget, whom the CLIP shipped for it knows: for `make bench
# ONLY='thousands ablation'`. Four minutes. And the configurations of `thousands`, to run one alone.
thousands: .venv/installed
	$(BIN)/clip-unlearn fictitious runs/thousands --people 2048 --forget 1024
	$(BIN)/python -m tests.benchmarks.thousands

# That CLIP made again, from the one above that knows others: 3,000 steps, 40 minutes.
thousands-clip: .venv/installed
	$(BIN)/clip-unlearn fictitious runs/pretraining-thousands --people 2048 --forget 1024 --pretrain 40
	$(CPU) train configs/fictitious_clip_thousands.yaml
	cp runs/fictitious_clip_thousands/model/open_clip_model.safetensors plugins/fictitious/clip/thousands.safetensors

# Debian keeps venv's own pip in a package apart (python3-venv): do without it there.
.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv || $(PYTHON) -m venv --without-pip .venv
	$(BIN)/python -m pip --version || $(PYTHON) -m pip --python $(BIN)/python install pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

.PHONY: demo test test-slow lint bench fictitious-clip thousands thousands-clip
