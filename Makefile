# taunet: `make help` lists the targets. Everything is built in $(BUILD).
VERSION := 0.1.0
PREFIX ?= /usr/local
DESTDIR ?=
BUILD ?= build
DEMO_OUT ?= runs/demo
FUZZ_SECONDS ?= 60
ifeq ($(origin CC),default)
CC = gcc
endif
PYTHON := /usr/bin/python3

# C11 without extensions of the language; floating point is never contracted or reordered, so that results do not depend
# on what a compiler finds convenient. OpenMP is used for `omp simd` and to keep oneDNN single-threaded.
WARN := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wcast-qual
OPT ?= -O3
CPPFLAGS := -Iinclude -Isrc -I. -D_GNU_SOURCE -DTN_VERSION='"$(VERSION)"'
CFLAGS := -std=c11 $(OPT) -g -fPIC -fopenmp -ffp-contract=off $(WARN) $(SANITIZE)
LDFLAGS := -fopenmp $(SANITIZE)
LDLIBS := -ldnnl -ljansson -lxxhash -ljpeg -lspng -lz -lpthread -lm

# MPI joins the processes of a distributed run. It is used where it is installed.
MPI_CFLAGS := $(shell pkg-config --cflags ompi-c 2>/dev/null || mpicc --showme:compile 2>/dev/null)
ifneq ($(MPI_CFLAGS),)
LDLIBS += $(shell pkg-config --libs ompi-c 2>/dev/null || mpicc --showme:link 2>/dev/null)
else
WITHOUT += src/comm/comm_mpi.c
endif

