# Two commands: `make demo` and `make test`. Both make their environment from pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test style slow gpu-test serve-test page-test docs dist demo-small train-mini train-small results clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e ".[demo,train,experts,eval,dev]"
	touch $@

demo: $(READY)  ## IMAGE=photo.jpg VIDEO=clip.mp4 OUT=out/demo.png are optional
	$(BIN)/python -m scripts.demo $(if $(IMAGE),--image "$(IMAGE)") $(if $(VIDEO),--video "$(VIDEO)") $(if $(OUT),--out "$(OUT)")

test: style
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

style: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

slow: $(READY)  ## what takes long: wheels, launchers, long products of the matrix
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu"

gpu-test: $(READY)  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu

# VLLM=0.31.0 tests another version of the plugin's window, in an environment of its own.
SERVE := .venv-vllm$(if $(VLLM),-$(VLLM))

serve-test: $(READY)  ## vLLM with the plugin against transformers, in an environment of vLLM's own
	scripts/vllm_env.sh $(SERVE) $(VLLM) || { [ $$? -eq 3 ] && echo "the tests of serving are skipped"; }
	if [ -e $(SERVE)/.ready ]; then \
	    OMP_NUM_THREADS=1 $(BIN)/python -m tests.compress.serving.reference && \
	    $(SERVE)/bin/python -m pytest tests/compress/serving; fi

TOOLS := .venv-tools
SITE = import sysconfig; print(sysconfig.get_path("purelib"))

# What .venv-tools lacks it reads from .venv, so that PyTorch is installed once.
$(TOOLS)/.ready: constraints-tools.txt | $(READY)
	$(PYTHON) -m venv --clear $(TOOLS)
	$(BIN)/python -c '$(SITE)' > "$$($(TOOLS)/bin/python -c '$(SITE)')/shared.pth"
	$(TOOLS)/bin/pip install -q -c constraints-tools.txt gradio playwright \
	    mkdocs-material "mkdocstrings[python]" build twine
	touch $@

page-test: $(TOOLS)/.ready  ## the page, in a headless browser where there is one
	scripts/chromium.sh
	OMP_NUM_THREADS=1 $(TOOLS)/bin/python -m pytest -rs tests/foveate/test_page.py

docs: $(TOOLS)/.ready  ## the documentation site, in out/site
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/bin/python -m mkdocs build --strict --quiet

dist: $(TOOLS)/.ready  ## source distribution and wheel, checked
	rm -rf dist
	$(TOOLS)/bin/python -m build
	$(TOOLS)/bin/python -m twine check --strict dist/*

demo-small: $(READY)  ## the small judge, in plain English; fetches 183 MB of wheels and 580 MB of pictures
	$(BIN)/python -m vlm prepare small
	$(BIN)/python -m vlm prepare collage
	$(BIN)/python -m scripts.demo_small

train-small: $(READY)  ## train the small judge (three hours on 2 cores), after `vlm prepare small` and `collage`
	$(BIN)/python -m train.small --output out/small

train-mini: $(READY)  ## train the embedded model again (some three hours on 2 cores)
	$(BIN)/python -m train.mini --output out/mini

results: $(READY)  ## tables and pictures of docs/results.md, made again from their JSON
	$(BIN)/python -m scripts.results

clean:
	rm -rf $(VENV) .venv-vllm* $(TOOLS) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
