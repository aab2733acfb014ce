# Two commands: `make demo` and `make test`. Both make their environment from pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test style slow serve-test wheel train-mini results clean

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

SERVE := .venv-vllm

serve-test: $(READY)  ## vLLM with the plugin against transformers, in an environment of vLLM's own
	scripts/vllm_env.sh $(SERVE) || { [ $$? -eq 3 ] && echo "the tests of serving are skipped"; }
	if [ -e $(SERVE)/.ready ]; then \
	    OMP_NUM_THREADS=1 $(BIN)/python -m tests.compress.serving.reference && \
	    $(SERVE)/bin/python -m pytest tests/compress/serving; fi

train-mini: $(READY)  ## train the embedded model again (some three hours on 2 cores)
	$(BIN)/python -m train.mini --output out/mini

results: $(READY)  ## tables and pictures of docs/results.md, made again from their JSON
	$(BIN)/python -m scripts.results

clean:
	rm -rf $(VENV) $(SERVE) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
