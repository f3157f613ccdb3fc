# What a person types; `make` alone lists it. The first run installs what is missing (see tools/need).

export PATH := $(HOME)/.cargo/bin:$(PATH):/usr/sbin:/sbin
export PIP_QUIET := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
BIN := .venv/bin
CARGO_FLAGS := --workspace --release --locked

TO_BUILD := python3=python3 python:ensurepip=python3-venv cc=gcc,libc6-dev \
	cargo=rustc-web,cargo-web
TO_LINT := cargo-fmt=rustfmt-web cargo-clippy=rust-web-clippy
TO_FETCH := dpkg-deb=dpkg mke2fs=e2fsprogs
TO_TEST := git=git file=file cpio=cpio lz4=lz4 iasl=acpica-tools mmdebstrap=mmdebstrap ps=procps qemu-img=qemu-utils \
	vmdkinfo=libvmdk-utils vhdiinfo=libvhdi-utils nbdinfo=libnbd-bin nbdsh=python3-libnbd nbdkit=nbdkit \
	openssl=openssl cryptsetup=cryptsetup-bin qemu-system-x86_64=qemu-system-x86 \
	passt=passt ip=iproute2 iperf3=iperf3 fio=fio
TO_BENCH := qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils nbdcopy=libnbd-bin passt=passt ip=iproute2 \
	iperf3=iperf3 fio=fio lz4=lz4 cpio=cpio mmdebstrap=mmdebstrap

# How much of what is random `make long` runs.
PROGRAMS := 300000
SEQUENCES := 500000
LITMUS := 10

.PHONY: help demo test lab lab-full long bench lint format build wheel clean
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## /make \1\t/p' Makefile | expand -t 14

demo: build ## boot a stock Debian kernel to a shell (no terminal: run a few commands in it)
	@tools/need $(TO_FETCH)
	$(BIN)/python -m guests.demo

test: build lint ## lint, then every test: Rust, Python, conformance, guests
	@tools/need $(TO_FETCH) $(TO_TEST)
	cargo test $(CARGO_FLAGS) --quiet
	$(BIN)/pytest

lab: build ## the kvm accelerator on the kernel's genuine KVM, emulated by QEMU
	@tools/need $(TO_FETCH) $(TO_TEST)
	$(BIN)/pytest tests/lab

lab-full: build ## every test of a stock guest under kvm in the lab; takes hours; FILES="test_smp.py" for some
	@tools/need $(TO_FETCH) $(TO_TEST)
	PYTHONPATH=. $(BIN)/python tests/lab/full.py $(FILES)

long: build ## what takes too long for make test: 264 CPUs, systems under the translator, long random runs
	@tools/need $(TO_FETCH) $(TO_TEST)
	OSTLER_LONG=1 $(BIN)/pytest tests/guest/test_smp.py tests/guest/test_translator.py
	OSTLER_LITMUS=$(LITMUS) cargo test --release --locked --quiet -p ostler-x86 --test system_translated litmus
	OSTLER_PROGRAMS=$(PROGRAMS) cargo test --release --locked --quiet -p ostler-differential --test translator
	cargo run --release --locked --quiet -p ostler-differential -- --count $(SEQUENCES)

bench: build ## measure boot and guest speed beside qemu -accel tcg; writes build/bench.json
	@tools/need $(TO_FETCH) $(TO_BENCH)
	$(BIN)/python -m benches
	$(BIN)/python -m benches.nbd
	@# Bridges and namespaces take root.
	[ "$$(id -u)" -ne 0 ] || $(BIN)/python -m benches.network
	$(BIN)/python -m benches.images
	$(BIN)/python -m benches.disks

lint: .venv/.installed ## formatting, ruff, mypy, clippy
	@tools/need $(TO_LINT)
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	@# A test asserts on an attribute, acts, and asserts again: mypy believes the first for ever.
	$(BIN)/mypy --no-warn-unreachable tests
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --all-targets --quiet -- -D warnings

format: .venv/.installed ## rewrite Python and Rust in the project's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	cargo fmt --all

build: .venv/.installed ## the extension module, into .venv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/maturin develop --release --locked --skip-install --quiet
	@# As an installation does: where Python may write no bytecode, each start would compile all it imports.
	@$(BIN)/python -m compileall -q src

wheel: .venv/.installed ## one abi3 wheel for Python 3.11 and later, under target/wheels
	$(BIN)/maturin build --release --locked --quiet

.venv/.installed: pyproject.toml tools/need
	@tools/need $(TO_BUILD)
	python3 -m venv .venv
	$(BIN)/pip install 'maturin>=1.9,<2'
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/maturin develop --release --locked --extras dev --quiet
	touch $@

clean: ## delete all that was built or fetched
	rm -rf .venv build target src/ostler/*.so
