#!/usr/bin/env python3
"""Says why nothing can run on a CUDA device here: prints one line and exits 1. Prints nothing where it can.

    gpu_device.py [NVCC]      with NVCC, which may be empty, the compiler must be there too"""
import ctypes
import shutil
import sys


def missing():
    """Why no CUDA device can be used, or None."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver on this machine (no libcuda.so.1)"
    code = driver.cuInit(0)
    if code != 0:
        return "the NVIDIA driver does not start (cuInit: error %d; see nvidia-smi)" % code
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value < 1:
        return "no CUDA device on this machine"
    return None


def missing_compiler(nvcc):
    return None if nvcc and shutil.which(nvcc) else "no nvcc found (CUDA_HOME, PATH, or make NVCC=...)"


def main():
    reason = (missing_compiler(sys.argv[1]) if len(sys.argv) > 1 else None) or missing()
    if reason:
        print(reason)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
