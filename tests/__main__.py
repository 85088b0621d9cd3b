"""Runs the suite once under each backend: `python -m tests [PYTEST ARGS]`."""

import os
import subprocess
import sys
import time

BACKENDS = ("tensorflow", "jax", "torch")
# Each process has one half of the tests in order, and so sets up what a module
# shares once; who is done first takes of the other's.
PYTEST = (sys.executable, "-m", "pytest", "-n", "2", "--dist", "worksteal")

# Tiny models are compiled often and run once. Without fusion emitters JAX
# compiles an operation in half the time.
XLA_FLAGS = (
    "--xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false"
)

# JAX keeps what it has compiled: for the other process, and for another model
# of the same shapes.
JAX_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": os.path.abspath(".pytest_cache/jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def main():
    results = {}
    for backend in BACKENDS:
        print(f"\n=== KERAS_BACKEND={backend} ===", flush=True)
        start = time.monotonic()
        results[backend] = subprocess.run(
            [*PYTEST, "--durations", "20", *sys.argv[1:]],
            env={
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "XLA_FLAGS": XLA_FLAGS,
                # Two test processes share two cores.
                "OMP_NUM_THREADS": "1",
                **JAX_CACHE,
                **os.environ,
                "KERAS_BACKEND": backend,
            },
        ).returncode
        seconds = time.monotonic() - start
        print(f"=== {backend}: {seconds:.0f} s ===", flush=True)
    failed = [backend for backend, code in results.items() if code != 0]
    sys.exit(f"Failed under: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
