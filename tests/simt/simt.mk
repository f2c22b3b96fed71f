# The SIMT machine (README.md): two builds of its runtime, rules for what runs on it, and its own test.
#
#   $(BUILD)/simt/plain/ and $(BUILD)/simt/check/ hold the plain and the instrumented build. For both:
#     DIR/kernels/x.o         from kernels/x.cu, as C++17 against tests/simt/include
#     DIR/src/backend/x.o     from src/backend/x.c, as C11 against the same headers
#     DIR/libsimt.a           the machine; link it with $(SIMT_LIBS), as C++
SIMT_DIR := tests/simt
SIMT_ARCH ?= -mavx2 -mfma
SIMT_INCLUDE := -I$(SIMT_DIR)/include -Iinclude -Isrc -I.
SIMT_LIBS := -lboost_context -lopenblas -ldl -lpthread -lm
SIMT_CXX := g++ -std=gnu++17 -g -O2 $(SIMT_ARCH) -fno-strict-aliasing -Wall -Wextra -Werror -Wno-unknown-pragmas -fopenmp-simd
SIMT_SRC := $(sort $(wildcard $(SIMT_DIR)/runtime/*.cpp))
SIMT_PLAIN_SRC := $(filter-out %/shadow.cpp %/hooks.cpp,$(SIMT_SRC))
# What the hooks see must be what the source says: aggregates are not split into words.
SIMT_CHECK_FLAGS := -O1 -fno-tree-sra -fno-inline-small-functions -fsanitize=thread --param tsan-instrument-func-entry-exit=0
SIMT_C := $(CC) -std=c11 -g -O2 -D_GNU_SOURCE -DTN_VERSION='"$(VERSION)"' $(SIMT_DEFINES) -fopenmp -ffp-contract=off -Wall -Wextra

# Test programs, one for each test_NAME.c here, and what they may link with: kernels, and host code against this
# machine's headers.
SIMT_TESTS := $(patsubst $(SIMT_DIR)/%.c,%,$(sort $(wildcard $(SIMT_DIR)/test_*.c)))
SIMT_HOST_SRC := src/base/philox.c src/data/augment.c
SIMT_TESTED := $(patsubst %.cu,%.o,$(sort $(wildcard kernels/*.cu))) $(SIMT_HOST_SRC:.c=.o)
SIMT_TEST_LIBS := -lcmocka

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
$(BUILD)/simt/$(1)/selftest-%: $(BUILD)/simt/$(1)/$(SIMT_DIR)/selftest/%.o $(BUILD)/simt/$(1)/libsimt.a
	g++ -g -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) $(SIMT_LIBS)
$(BUILD)/simt/$(1)/selftest-correct: $(BUILD)/simt/$(1)/$(SIMT_DIR)/selftest/philox_reference.o
$(BUILD)/simt/$(1)/selftest-libraries: $(BUILD)/simt/$(1)/$(SIMT_DIR)/selftest/library_kernels.o $(BUILD)/simt/$(1)/src/base/philox.o
$(BUILD)/simt/$(1)/libtested.a: $(SIMT_TESTED:%=$(BUILD)/simt/$(1)/%)
	@rm -f $$@
	ar rcs $$@ $$^
$(BUILD)/simt/$(1)/test_%: $(BUILD)/simt/$(1)/$(SIMT_DIR)/test_%.o $(BUILD)/simt/$(1)/$(SIMT_DIR)/kernel_check.o \
    $(BUILD)/simt/$(1)/libtested.a $(BUILD)/simt/$(1)/libsimt.a
	g++ -g -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) $(SIMT_TEST_LIBS) $(SIMT_LIBS)
endef
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

simt-tests: $(foreach b,plain check,$(SIMT_TESTS:%=$(BUILD)/simt/$(b)/%))

simt-test: need-build+test+simt ## run kernels and backend on the SIMT machine, without a GPU
	@$(MAKE) --no-print-directory simt-selftest simt-tests
	@$(SIMT_DIR)/run.py $(BUILD)/simt $(SIMT_TESTS)

# The same sources through the real compiler: that they are CUDA.
NVCC ?= nvcc
simt-nvcc: ## compile the self-test's kernels with nvcc for sm_80 and sm_90
	@mkdir -p $(BUILD)/simt/nvcc
	for t in correct library_kernels planted; do $(NVCC) -std=c++17 -gencode arch=compute_80,code=sm_80 \
	  -gencode arch=compute_90,code=sm_90 -I. -c -o $(BUILD)/simt/nvcc/$$t.o $(SIMT_DIR)/selftest/$$t.cu || exit 1; done
# What cuRAND itself draws, and that its host generator agrees.
simt-curand:
	@mkdir -p $(BUILD)/simt/nvcc
	$(NVCC) -I. -o $(BUILD)/simt/nvcc/philox_reference $(SIMT_DIR)/selftest/make_philox_reference.cu -lcurand
	$(BUILD)/simt/nvcc/philox_reference | cmp - $(SIMT_DIR)/selftest/philox_reference.cu

simt-clean:
	rm -rf $(BUILD)/simt

.PRECIOUS: $(BUILD)/simt/plain/%.o $(BUILD)/simt/check/%.o
.PHONY: simt-test simt-tests simt-selftest simt-nvcc simt-curand simt-clean
