# make demo: the main job, on the shipped model. make test: everything that CI checks. Both set up .venv on first use.
PYTHON ?= python3
# On a machine without a GPU the CPU build of PyTorch is enough and much smaller: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
BIN := .venv/bin
ROOMS := compare export graph integrations quantize runtime serve

INSTALL := pip install --quiet --constraint constraints.txt

.PHONY: demo test lint types unit wheel docs test-serve test-drop-in test-ray test-lm-eval test-js target-environments kernel-tables test-targets gpu-check-small constraints clean

demo: .venv/ready
	$(BIN)/onnxport export examples/en-de --out artifacts/en-de --force
	$(BIN)/onnxport compare artifacts/en-de --data examples/en-de/test-200.tsv --out artifacts/reports/en-de --force

test: lint types unit wheel

.venv/ready: pyproject.toml Makefile constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	PYTHONWARNINGS=ignore $(BIN)/$(INSTALL) --editable '.[cpu,export,compare,dev]'
	touch $@

# The rooms stand at the root and under src; linters of imports and types get the package as links.
LINKED := build/types/onnxport
$(LINKED):
	rm -rf $@ && mkdir -p $@
	ln -s $(CURDIR)/src/onnxport/* $@/
	for room in $(ROOMS); do ln -s $(CURDIR)/$$room $@/$$room; done
.PHONY: $(LINKED)

lint: .venv/ready $(LINKED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && ../../$(BIN)/lint-imports --no-logo ../../pyproject.toml

types: .venv/ready $(LINKED)
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p onnxport

# One worker runs all tests of a file (tests/conftest.py); each has one thread, so that workers do not wait for one another.
WORKERS ?= 2
unit: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore tests/wheel --ignore tests/serve --ignore tests/targets --ignore tests/drop_in --ignore tests/on_ray --ignore tests/on_lm_eval -n $(WORKERS)

# The wheel in an environment of its own, without torch and onnx, answering from a bundle made here.
wheel: .venv/ready
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel/log 2>&1 || (cat build/wheel/log; false)
	$(BIN)/onnxport export examples/en-de --out build/wheel/bundle --quiet > /dev/null
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/$(INSTALL) "$$(ls build/wheel/*.whl)[cpu]" pytest
	cd build/wheel && ONNXPORT_BUNDLE=$(CURDIR)/build/wheel/bundle venv/bin/python -m pytest -p no:cacheprovider -o pythonpath= --rootdir $(CURDIR)/tests/wheel --confcutdir $(CURDIR)/tests/wheel $(CURDIR)/tests/wheel

# The documents as a site, in an environment of its own. The pages lie there as they do here, so that links hold in both; a broken one fails.
PAGES := docs README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md artifacts/sample-report javascript/README.md examples/pipeline examples/browser/screenshot.png $(wildcard examples/*/README.md)
build/docs-venv/ready: pyproject.toml
	rm -rf build/docs-venv && $(PYTHON) -m venv build/docs-venv
	build/docs-venv/bin/pip install --quiet $$($(PYTHON) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	touch $@
docs: build/docs-venv/ready $(LINKED)
	rm -rf build/docs build/site && mkdir -p build/docs && cp -r --parents $(PAGES) build/docs
	rm build/docs/artifacts/sample-report/report.md  # it would become a page of the report's own name
	cp build/docs/artifacts/sample-report/report.html build/docs/artifacts/sample-report/index.html
	build/docs-venv/bin/zensical build --strict --clean
	@echo build/site/index.html

# The server, held against the clients of others, whose pins are not ours: in an environment of its own, without torch.
CLIENTS := 'openai==3.57.0' 'httpx==0.28.1' 'tritonclient[http,grpc]==2.69.0'
SERVER := 'starlette==1.10.0' 'uvicorn==0.54.0' 'prometheus-client==0.26.0'
build/serve/ready: pyproject.toml Makefile
	rm -rf build/serve && $(PYTHON) -m venv build/serve
	build/serve/bin/pip install --quiet --editable '.[cpu,serve]' $(SERVER) $(CLIENTS) onnx onnx-ir pytest pytest-timeout
	touch $@
test-serve: build/serve/ready
	OMP_NUM_THREADS=1 build/serve/bin/python -m pytest --confcutdir tests/serve tests/serve

# Look-alikes beside their originals, in an environment of its own: sentence-transformers brings scikit-learn and scipy. Four pipelines
# are in transformers 4 alone, which lies beside it for a process of its own.
ORIGINALS := 'sentence-transformers==6.2.0' 'langchain-core==1.8.3'
OLDER := 'transformers==4.57.6'
build/drop-in/ready: pyproject.toml Makefile constraints.txt
	rm -rf build/drop-in && $(PYTHON) -m venv build/drop-in
	build/drop-in/bin/$(INSTALL) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	build/drop-in/bin/$(INSTALL) --editable '.[cpu,export,chat]' $(ORIGINALS) pytest pytest-timeout
	build/drop-in/bin/pip install --quiet --ignore-installed --target build/drop-in/older $(OLDER) 2> build/drop-in/older.log || (cat build/drop-in/older.log; false)
	touch $@
test-drop-in: build/drop-in/ready
	OMP_NUM_THREADS=1 build/drop-in/bin/python -m pytest tests/drop_in

# A bundle in the lm-evaluation-harness beside the harness's own model, in an environment of its own: it brings datasets and pandas.
build/lm-eval/ready: pyproject.toml Makefile constraints.txt
	rm -rf build/lm-eval && $(PYTHON) -m venv build/lm-eval
	build/lm-eval/bin/$(INSTALL) $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	build/lm-eval/bin/$(INSTALL) --editable '.[cpu,export,lm-eval]' 'lm-eval[hf]==0.4.13' pytest pytest-timeout
	touch $@
test-lm-eval: build/lm-eval/ready
	OMP_NUM_THREADS=1 build/lm-eval/bin/python -m pytest tests/on_lm_eval

# Bundles on a cluster of two nodes of Ray on this machine, in an environment of its own, without torch.
build/ray/ready: pyproject.toml Makefile
	rm -rf build/ray && $(PYTHON) -m venv build/ray
	build/ray/bin/pip install --quiet --editable '.[cpu,ray]' 'ray[data,serve]==2.60.0' 'httpx==0.28.1' onnx onnx-ir pytest pytest-timeout
	touch $@
test-ray: build/ray/ready
	OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 build/ray/bin/python -m pytest --timeout 300 --confcutdir tests/on_ray tests/on_ray

# The module for JavaScript against Python's answers, in Node and in a browser. It needs node, npm and a Chromium (CHROMIUM=PATH), and fails at once without.
test-js: .venv/ready
	node javascript/tests/chromium.js
	PYTHONPATH=tests $(BIN)/python -W ignore -m support.javascript_bundles build/javascript
	cd javascript && npm ci --no-audit --no-fund --loglevel=error && npm test

# Environments with the ONNX Runtime of targets: for the CPU in the versions of CUDA and the web, and onnxruntime-gpu over a fake device.
NEWEST = $$($(BIN)/python -c "from onnxport.quantize.fusion.targets import TARGETS; print(TARGETS['$(1)'].newest)")
ENVIRONMENT = $(PYTHON) -m venv build/targets/$(1) && build/targets/$(1)/bin/pip install --quiet $(2) numpy tokenizers click rich pytest
target-environments: .venv/ready
	rm -rf build/targets && mkdir -p build/targets
	$(call ENVIRONMENT,cuda,onnxruntime==$(call NEWEST,cuda))
	$(call ENVIRONMENT,web,onnxruntime==$(call NEWEST,web))
	$(call ENVIRONMENT,gpu,onnxruntime-gpu==$(call NEWEST,cuda))
	$(PYTHON) tests/support/fake_cuda/libraries.py build/targets/gpu/lib/python*/site-packages/onnxruntime/capi build/targets/fake

kernel-tables: target-environments
	LD_LIBRARY_PATH=build/targets/fake build/targets/gpu/bin/python benchmarks/kernel_tables.py CUDAExecutionProvider quantize/targets/kernels/cuda.json
	build/targets/web/bin/python benchmarks/kernel_tables.py CPUExecutionProvider quantize/targets/kernels/web.json

# Variants for CUDA and the web, of a tiny model of each kind, in these: golden answers on the CPU, and all that needs no numbers on the fake device.
TARGET_TESTS = -m pytest -p no:cacheprovider -o pythonpath= -o timeout= --rootdir tests/targets --confcutdir tests/targets
test-targets: target-environments $(LINKED)
	PYTHONPATH=tests $(BIN)/python -W ignore -m support.target_bundles build/targets/bundles
	set -e; export ONNXPORT_BUNDLES=build/targets/bundles PYTHONPATH=build/types; \
	  ONNXPORT_TARGET=cuda build/targets/cuda/bin/python $(TARGET_TESTS) tests/targets/test_versions.py; \
	  ONNXPORT_TARGET=web build/targets/web/bin/python $(TARGET_TESTS) tests/targets/test_versions.py; \
	  LD_LIBRARY_PATH=build/targets/fake build/targets/gpu/bin/python $(TARGET_TESTS) tests/targets/test_cuda_device.py

# The script that a GPU runs (docs/gpu.md), whole, at small size and on the CPU: a minute.
gpu-check-small: .venv/ready
	rm -rf build/gpu-check-small
	bash benchmarks/gpu_check.sh build/gpu-check-small --device cpu

# The versions that tests run with, as pip resolves them in a fresh environment; any build of torch will do, so its suffix goes.
constraints:
	rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	build/constraints/bin/pip install --quiet $(TORCH) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	build/constraints/bin/pip install --quiet '.[cpu,export,compare,dev]'
	build/constraints/bin/pip freeze --exclude onnxport --exclude-editable | sed -e 's/+[a-z0-9.]*$$//' -e '/^nvidia-/d' -e '/^triton==/d' > constraints.txt

clean:
	rm -rf .venv build dist *.egg-info
