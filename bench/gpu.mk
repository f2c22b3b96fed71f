# What runs on a machine with a CUDA device (docs/gpu.md). gpu-tests only builds, where there is
# nvcc.
GPU_TESTS := $(patsubst tests/simt/%.c,%,$(filter-out tests/simt/test_cuda_faults.c,$(sort $(wildcard tests/simt/test_*.c))))
GPU_OUT ?= runs/gpu-bench
GPU_READY = $(PYTHON) bench/gpu_device.py '$(NVCC)' | sed 's/^/$@: /' | grep . && exit 1;

gpu-tests: ## build what gpu-test and gpu-bench run, with nvcc
	$(HAVE_NVCC) $(MAKE) --no-print-directory all $(GPU_TESTS:%=$(BUILD)/simt/nvcc/%) $(BUILD)/bench/device_peak

gpu-test: ## run kernels and backend on a CUDA device against their references
	@$(GPU_READY) $(MAKE) --no-print-directory gpu-tests
	@failed=; for t in $(GPU_TESTS); do echo "== $$t"; $(BUILD)/simt/nvcc/$$t || failed="$$failed $$t"; done; \
	  test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

gpu-bench: ## throughput on a CUDA device beside PyTorch, as shares of the device's peaks; options in GPU_BENCH
	@$(GPU_READY) $(MAKE) --no-print-directory gpu-tests
	bench/gpu_bench.py --out $(GPU_OUT) --taunet $(BUILD)/taunet --peak $(BUILD)/bench/device_peak $(GPU_BENCH)

gpu-day: ## all of it in one go, packed into runs/gpu-day-DATE.tar.gz; options in GPU_DAY
	@bench/gpu_day.py --build $(BUILD) --nvcc '$(NVCC)' $(GPU_DAY)

$(BUILD)/simt/nvcc/test_cuda_%: $(BUILD)/simt/nvcc/tests/simt/test_cuda_%.o $(call OBJ,$(SUPPORT_SRC)) $(BUILD)/libtaunet.a
	$(CC) -o $@ $^ $(LDFLAGS) $(LDLIBS) -lcmocka
$(BUILD)/bench/device_peak: bench/device_peak.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -isystem $(TOOLKIT)/include $(CFLAGS) -o $@ $< $(LDFLAGS) $(CUDA_LIBS)

.PHONY: gpu-tests gpu-test gpu-bench gpu-day
