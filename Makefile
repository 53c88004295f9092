# make demo    see a container survive the daemon's death, in one command
# make check   what to run while working: format, lints, docs, unit, property and architecture tests
# make test    everything that CI runs
# make fuzz    every fuzz target for a few thousand inputs
# make soak    a mixed load for MINUTES (20), looked at every minute; stops at the first drift
# make bench   figures beside Debian's containerd, in one interleaved run; PARTS="life exec" for some; fails
#              when a bar is missed
# make same-layers  unpacks a realistic image with Debian's containerd as well; fails when a file differs
# make plots   docs/plots from the rows that `make bench` wrote
# make install real use: binaries, systemd unit
# make deb     the same as a Debian package, in out/

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: demo check checks fmt clippy doc unit search architecture fuzz-check fuzz test integration soak bench same-layers plots \
	install uninstall deb deps-build deps-demo deps-unit deps-test deps-fuzz deps-bench binaries-dev binaries-release clean

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
TARGET_DIR := $(shell $(CARGO) metadata --format-version 1 --no-deps 2>/dev/null \
	| sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
DEV := $(CURDIR)/out/dev
RELEASE := $(CURDIR)/out/release
IMAGE := $(CURDIR)/out/image.tar
LAYERS := $(CURDIR)/out/layers
IMAGE_NAME := example.test/demo/busybox:1

# One shim per container: a static, non-relocatable binary shares its pages and needs no loader.
# With --target, these flags reach the shim's crates and not the build scripts.
SHIM_FLAGS = --target $(HOST) --config \
	'target.$(HOST).rustflags=["-Ctarget-feature=+crt-static","-Crelocation-model=static"]'

# --- what Debian provides ------------------------------------------------------------------------
deps-build:
	@scripts/deps gcc libc6-dev make

deps-demo: deps-build
	@scripts/deps runc busybox-static umoci

deps-test: deps-demo
	@scripts/deps criu crun skopeo docker-registry containerd bsdutils util-linux iproute2 mount \
		strace xfsprogs e2fsprogs btrfs-progs erofs-utils fuse3 fuse-overlayfs attr acl systemd \
		nftables containernetworking-plugins docker.io iptables procps

# Units make file systems in files, and networks in network namespaces.
deps-unit: deps-build
	@scripts/deps xfsprogs e2fsprogs btrfs-progs erofs-utils fuse3 fuse-overlayfs \
		iproute2 util-linux nftables containernetworking-plugins

deps-fuzz: deps-build
	@scripts/deps g++

deps-bench: deps-test
	@scripts/deps mmdebstrap zstd gzip

# --- binaries ------------------------------------------------------------------------------------
# The shim is built by itself: features unify over a workspace build and would make it fat.
binaries-dev:
	$(CARGO) build --locked -p daemon -p ctr
	$(CARGO) build --locked --profile shim -p shim $(SHIM_FLAGS)
	@mkdir -p $(DEV)
	@for b in containerd ctr; do ln -f $(TARGET_DIR)/debug/$$b $(DEV)/$$b 2>/dev/null \
		|| cp -f $(TARGET_DIR)/debug/$$b $(DEV)/$$b; done
	@cp --remove-destination $(TARGET_DIR)/$(HOST)/shim/containerd-shim-runc-v2 $(DEV)/

binaries-release: export CONTAINERD_REVISION = $(shell git rev-parse HEAD 2>/dev/null)
binaries-release:
	$(CARGO) build --locked --release -p daemon -p ctr
	$(CARGO) build --locked --profile shim -p shim $(SHIM_FLAGS)
	@mkdir -p $(RELEASE)
	@cp -f $(TARGET_DIR)/release/containerd $(TARGET_DIR)/release/ctr $(RELEASE)/
	@cp -f $(TARGET_DIR)/$(HOST)/shim/containerd-shim-runc-v2 $(RELEASE)/

$(IMAGE): integration/scripts/mkimage.sh
	@mkdir -p out
	integration/scripts/mkimage.sh $@ $(IMAGE_NAME)

$(LAYERS): integration/scripts/mklayers.sh
	integration/scripts/mklayers.sh $@

# --- people --------------------------------------------------------------------------------------
demo: deps-demo binaries-release $(IMAGE)
	@scripts/demo $(RELEASE) $(IMAGE) $(IMAGE_NAME)

install: deps-build binaries-release
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 0755 $(RELEASE)/containerd $(RELEASE)/ctr $(RELEASE)/containerd-shim-runc-v2 \
		$(DESTDIR)$(PREFIX)/bin/
	sed 's|@PREFIX@|$(PREFIX)|' scripts/containerd.service \
		>$(DESTDIR)$(PREFIX)/lib/systemd/system/containerd.service

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/containerd $(DESTDIR)$(PREFIX)/bin/ctr \
		$(DESTDIR)$(PREFIX)/bin/containerd-shim-runc-v2 \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/containerd.service

deb: deps-build binaries-release
	scripts/deb $(RELEASE) $(CURDIR)/out

# --- checks --------------------------------------------------------------------------------------
check: checks fuzz-check

checks: fmt clippy doc unit architecture

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps -q

# The same cases in every run: a new seed belongs to a search, not to a gate. `make search` looks
# further, with a seed of its own. What the build wrote goes to the disk first: no test waits behind it.
# All that fail are told, not those of the first crate alone. Half of what takes long waits for somebody.
unit: deps-unit
	$(CARGO) test --locked --workspace --exclude integration --no-run
	sync
	PROPTEST_RNG_SEED=1 RUST_TEST_THREADS=$$(($$(nproc) * 2)) \
		$(CARGO) test --locked --workspace --exclude integration --no-fail-fast

search:
	$(CARGO) test --locked --workspace --exclude integration

architecture:
	$(CARGO) test --locked -p integration --test architecture

fuzz-check:
	@for manifest in */fuzz/Cargo.toml; do \
		[ -e "$$manifest" ] || continue; \
		echo "check $$manifest"; \
		$(CARGO) check -q --manifest-path "$$manifest" --target-dir $(TARGET_DIR)/fuzz || exit 1; \
	done

# Every target with the same few thousand inputs in each run; `scripts/fuzz CRATE TARGET SECONDS` looks
# further.
fuzz: deps-fuzz
	TARGET_DIR=$(TARGET_DIR) CARGO=$(CARGO) scripts/fuzz

# Most of what stories do is wait.
integration: export RUST_TEST_THREADS = $(shell echo $$(($$(nproc) * 2)))
# Behind the gigabytes that a build has just written, every fsync of a daemon waits for tens of seconds.
integration: deps-test binaries-dev $(IMAGE)
	sync
	BIN_DIR=$(DEV) $(CARGO) test --locked -p integration --test stories --test conformance \
		--no-fail-fast

# The fuzz targets run here: nobody has to check that they compile.
test: deps-test checks fuzz integration

# The daemon that people get: what a build without optimisation holds is another matter.
MINUTES ?= 20
soak: deps-test binaries-release $(IMAGE)
	MINUTES=$(MINUTES) $(if $(SEED),SEED=$(SEED)) BIN_DIR=$(RELEASE) \
		$(CARGO) test --locked -p integration --test soak -- --nocapture

# A whole run begins with this: figures of a daemon that unpacks something else are worth nothing.
bench: deps-bench binaries-release $(IMAGE) $(LAYERS) $(if $(PARTS),,same-layers)
	$(CARGO) bench --locked -p integration --no-run
	BIN_DIR=$(RELEASE) unshare -m sh -c 'if mountpoint -q /sys/fs/cgroup/unified; then \
		umount /sys/fs/cgroup/unified; fi; exec $(CARGO) bench --locked -p integration -- $(PARTS)'

same-layers: deps-bench binaries-release $(LAYERS)
	SAME_LAYERS=$(LAYERS)/gzip BIN_DIR=$(RELEASE) $(CARGO) test --locked -p integration --test conformance \
		all_layers_come_out_as_under_debian

plots:
	@scripts/deps python3
	@mkdir -p docs/plots
	scripts/plot-density out/bench/density.csv docs/plots

clean:
	rm -rf out
	$(CARGO) clean
