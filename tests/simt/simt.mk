# The SIMT machine (README.md): two builds of its runtime, rules for what runs on it, and its own test.
#
#   $(BUILD)/simt/plain/ and $(BUILD)/simt/check/ hold the plain and the instrumented build. For both:
#     DIR/kernels/x.o         from kernels/x.cu, as C++17 against tests/simt/include
#     DIR/src/backend/x.o     from src/backend/x.c, as C11 against the same headers
#     DIR/libsimt.a           the machine; link it with $(SIMT_LIBS), as C++
SIMT_DIR := tests/simt
SIMT_ARCH ?= -mavx2 -mfma
SIMT_INCLUDE := -I$(SIMT_DIR)/include -Iinclude -Isrc -I.
SIMT_LIBS := -lopenblas -ldl -lpthread -lm
SIMT_WARN := -Wall -Wextra -Werror -Wno-unknown-pragmas
# mutate.py builds without it: half of the compiler's time.
SIMT_DEBUG := -g
SIMT_CXX := g++ -std=gnu++17 $(SIMT_DEBUG) -O2 $(SIMT_ARCH) -fno-strict-aliasing -fopenmp-simd $(SIMT_WARN)
SIMT_SRC := $(sort $(wildcard $(SIMT_DIR)/runtime/*.cpp))
SIMT_PLAIN_SRC := $(filter-out %/shadow.cpp %/hooks.cpp,$(SIMT_SRC))
# What the hooks see must be what the source says: aggregates are not split into words.
SIMT_CHECK_FLAGS := -O1 -fno-tree-sra -fno-inline-small-functions -fsanitize=thread --param tsan-instrument-func-entry-exit=0
# With MPI, processes can have this machine's NCCL.
SIMT_DEFINES += $(if $(MPI_CFLAGS),-DTN_MPI -DTN_NCCL)
SIMT_C := $(CC) -std=c11 $(SIMT_DEBUG) -O2 -D_GNU_SOURCE -DTN_HAVE_CUDA -DTN_VERSION='"$(VERSION)"' $(SIMT_DEFINES) -fopenmp -ffp-contract=off -Wall -Wextra

# Test programs, one for each test_NAME.c here, and what they may link with: kernels, and host code against this
# machine's headers.
SIMT_TESTS := $(patsubst $(SIMT_DIR)/%.c,%,$(sort $(wildcard $(SIMT_DIR)/test_*.c)))
SIMT_HOST_SRC := src/base/philox.c src/base/fail.c src/base/memory.c src/data/augment.c src/data/resize.c
SIMT_TESTED := $(patsubst %.cu,%.o,$(sort $(wildcard kernels/*.cu))) $(SIMT_HOST_SRC:.c=.o)
SIMT_TEST_LIBS := -lcmocka
# Programs test_cuda_NAME link with the whole library and its CUDA backend.
SIMT_BACKEND := $(CUDA_SRC:.c=.o) src/backend/backend.o $(if $(MPI_CFLAGS),src/comm/transport.o src/comm/comm_nccl.o)

define SIMT_BUILD
$(BUILD)/simt/$(1)/libsimt.a: $(patsubst $(SIMT_DIR)/runtime/%.cpp,$(BUILD)/simt/$(1)/runtime/%.o,$(2))
	@rm -f $$@
	ar rcs $$@ $$^
$(BUILD)/simt/$(1)/runtime/%.o: $(SIMT_DIR)/runtime/%.cpp
	@mkdir -p $$(@D)
	$(SIMT_CXX) $(3) $(SIMT_INCLUDE) -MMD -MP -c -o $$@ $$<
$(BUILD)/simt/$(1)/%.o: %.c
	@mkdir -p $$(@D)
	$(SIMT_C) $(SIMT_INCLUDE) -MMD -MP -c -o $$@ $$<
	objcopy --redefine-sym memcpy=simt_host_memcpy $$@
$(BUILD)/simt/$(1)/selftest-%: $(BUILD)/simt/$(1)/$(SIMT_DIR)/selftest/%.o $(BUILD)/simt/$(1)/libsimt.a
	g++ -g -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) $(SIMT_LIBS)
$(BUILD)/simt/$(1)/selftest-correct: $(BUILD)/simt/$(1)/$(SIMT_DIR)/selftest/philox_reference.o
$(BUILD)/simt/$(1)/selftest-libraries: $(BUILD)/simt/$(1)/$(SIMT_DIR)/selftest/library_kernels.o $(BUILD)/simt/$(1)/src/base/philox.o
$(BUILD)/simt/$(1)/libtested.a: $(SIMT_TESTED:%=$(BUILD)/simt/$(1)/%)
	@rm -f $$@
	ar rcs $$@ $$^
$(patsubst %,$(BUILD)/simt/$(1)/%,$(filter-out test_cuda_%,$(SIMT_TESTS))): $(BUILD)/simt/$(1)/%: \
    $(BUILD)/simt/$(1)/$(SIMT_DIR)/%.o $(BUILD)/simt/$(1)/$(SIMT_DIR)/kernel_check.o \
    $(BUILD)/simt/$(1)/libtested.a $(BUILD)/simt/$(1)/libsimt.a
	g++ -g -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) $(SIMT_TEST_LIBS) $(SIMT_LIBS)
$(patsubst %,$(BUILD)/simt/$(1)/%,$(filter test_cuda_%,$(SIMT_TESTS))): $(BUILD)/simt/$(1)/%: \
    $(BUILD)/simt/$(1)/$(SIMT_DIR)/%.o $(SIMT_BACKEND:%=$(BUILD)/simt/$(1)/%) \
    $(call OBJ,$(SUPPORT_SRC)) $(BUILD)/simt/$(1)/libtested.a $(BUILD)/libtaunet.a $(BUILD)/simt/$(1)/libsimt.a
	g++ -g -fopenmp -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) $(filter-out -lnccl,$(LDLIBS)) $(SIMT_TEST_LIBS) $(SIMT_LIBS)
endef
# Programs that count (count_step.c, targets.c): the instrumented build alone, with what launchers are asked for noted.
SIMT_WRAPPED := $(foreach f,conv3x3_forward conv3x3_backward_data conv3x3_backward_weights stem_forward stem_backward,-Wl,--wrap=tn_launch_$(f))
SIMT_COUNTING := $(patsubst %,$(BUILD)/simt/check/$(SIMT_DIR)/%.o,counted_step expected_flops least_traffic) \
    $(SIMT_BACKEND:%=$(BUILD)/simt/check/%) $(BUILD)/simt/check/libtested.a $(BUILD)/libtaunet.a $(BUILD)/simt/check/libsimt.a
$(BUILD)/simt/check/count_step $(BUILD)/simt/check/targets: $(BUILD)/simt/check/%: $(BUILD)/simt/check/$(SIMT_DIR)/%.o $(SIMT_COUNTING)
	g++ -g -fopenmp $(SIMT_WRAPPED) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LDLIBS) $(SIMT_LIBS)
$(eval $(call SIMT_BUILD,plain,$(SIMT_PLAIN_SRC),-DSIMT_INSTRUMENTED=0))
$(eval $(call SIMT_BUILD,check,$(SIMT_SRC),-DSIMT_INSTRUMENTED=1))

$(BUILD)/simt/plain/%.o: %.cu
	@mkdir -p $(@D)
	$(SIMT_CXX) $(SIMT_INCLUDE) -MMD -MP -x c++ -c -o $@ $<
# Between the compiler and the assembler, each static shared variable gets a red zone behind it; afterwards, what the
# compiler left as calls is pointed at the machine.
$(BUILD)/simt/check/%.o: %.cu $(SIMT_DIR)/redzone.awk
	@mkdir -p $(@D)
	$(SIMT_CXX) $(SIMT_CHECK_FLAGS) $(SIMT_INCLUDE) -MMD -MP -MT $@ -MF $(@:.o=.d) -x c++ -S -o $(@:.o=.raw.s) $<
	awk -f $(SIMT_DIR)/redzone.awk $(@:.o=.raw.s) > $(@:.o=.s)
	g++ -c -o $@ $(@:.o=.s)
	objcopy $(foreach f,memcpy memset memmove,--redefine-sym $(f)=simt_$(f)) $@

SIMT_SELFTEST := $(foreach b,plain check,$(foreach t,correct planted libraries,$(BUILD)/simt/$(b)/selftest-$(t)))

simt-selftest: $(SIMT_SELFTEST) ## the SIMT machine's own test, in both builds
	@$(SIMT_DIR)/selftest/run.py $(BUILD)/simt

# All cores, where make was not told how many.
SIMT_JOBS = $(if $(findstring j,$(MAKEFLAGS)),,-j$(shell nproc))

simt-tests: $(foreach b,plain check,$(SIMT_TESTS:%=$(BUILD)/simt/$(b)/%))

simt-test: need-build+test+simt ## run kernels and backend on the SIMT machine, without a GPU
	@$(SIMT_DIR)/mutate.py --check
	@$(MAKE) --no-print-directory $(SIMT_JOBS) simt-selftest simt-tests simt-targets
	@$(SIMT_DIR)/run.py $(BUILD)/simt $(SIMT_TESTS)

simt-targets: $(BUILD)/simt/check/targets ## what the kernels of the tau block may cost, asserted on the counters
	@SIMT_DEVICE=sm_90 $(BUILD)/simt/check/targets

# Every test must notice its share of the faults of mutations.py: ten minutes of processor time, not for every commit.
simt-mutations: need-build+test+simt ## plant faults in the kernels and see that the tests catch them
	@$(MAKE) --no-print-directory $(SIMT_JOBS) simt-tests
	@$(SIMT_DIR)/mutate.py $(BUILD)

# The same sources through the real compiler. Objects and programs are in $(BUILD)/simt/nvcc; without nvcc these
# targets say so and are done.
NVCC ?= nvcc
NVCC_ARCH := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90
NVCC_FLAGS := -std=c++17 -O3 -Werror all-warnings $(NVCC_ARCH) -Iinclude -Isrc -I.
SIMT_NVCC := $(BUILD)/simt/nvcc
HAVE_NVCC = @command -v "$(NVCC)" >/dev/null || { echo "$@: no nvcc found (PATH, or make NVCC=...), nothing done"; exit 0; };
KERNEL_NAMES := $(patsubst kernels/%.cu,%,$(sort $(wildcard kernels/*.cu)))

simt-nvcc: ## compile kernels and their tests with nvcc for sm_80, sm_90 and PTX, and link them
	$(HAVE_NVCC) $(MAKE) --no-print-directory $(patsubst %,$(SIMT_NVCC)/%,$(filter test_kernels_%,$(SIMT_TESTS))) \
	  $(patsubst %,$(SIMT_NVCC)/$(SIMT_DIR)/selftest/%.o,correct library_kernels planted)
$(SIMT_NVCC)/%.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) -MMD -MP -c -o $@ $<
$(SIMT_NVCC)/%.o: %.c
	@mkdir -p $(@D)
	$(NVCC) $(CPPFLAGS) -Xcompiler -std=c11,-O2,-Wall,-Wextra,-Werror -MMD -MP -c -o $@ $<
$(SIMT_NVCC)/test_kernels_%: $(SIMT_NVCC)/$(SIMT_DIR)/test_kernels_%.o $(SIMT_NVCC)/$(SIMT_DIR)/kernel_check.o $(SIMT_TESTED:%=$(SIMT_NVCC)/%)
	$(NVCC) $(NVCC_ARCH) -o $@ $^ $(SIMT_TEST_LIBS)

# After simt-test where both are asked for: they build the same files.
cuda-report: $(filter simt-test,$(MAKECMDGOALS)) ## registers, spills and occupancy of every kernel (with nvcc); PREDICTED step times from counts
	@mkdir -p $(BUILD)/simt; rm -f $(BUILD)/simt/registers.txt
	@$(MAKE) --no-print-directory cuda-registers > $(BUILD)/simt/registers.part || { cat $(BUILD)/simt/registers.part; exit 1; }
	@cat $(BUILD)/simt/registers.part; mv $(BUILD)/simt/registers.part $(BUILD)/simt/registers.txt
	@$(MAKE) --no-print-directory $(BUILD)/simt/check/count_step
	@bench/gpu_predict.py --build $(BUILD)/simt
cuda-registers:
	$(HAVE_NVCC) $(MAKE) --no-print-directory -s $(SIMT_NVCC)/cuda_report $(KERNEL_NAMES:%=$(SIMT_NVCC)/report/%.log) && \
	  $(SIMT_NVCC)/cuda_report $(foreach k,$(KERNEL_NAMES),$(foreach a,80 90,\
	    sm_$(a)=$(SIMT_NVCC)/report/$(k).log,$(SIMT_NVCC)/report/$(k).compute_$(a).ptx))
$(SIMT_NVCC)/report/%.log: kernels/%.cu $(wildcard kernels/*.cuh) kernels/kernels.h kernels/launch.h
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) -Xptxas -v --keep --keep-dir $(@D) -c -o $(@:.log=.o) $< > $@.part 2>&1 || { cat $@.part; exit 1; }
	@mv $@.part $@
$(SIMT_NVCC)/cuda_report: tools/cuda_report.cpp
	@mkdir -p $(@D)
	$(NVCC) -std=c++17 -O2 -Xcompiler -Wall,-Wextra -o $@ $<

# What cuRAND itself draws, and that its host generator agrees.
simt-curand:
	@mkdir -p $(SIMT_NVCC)
	$(NVCC) -I. -o $(SIMT_NVCC)/philox_reference $(SIMT_DIR)/selftest/make_philox_reference.cu -lcurand
	$(SIMT_NVCC)/philox_reference | cmp - $(SIMT_DIR)/selftest/philox_reference.cu

simt-clean:
	rm -rf $(BUILD)/simt

.PRECIOUS: $(SIMT_NVCC)/%.o $(SIMT_NVCC)/report/%.log $(BUILD)/simt/plain/%.o $(BUILD)/simt/check/%.o
.PHONY: simt-test simt-targets simt-mutations cuda-report cuda-registers simt-tests simt-selftest simt-nvcc simt-curand simt-clean