# The CUDA backend is built where there is a toolkit: nvcc under CUDA_HOME or on PATH. CUDA=no leaves it out.
CUDA ?= yes
CUDA_SRC := $(sort $(wildcard src/backend/cuda_*.c))
KERNEL_SRC := $(sort $(wildcard kernels/*.cu))
NVCC ?= $(or $(wildcard $(CUDA_HOME)/bin/nvcc),$(shell command -v nvcc))
ifeq ($(CUDA),yes)
ifneq ($(NVCC),)
TOOLKIT := $(realpath $(dir $(realpath $(NVCC)))..)
HAVE_CUDA := $(if $(wildcard $(TOOLKIT)/include/cublas_v2.h),yes)
CUDA_ARCH ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
CUDA_LIBS := -L$(TOOLKIT)/lib64 -Wl,-rpath,$(TOOLKIT)/lib64 -lcublas -lcurand -lcudart -lstdc++
endif
endif
# NCCL sums gradients between GPUs, for processes that MPI joins: beside the toolkit, or where a package puts it.
ifneq ($(and $(HAVE_CUDA),$(MPI_CFLAGS)),)
NCCL_HOME ?= $(firstword $(foreach d,$(TOOLKIT) /usr/local /usr,$(if $(wildcard $(d)/include/nccl.h),$(d))))
NCCL_LIB := $(firstword $(wildcard $(foreach d,lib64 lib lib/$(shell $(CC) -print-multiarch),$(NCCL_HOME)/$(d)/libnccl.so)))
endif
ifneq ($(NCCL_LIB),)
CUDA_LIBS += -L$(dir $(NCCL_LIB)) -Wl,-rpath,$(dir $(NCCL_LIB)) -lnccl
else
WITHOUT += src/comm/comm_nccl.c
endif
LIB_SRC := $(filter-out $(CUDA_SRC) $(WITHOUT),$(sort $(wildcard src/base/*.c src/io/*.c src/comm/*.c src/data/*.c \
             src/model/*.c src/backend/*.c src/backend/*/*.c src/engine/*.c src/train/*.c src/plot/*.c src/theory/*.c \
             src/report/*.c)))
CLI_SRC := $(sort $(wildcard src/cli/*.c))
SUPPORT_SRC := $(sort $(wildcard tests/support/*.c))
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
COMMA := ,
OBJ = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB_OBJ := $(call OBJ,$(LIB_SRC)) $(if $(HAVE_CUDA),$(call OBJ,$(CUDA_SRC)) $(KERNEL_SRC:%.cu=$(BUILD)/%.o))
UNIT_BIN := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/unit/%)
REPLAY_BIN := $(FUZZ_SRC:tests/fuzz/fuzz_%.c=$(BUILD)/fuzz/replay_%)
C_FILES = $(shell git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cpp')

all: have-build say-cuda $(BUILD)/libtaunet.a $(BUILD)/libtaunet.so $(BUILD)/taunet $(BUILD)/pack ## build the library and the program

demo: need-build+demo ## train a tau-ResNet-20 on Fashion-MNIST for two epochs
	@$(MAKE) --no-print-directory all
	$(BUILD)/taunet train --config bench/demo.toml --out $(DEMO_OUT) --overwrite

test: need-build+test ## build and run all tests
	@$(MAKE) --no-print-directory all tests
	@$(PYTHON) tests/run.py $(BUILD) $(TESTS)

bench: need-build+peers ## throughput of all networks beside PyTorch, and of the data loader: docs/results/performance.md
	@$(MAKE) --no-print-directory all $(BUILD)/bench/loader
	bench/compare --taunet $(BUILD)/taunet --out docs/results/performance.md $(COMPARE)

bench-peers: need-peers ## compare throughput with PyTorch on this machine
	@$(MAKE) --no-print-directory all
	$(PYTHON) bench/peers/compare.py $(PEERS)

forecast: need-build ## forecast step times on this CPU from measured ceilings, beside measured ones; options in FORECAST
	@$(MAKE) --no-print-directory $(BUILD)/bench/cpu_forecast
	$(BUILD)/bench/cpu_forecast $(FORECAST)

test-interop: need-build+interop ## exchange files with the Python package safetensors (uses PyPI)
	@$(MAKE) --no-print-directory all $(BUILD)/interop/safetensors_copy
	tests/interop/run.sh $(BUILD)/interop/safetensors_copy $(BUILD)/taunet

asan: need-build+test ## run all tests under the address and undefined-behaviour sanitizers
	@$(MAKE) --no-print-directory BUILD=build-asan CUDA=no OPT=-O1 \
	  SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer' test

tsan: need-build+test ## run the tests of what is threaded under the thread sanitizer
	@$(MAKE) --no-print-directory BUILD=build-tsan CUDA=no OPT=-O1 SANITIZE=-fsanitize=thread \
	  $(addprefix build-tsan/unit/,test_pool test_gradient_tree test_loader test_image_sets test_pack test_cpu_engine)
	@for t in test_pool test_gradient_tree test_loader test_image_sets test_pack test_cpu_engine; do build-tsan/unit/$$t || exit 1; done

fuzz: need-build+fuzz ## fuzz every parser for FUZZ_SECONDS each
	@for source in $(FUZZ_SRC); do \
	  name=$$(basename $$source .c); name=$${name#fuzz_}; mkdir -p build-fuzz/$$name; \
	  clang -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all $(CPPFLAGS) -o build-fuzz/fuzz_$$name \
	    $$source $(filter src/base/% src/io/% src/data/% src/plot/% src/report/%,$(LIB_SRC)) -ljansson -lxxhash -ljpeg -lspng -lz -lpthread -lm || exit 1; \
	  echo "== $$name"; build-fuzz/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -verbosity=0 -print_final_stats=1 \
	    -artifact_prefix=build-fuzz/$$name- build-fuzz/$$name tests/fuzz/corpus/$$name || exit 1; done

lint: need-lint ## formatting, static analysis, the dependency law
	clang-format --dry-run -Werror $(C_FILES)
	$(PYTHON) tools/lint.py
	cppcheck --quiet --error-exitcode=1 --std=c11 --inline-suppr --enable=warning,portability \
	  --suppress=missingIncludeSystem -Iinclude -Isrc -I. -DTN_VERSION='""' src examples bench datasets

format: need-lint ## reformat all C files
	clang-format -i $(C_FILES)

install: all ## install program, library, headers and pkg-config file under PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include/taunet
	install -m 755 $(BUILD)/taunet $(DESTDIR)$(PREFIX)/bin/
	install -m 755 $(BUILD)/pack $(DESTDIR)$(PREFIX)/bin/taunet-pack
	install -m 644 $(BUILD)/libtaunet.a $(DESTDIR)$(PREFIX)/lib/
	install -m 755 $(BUILD)/libtaunet.so $(DESTDIR)$(PREFIX)/lib/libtaunet.so.0
	ln -sf libtaunet.so.0 $(DESTDIR)$(PREFIX)/lib/libtaunet.so
	install -m 644 include/taunet/*.h $(DESTDIR)$(PREFIX)/include/taunet/
	install -d $(DESTDIR)$(PREFIX)/share/taunet/tables
	install -m 644 bench/tables/*.toml $(DESTDIR)$(PREFIX)/share/taunet/tables/
	printf 'prefix=%s\nName: taunet\nDescription: training engine for residual networks with scaled branches\nVersion: %s\nCflags: -I$${prefix}/include\nLibs: -L$${prefix}/lib -ltaunet\nLibs.private: -fopenmp $(LDLIBS)\n' \
	  '$(PREFIX)' '$(VERSION)' > $(DESTDIR)$(PREFIX)/lib/pkgconfig/taunet.pc

deps: ## install what building and testing need (Debian and Ubuntu)
	@tools/deps install build test demo

clean: ## remove all build folders
	rm -rf $(BUILD) build-*

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(filter %Makefile %.mk,$(MAKEFILE_LIST)) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# need-SET+SET installs what is missing, all at once as package managers take no company; have-SET only says so.
need-%:
	@tools/deps check $(subst +, ,$*) 2>/dev/null || tools/deps install $(subst +, ,$*)
have-%:
	@tools/deps check $*

# What a program links with beside libtaunet.a.
link-flags:
	@echo -fopenmp $(LDLIBS)

tests: $(UNIT_BIN) $(REPLAY_BIN)

# What was found when the objects were built: with something else they are built again.
$(BUILD)/found: always
	@mkdir -p $(@D)
	@echo 'mpi: $(MPI_CFLAGS) cuda: $(HAVE_CUDA) nccl: $(NCCL_LIB)' > $@.new
	@cmp -s $@.new $@ || cp $@.new $@
$(BUILD)/src/comm/transport.o: CPPFLAGS += $(if $(MPI_CFLAGS),-DTN_MPI) $(if $(NCCL_LIB),-DTN_NCCL)
$(BUILD)/src/comm/comm_mpi.o: CPPFLAGS += $(MPI_CFLAGS:-I%=-isystem %)
$(BUILD)/src/comm/transport.o $(BUILD)/src/backend/backend.o $(BUILD)/libtaunet.a $(BUILD)/libtaunet.so: $(BUILD)/found

$(BUILD)/libtaunet.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $(filter %.o,$^)
$(BUILD)/libtaunet.so: $(LIB_OBJ)
	$(CC) -shared -Wl,-soname,libtaunet.so.0 -o $@ $(filter %.o,$^) $(LDFLAGS) $(LDLIBS)
$(BUILD)/taunet: $(call OBJ,$(CLI_SRC)) $(BUILD)/libtaunet.a
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS)
$(BUILD)/pack: $(BUILD)/datasets/pack.o $(BUILD)/libtaunet.a
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS)
$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<
ifdef HAVE_CUDA
LDLIBS += $(CUDA_LIBS)
$(BUILD)/src/backend/backend.o: CPPFLAGS += -DTN_HAVE_CUDA
$(call OBJ,$(CUDA_SRC)): CPPFLAGS += -isystem $(TOOLKIT)/include
$(BUILD)/src/comm/comm_nccl.o: CPPFLAGS += -isystem $(TOOLKIT)/include -isystem $(NCCL_HOME)/include
$(BUILD)/kernels/%.o: kernels/%.cu
	@mkdir -p $(@D)
	$(NVCC) -std=c++17 -O3 -Xcompiler -fPIC $(CUDA_ARCH) -I. -MMD -MP -MF $(@:.o=.d) -c -o $@ $<
endif
$(BUILD)/unit/%: $(BUILD)/tests/unit/%.o $(call OBJ,$(SUPPORT_SRC)) $(BUILD)/libtaunet.a
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS) -lcmocka
$(BUILD)/fuzz/replay_%: $(BUILD)/tests/fuzz/fuzz_%.o $(BUILD)/tests/fuzz/replay.o $(BUILD)/libtaunet.a
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS)
$(BUILD)/interop/%: $(BUILD)/tests/interop/%.o $(BUILD)/libtaunet.a
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS)
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libtaunet.a
	@mkdir -p $(@D)
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS)

# Once, when something is built.
say-cuda:
	@test -e $(BUILD)/taunet || echo '$(if $(HAVE_CUDA),CUDA backend: with $(NVCC)$(if $(NCCL_LIB),$(COMMA) NCCL for several processes: $(NCCL_LIB),$(COMMA) no NCCL for several processes),CUDA backend: left out$(if $(filter yes,$(CUDA)),$(COMMA) no nvcc with cuBLAS under CUDA_HOME or on PATH))'

.PRECIOUS: $(BUILD)/%.o
.PHONY: all say-cuda link-flags demo test bench bench-peers forecast test-interop asan tsan fuzz lint format install deps clean help tests always
include tests/simt/simt.mk
include bench/gpu.mk
-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
