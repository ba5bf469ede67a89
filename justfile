# The usual commands; `just` alone lists them.

export CARGO_INCREMENTAL := env("CARGO_INCREMENTAL", "1")

_default:
    @just --list

# Formatting, lints, documentation: nothing may complain.
check:
    cargo fmt --check
    cargo clippy --release --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps

# Every test.
test:
    cargo test --release

# Repairs what can be repaired by a program.
fix:
    cargo clippy --release --all-targets --fix --allow-dirty --allow-staged
    cargo fmt

# One whole training step by phase: `just bench`, `just bench 124m 10`.
bench shape="14m" runs="5":
    cargo bench --bench step -- {{shape}} {{runs}}

# Every operation against its reference and the machine's ceilings.
ops runs="5":
    cargo bench --bench ops -- {{runs}}

# Our steps and PyTorch's in turn, on an idle machine. Installs PyTorch into target/peer-env the first time.
peers runs="5":
    python3 benches/peers/run.py --runs {{runs}}

# Recomputes the goldens with PyTorch and compares; needs Python and network once. `just golden ""` writes them anew.
golden mode="--check":
    test -d target/golden-env || python3 -m venv target/golden-env
    target/golden-env/bin/pip install --quiet -r tests/reference/requirements.txt
    target/golden-env/bin/python tests/reference/make_goldens.py {{mode}}

# Parity and benches of a GPU: builds them into target/gpu (needs nvcc), and runs them where there is a GPU.
gpu out="target/gpu/results":
    bash benches/gpu/build.sh
    if command -v nvidia-smi >/dev/null; then bash target/gpu/run.sh {{out}}; else echo "carry target/gpu to a machine with a GPU and run: bash run.sh FOLDER"; fi
