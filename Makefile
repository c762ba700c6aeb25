# posada's two commands are `make run` and `make test`; `make help` lists the rest.
#
#   make run [ARGS="--cpus 2"]   boots the tiny Linux guest to a shell
#   make test [KVM=none]         runs all tests; KVM=none runs those that need no /dev/kvm
#   make bench [ARGS="start"]    measures all, or what ARGS names

SHELL := /bin/bash
ARGS ?=
KVM ?=
FUZZ_SECONDS ?= 60
# Two guests at a time: a guest keeps one core busy while it boots.
TEST_THREADS ?= 2

# What builds posada. Where there is no cargo, or one too old, Debian's current one (rustc-web in Debian 12).
OLDEST_CARGO := 1.91
PACKAGES := gcc libc6-dev ca-certificates
ifneq ($(shell printf '%s\n' $(OLDEST_CARGO) "$$(cargo --version 2>/dev/null | cut -d' ' -f2)" | sort -V | head -n 1),$(OLDEST_CARGO))
PACKAGES += cargo-web rustc-web rustfmt-web rust-web-clippy
endif
# What builds and packs the guest.
GUEST_PACKAGES := make flex bison bc libelf-dev libssl-dev xz-utils cpio kmod busybox-static linux-source-6.1
# What tests make disks' file systems with, and check them; networks; and golden snapshots; what checks manual pages, the API's description and units.
TEST_PACKAGES := e2fsprogs iproute2 passt xz-utils groff-base python3-venv systemd
# What `make bench` measures with: a disk and a network without a VM, and system calls.
BENCH_PACKAGES := fio iproute2 linux-perf

# Where cargo puts what it builds (.cargo/config.toml).
BUILT := target/x86_64-unknown-linux-gnu/release

# Where `make install` puts what BINARY is and makes; a package's build has it put into DESTDIR.
PREFIX ?= /usr/local
DESTDIR ?=
BINARY ?= target/release/posada
INSTALLED = $(DESTDIR)$(PREFIX)
MANUAL = $(INSTALLED)/share/man/man1
DOCS = $(INSTALLED)/share/doc/posada
BASH_COMPLETION = $(INSTALLED)/share/bash-completion/completions/posada
ZSH_COMPLETION = $(INSTALLED)/share/zsh/site-functions/_posada
FISH_COMPLETION = $(INSTALLED)/share/fish/vendor_completions.d/posada.fish

.PHONY: help deps guest-deps guest build install uninstall run test golden bench fuzz lint deny clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 18

# Installs the Debian packages of its argument that are missing (as root), or says which.
define install
@missing=; \
for package in $(1); do \
  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$package"; \
done; \
if [ -z "$$missing" ]; then exit 0; fi; \
if [ "$$(id -u)" = 0 ]; then \
  echo "installing$$missing"; \
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
else \
  echo "posada needs more of Debian's packages. Run: sudo apt-get install$$missing" >&2; exit 1; \
fi
endef

deps: ## install what builds posada
	$(call install,$(PACKAGES))

guest-deps: ## install what builds the guest
	$(call install,$(GUEST_PACKAGES))

guest: deps guest-deps ## build the tiny Linux guest and the bare guest, unless they are in the cache
	@guest-images/build tiny
	@guest-images/build bare

build: deps ## build the posada command: target/release/posada
	@cargo build --release --locked -p vmm
	@mkdir -p target/release && ln -f $(BUILT)/posada target/release/posada

target/release/posada:
	@$(MAKE) build

install: $(BINARY) ## install what is built, with its manual and completions, below PREFIX (/usr/local)
	install -D $(BINARY) $(INSTALLED)/bin/posada
	install -d $(MANUAL) $(DOCS)/docs $(dir $(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION))
	install -m 644 LICENSE README.md $(DOCS)
	install -m 644 docs/* $(DOCS)/docs
	umask 022 && $(BINARY) man $(MANUAL)
	umask 022 && $(BINARY) completions bash >$(BASH_COMPLETION)
	umask 022 && $(BINARY) completions zsh >$(ZSH_COMPLETION)
	umask 022 && $(BINARY) completions fish >$(FISH_COMPLETION)

uninstall: ## remove what `make install` has put below PREFIX
	rm -f $(INSTALLED)/bin/posada $(MANUAL)/posada.1 $(MANUAL)/posada-*.1
	rm -f $(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION)
	rm -rf $(DOCS)

run: guest build ## boot the tiny Linux guest to a shell
	@target/release/posada run $(ARGS)

ifeq ($(KVM),none)
test: deps ## run all tests (KVM=none: those that need no /dev/kvm)
	cargo test --workspace --exclude posada-tests --locked -- --skip kvm_
	cargo test -p posada-tests --lib --test cli --test allocations --test install --locked -- --skip as_root_
else
test: guest
	$(call install,$(TEST_PACKAGES))
	@guest-images/build checks
	@guest-images/build worker
	cargo test --workspace --locked -- --test-threads=$(TEST_THREADS)
endif

golden: guest ## take the snapshots of the current format that tests restore for ever, before a release (docs/snapshots.md)
	cargo test -p posada-tests --test golden --locked -- --ignored

bench: guest build ## measure: a table, each figure beside its floor
	$(call install,$(BENCH_PACKAGES))
	cargo build --release --locked -p posada-bench && $(BUILT)/posada-bench $(ARGS)

fuzz: deps ## fuzz every target for FUZZ_SECONDS (60) each; what is found is kept in its corpus
	@$(call install,g++)
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	@cd tests/fuzz && for target in $$(cargo fuzz list --fuzz-dir libfuzzer); do \
	  cargo fuzz run --fuzz-dir libfuzzer --sanitizer none $$target corpus/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -rss_limit_mb=512 -timeout=10 && \
	  cargo fuzz cmin --fuzz-dir libfuzzer --sanitizer none $$target corpus/$$target -- -use_counters=0 || exit 1; \
	done

lint: deps ## check formatting and lints; warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy -p bare-guest --features freestanding --locked -- -D warnings

deny: ## check licences, sources and duplicates of all dependencies (needs cargo-deny)
	cargo deny --locked check licenses sources bans

clean: ## remove what cargo built; the guest's cache stays
	cargo clean
